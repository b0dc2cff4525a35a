"""The manifest and the token reader: whatever is wrong with a data folder is said in one line, never trained on."""

import copy
import json

import numpy as np
import pytest
from corpus_support import local_config, make_texts, write_shards

from corpus.prepare import prepare
from corpus.token_file import (
    DataError,
    open_token_file,
    read_manifest,
    token_byte_lengths,
    verify_digests,
    write_json_atomically,
)


@pytest.fixture(scope="module")
def prepared(tmp_path_factory):
    folder = tmp_path_factory.mktemp("prepared")
    prepare(local_config(folder / "data", write_shards(folder / "text", make_texts(30)), num_proc=1))
    return folder / "data"


@pytest.fixture
def copied(prepared, tmp_path):
    for path in prepared.iterdir():
        (tmp_path / path.name).write_bytes(path.read_bytes())
    return tmp_path


def test_windows_are_the_files_tokens(prepared):
    manifest = read_manifest(prepared)
    tokens = open_token_file(prepared, "train", manifest)
    raw = np.fromfile(prepared / "train.bin", dtype="<u2")
    assert len(tokens) == manifest.splits["train"].tokens == len(raw)
    assert np.array_equal(tokens.tokens, raw)
    for start, length in ((0, 5), (len(raw) - 3, 3), (17, 100), (4, 0)):
        window = tokens.read_window(start, length)
        assert np.array_equal(window, raw[start : start + length]) and window.flags.writeable
    for start, length in ((-1, 5), (len(raw) - 2, 3), (0, -1)):
        with pytest.raises(IndexError):
            tokens.read_window(start, length)
    with pytest.raises(ValueError):
        tokens.tokens[0] = 1


@pytest.mark.parametrize("change", [-2, -1, +2])
def test_wrong_size_names_file_and_both_sizes(copied, change):
    path = copied / "train.bin"
    size = path.stat().st_size
    path.write_bytes((path.read_bytes() + b"xx")[: size + change])
    with pytest.raises(DataError, match=rf"train\.bin: {size + change:,} bytes, expected {size:,}.*prepare_owt\.py"):
        open_token_file(copied, "train", read_manifest(copied))


def test_missing_files_name_the_remedy(copied, tmp_path):
    manifest = read_manifest(copied)
    (copied / "val.bin").unlink()
    with pytest.raises(DataError, match=r"val\.bin: missing; run: python prepare_owt\.py"):
        open_token_file(copied, "val", manifest)
    with pytest.raises(DataError, match=r"manifest\.json: missing.*python prepare_owt\.py data=docs"):
        read_manifest(tmp_path / "docs")


def test_file_truncated_while_open(copied):
    tokens = open_token_file(copied, "train", read_manifest(copied))
    (copied / "train.bin").write_bytes(b"")
    with pytest.raises(DataError, match=r"train\.bin: ends at byte 0.*truncated"):
        tokens.read_window(0, 10)


@pytest.mark.parametrize("name", ["train.bin", "val.bin", "tiktoken.json"])
def test_one_flipped_bit_is_found(copied, name):
    manifest = read_manifest(copied)
    verify_digests(copied, manifest)
    content = bytearray((copied / name).read_bytes())
    content[len(content) // 2] ^= 1
    (copied / name).write_bytes(content)
    with pytest.raises(DataError, match=name):
        verify_digests(copied, manifest)


def test_byte_lengths_add_up_to_the_text(prepared):
    manifest = read_manifest(prepared)
    lengths = token_byte_lengths(prepared, manifest)
    assert lengths.shape == (50257,) and lengths[manifest.tokenizer.eot_id] == 0
    for name, info in manifest.splits.items():
        tokens = open_token_file(prepared, name, manifest).tokens
        assert lengths[tokens].sum(dtype=np.int64) == info.bytes
        assert (tokens == manifest.tokenizer.eot_id).sum() == info.documents
        assert tokens.max() == info.max_id


def test_data_digest_follows_tokens_and_tokenizer(prepared):
    raw = json.loads((prepared / "manifest.json").read_bytes())
    digests = {read_manifest(prepared).data_digest}
    from corpus.manifest import parse_manifest

    for path in ("tokenizer.digest", "splits.train.sha256", "splits.val.sha256"):
        changed = copy.deepcopy(raw)
        set_field(changed, path, "0" * 64)
        digests.add(parse_manifest(changed).data_digest)
    assert len(digests) == 4
    changed = copy.deepcopy(raw)
    changed["name"] = "renamed"
    assert parse_manifest(changed).data_digest in digests


def set_field(raw, path, value):
    *parents, last = path.split(".")
    for part in parents:
        raw = raw[part]
    if value is DELETE:
        del raw[last]
    else:
        raw[last] = value


DELETE = object()
BROKEN = [
    ("format", 2),
    ("format", "1"),
    ("format", True),
    ("format", DELETE),
    ("name", ""),
    ("name", 7),
    ("name", DELETE),
    ("tokenizer", None),
    ("tokenizer", DELETE),
    ("tokenizer.name", 3),
    ("tokenizer.digest", "abc"),
    ("tokenizer.digest", "Z" * 64),
    ("tokenizer.vocab_size", 0),
    ("tokenizer.vocab_size", 70000),
    ("tokenizer.vocab_size", 50257.0),
    ("tokenizer.eot_id", 50257),
    ("tokenizer.eot_id", -1),
    ("dtype", "int16"),
    ("dtype", "<u2"),
    ("dtype", ["uint16"]),
    ("dtype", DELETE),
    ("splits", []),
    ("splits.train", DELETE),
    ("splits.test", {}),
    ("splits.train.file", "../train.bin"),
    ("splits.train.file", "/etc/passwd"),
    ("splits.train.file", ".."),
    ("splits.train.file", "a/b.bin"),
    ("splits.train.file", "train.bin\n"),
    ("splits.val.file", "train.bin"),
    ("splits.train.tokens", -5),
    ("splits.train.tokens", 0),
    ("splits.train.tokens", True),
    ("splits.train.tokens", 1e3),
    ("splits.train.tokens", 2**60),
    ("splits.train.documents", 0),
    ("splits.train.documents", 10**9),
    ("splits.train.bytes", -1),
    ("splits.train.bytes", None),
    ("splits.train.max_id", 50257),
    ("splits.train.max_id", -1),
    ("splits.val.sha256", "0" * 63),
    ("splits.val.sha256", None),
    ("splits.val.extra", 1),
    ("source", []),
    ("source.kind", DELETE),
    ("source.kind", 1),
    ("source.name", None),
    ("source.revision", 4),
    ("source.files", "x"),
    ("source.files", [{"name": "x"}]),
    ("source.files", [{"name": "x", "size": -1}]),
    ("source.files", [7]),
    ("split", None),
    ("split.method", 1),
    ("split.test_size", 0.0),
    ("split.test_size", 1.5),
    ("split.test_size", "0.1"),
    ("split.test_size", float("nan")),
    ("split.seed", -1),
    ("split.seed", 1.5),
    ("split.shuffle", 1),
    ("split.shuffle", DELETE),
    ("versions", []),
    ("versions.numpy", 2),
    ("unknown", 1),
]


@pytest.mark.parametrize(("path", "value"), BROKEN, ids=lambda value: str(value)[:30])
def test_each_broken_field_is_refused_by_name(copied, path, value):
    raw = json.loads((copied / "manifest.json").read_bytes())
    set_field(raw, path, value)
    (copied / "manifest.json").write_text(json.dumps(raw))
    with pytest.raises(DataError) as caught:
        read_manifest(copied)
    message = str(caught.value)
    assert "manifest.json: " in message and "prepare_owt.py" in message and "\n" not in message
    complaint = message.split("manifest.json: ")[1].split("; run:")[0]
    assert path.split(".")[-1] in complaint


@pytest.mark.parametrize("content", [b"", b"{", b"[]", b"null", b"\xff\xfe", b"[" * 100000])
def test_manifest_that_is_no_manifest(copied, content):
    (copied / "manifest.json").write_bytes(content)
    with pytest.raises(DataError, match="manifest.json"):
        read_manifest(copied)


def test_json_is_written_whole_or_not_at_all(tmp_path):
    path = tmp_path / "value.json"
    write_json_atomically(path, {"b": 1, "a": "é"})
    first = path.read_bytes()
    assert json.loads(first) == {"a": "é", "b": 1} and first.index(b'"a"') < first.index(b'"b"')
    with pytest.raises(TypeError):
        write_json_atomically(path, {"a": object()})
    assert path.read_bytes() == first and list(tmp_path.iterdir()) == [path]
