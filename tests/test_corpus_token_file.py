"""The manifest and the token reader: whatever is wrong with a data folder is said in one line, never trained on."""

import copy
import json
import os

import numpy as np
import pytest
from corpus_support import local_config, make_texts, write_shards

from corpus import bin_writer, token_file
from corpus import manifest as manifest_module
from corpus.prepare import prepare
from corpus.token_file import DataError, open_token_file, read_manifest, token_byte_lengths, verify_token_files


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
    for name in ("docs", "english", "openwebtext_llama2"):
        with pytest.raises(
            DataError, match=rf"manifest\.json: missing.*python prepare_owt\.py data={name} data\.dir={tmp_path}/{name}$"
        ):
            read_manifest(tmp_path / name)
    with pytest.raises(DataError, match=r"python prepare_owt\.py data=docs \(or .* data\.dir=.*/local$"):
        read_manifest(tmp_path / "local")


def test_file_truncated_while_open(copied):
    tokens = open_token_file(copied, "train", read_manifest(copied))
    (copied / "train.bin").write_bytes(b"")
    with pytest.raises(DataError, match=r"train\.bin: ends at byte 0.*truncated"):
        tokens.read_window(0, 10)


@pytest.mark.parametrize("full", [False, True])
@pytest.mark.parametrize("name", ["train.bin", "val.bin", "tokenizer.json", "token_bytes.bin"])
def test_one_flipped_bit_is_found(copied, name, full):
    manifest = read_manifest(copied)
    verify_token_files(copied, manifest, full)
    content = bytearray((copied / name).read_bytes())
    content[len(content) // 2] ^= 1
    (copied / name).write_bytes(content)
    with pytest.raises(DataError, match=rf"{name}: its contents have changed.*prepare_owt\.py") as caught:
        verify_token_files(copied, manifest, full)
    assert caught.value.exit_code == 3


@pytest.mark.parametrize("name", ["train.bin", "val.bin", "tokenizer.json", "token_bytes.bin"])
@pytest.mark.parametrize("fault", ["truncated", "odd", "longer", "empty", "missing", "folder", "pipe"])
def test_the_fast_check_finds_what_is_not_the_right_size(copied, name, fault):
    manifest, path = read_manifest(copied), copied / name
    content = path.read_bytes()
    path.unlink()
    if fault == "folder":
        path.mkdir()
    elif fault == "pipe":  # opening it would wait for a writer
        os.mkfifo(path)
    elif fault != "missing":
        path.write_bytes({"truncated": content[:-4], "odd": content[:-1], "longer": content + b"xx", "empty": b""}[fault])
    with pytest.raises(DataError, match=name):
        verify_token_files(copied, manifest)


def test_the_fast_check_samples_and_the_full_one_reads_everything(copied, monkeypatch):
    """A file of many blocks: the first and the last are always read, others by lot."""
    for module in (bin_writer, manifest_module, token_file):
        monkeypatch.setattr(module, "BLOCK_BYTES", 100)
    info = read_manifest_with_blocks(copied)
    size = (copied / "train.bin").stat().st_size
    assert len(info.splits["train"].block_sha256) == 64 * -(-size // 100) and size > 5000
    for position, always in ((3, True), (size - 1, True), (size // 2, False)):
        content = bytearray((copied / "train.bin").read_bytes())
        content[position] ^= 4
        (copied / "train.bin").write_bytes(content)
        found = sum(is_refused(copied, info) for _ in range(200))
        assert found == 200 if always else 0 < found < 100
        with pytest.raises(DataError, match="train.bin"):
            verify_token_files(copied, info, full=True)
        content[position] ^= 4
        (copied / "train.bin").write_bytes(content)


def read_manifest_with_blocks(folder):
    """Return the manifest with block digests as prepare would have recorded them with the present BLOCK_BYTES."""
    raw = json.loads((folder / "manifest.json").read_bytes())
    for split in raw["splits"].values():
        digests, content = bin_writer.FileDigests(), (folder / split["file"]).read_bytes()
        for start in range(0, len(content), 37):
            digests.update(content[start : start + 37])
        assert digests.whole.hexdigest() == split["sha256"]
        split["block_sha256"] = digests.blocks()
    return manifest_module.parse_manifest(raw)


def is_refused(folder, manifest):
    try:
        verify_token_files(folder, manifest)
    except DataError:
        return True
    return False


def test_manifests_without_the_newer_digests_are_still_read(copied):
    raw = json.loads((copied / "manifest.json").read_bytes())
    del raw["tokenizer"]["token_bytes_sha256"], raw["splits"]["train"]["block_sha256"]
    del raw["splits"]["val"]["block_sha256"]
    (copied / "manifest.json").write_text(json.dumps(raw))
    manifest = read_manifest(copied)
    verify_token_files(copied, manifest)
    verify_token_files(copied, manifest, full=True)
    content = bytearray((copied / "val.bin").read_bytes())
    content[7] ^= 1
    (copied / "val.bin").write_bytes(content)
    verify_token_files(copied, manifest)  # nothing to sample with
    with pytest.raises(DataError, match="val.bin"):
        verify_token_files(copied, manifest, full=True)


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
    ("splits.val.block_sha256", "0" * 63),
    ("splits.val.block_sha256", "0" * 128),
    ("splits.val.block_sha256", "g" * 64),
    ("splits.val.block_sha256", None),
    ("tokenizer.token_bytes_sha256", "0" * 65),
    ("tokenizer.token_bytes_sha256", 1),
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


@pytest.mark.parametrize(("path", "value"), BROKEN, ids=lambda value: "deleted" if value is DELETE else str(value)[:30])
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
