"""A file that prepare_owt.py did not write is never replaced; nanoGPT's bins are adopted as they are."""

import json
import os

import numpy as np
import pytest
from corpus_support import EOT, local_config, make_texts, read_bins, write_shards

from corpus import prepare as module
from corpus import publication, splits
from corpus.adopt import adopt
from corpus.prepare import prepare
from corpus.settings import DataConfig, ExpectedCounts
from corpus.token_file import DataError, read_manifest, verify_token_files
from corpus.tokenizer import make_tokenizer

TEXTS = make_texts(30)


@pytest.fixture(scope="module")
def shards(tmp_path_factory):
    return write_shards(tmp_path_factory.mktemp("shards"), TEXTS)


def config(out, files, **settings):
    return local_config(out, files, **{"tokenizer": "bytes", "vocab_size": 272, "num_proc": 1, **settings})


def everything(folder):
    return {str(path.relative_to(folder)): path.read_bytes() for path in folder.rglob("*") if path.is_file()}


@pytest.mark.parametrize("overwrite", [False, True])
@pytest.mark.parametrize(
    "name", ["train.bin", "val.bin", "tokenizer.json", "token_bytes.bin", "manifest.json", "prepare.partial/notes.txt"]
)
def test_a_file_of_the_users_is_refused_by_name_and_left_alone(tmp_path, shards, name, overwrite):
    (tmp_path / name).parent.mkdir(exist_ok=True)
    (tmp_path / name).write_text('{"name": "my web app"}')
    before = everything(tmp_path)
    with pytest.raises(DataError, match=f"{tmp_path / name.split('/')[0]}: was not written by prepare_owt.py") as caught:
        prepare(config(tmp_path, shards, overwrite=overwrite))
    assert everything(tmp_path) == before and "\n" not in str(caught.value)
    assert ("adopt=true" in str(caught.value)) == name.endswith("n.bin" if name.startswith("train") else "val.bin")


def test_links_and_folders_under_our_names_are_refused_too(tmp_path, shards):
    (tmp_path / "train.bin").symlink_to(tmp_path / "elsewhere")
    with pytest.raises(DataError, match="train.bin: was not written"):
        prepare(config(tmp_path, shards))
    (tmp_path / "train.bin").unlink()
    (tmp_path / "val.bin").mkdir()
    with pytest.raises(DataError, match="val.bin: was not written"):
        prepare(config(tmp_path, shards))


def test_a_file_that_comes_while_documents_are_encoded_is_left_alone(tmp_path, shards, monkeypatch):
    original = splits.write_split

    def write_split(*arguments):
        original(*arguments)
        (tmp_path / "val.bin").write_text("mine")

    monkeypatch.setattr(splits, "write_split", write_split)
    with pytest.raises(DataError, match="val.bin: was not written"):
        prepare(config(tmp_path, shards))
    assert (tmp_path / "val.bin").read_text() == "mine" and not (tmp_path / "train.bin").exists()
    (tmp_path / "val.bin").unlink()
    monkeypatch.undo()
    prepare(config(tmp_path, shards))  # goes on where it was
    verify_token_files(tmp_path, read_manifest(tmp_path), full=True)


def test_overwrite_keeps_a_file_that_is_not_as_the_manifest_says(tmp_path, shards, capsys):
    prepare(config(tmp_path, shards))
    (tmp_path / "train.bin").write_text("put here by me")
    (tmp_path / "notes.txt").write_text("mine")
    prepare(config(tmp_path, shards, overwrite=True))
    assert (tmp_path / "train.bin.replaced-1").read_text() == "put here by me" and (tmp_path / "notes.txt").exists()
    assert "kept as train.bin.replaced-1" in capsys.readouterr().err
    verify_token_files(tmp_path, read_manifest(tmp_path), full=True)


def test_a_manifest_of_ours_that_was_damaged_is_replaced_by_overwrite(tmp_path, shards):
    prepare(config(tmp_path, shards))
    whole = read_bins(tmp_path)
    (tmp_path / "manifest.json").write_bytes((tmp_path / "manifest.json").read_bytes()[:300])
    with pytest.raises(DataError, match="overwrite=true"):
        prepare(config(tmp_path, shards))
    prepare(config(tmp_path, shards, overwrite=True))
    assert read_bins(tmp_path) == whole


def test_a_publication_that_was_killed_is_forgotten_by_other_settings(tmp_path, shards, monkeypatch):
    def fail(path):
        raise OSError(5, "Input/output error")

    monkeypatch.setattr(publication, "sync_path", fail)
    with pytest.raises(DataError):
        prepare(config(tmp_path, shards))
    monkeypatch.undo()
    assert (tmp_path / "train.bin").exists() and not (tmp_path / "manifest.json").exists()
    prepare(config(tmp_path, shards, split_seed=3))
    assert read_manifest(tmp_path).split["seed"] == 3
    verify_token_files(tmp_path, read_manifest(tmp_path), full=True)


def test_a_prepared_folder_that_may_only_be_read_is_recognised(tmp_path, shards, capsys, monkeypatch):
    prepare(config(tmp_path, shards))

    def read_only(*_, **__):
        raise PermissionError(13, "Permission denied", str(tmp_path))

    monkeypatch.setattr(module.Path, "mkdir", read_only)
    capsys.readouterr()
    prepare(config(tmp_path, shards))
    assert capsys.readouterr().out == f"already prepared: {tmp_path}\n"
    with pytest.raises(DataError, match="Permission denied"):
        prepare(config(tmp_path, shards, split_seed=3, overwrite=True))


def nanogpt_folder(folder, tokenizer="gpt2", dtype="<u2"):
    """Write bins as nanoGPT's recipe does, without anything of ours, and return what they hold."""
    folder.mkdir(parents=True)
    encoding = make_tokenizer(tokenizer)
    for name, texts in (("train", TEXTS[:25]), ("val", TEXTS[25:])):
        ids = [token for text in texts for token in (*encoding.encode_ordinary(text), encoding.eot_token)]
        np.array(ids, dtype=dtype).tofile(folder / f"{name}.bin")
    return everything(folder)


def adopted(out, **settings):
    return local_config(out, None, **{"adopt": True, **settings})


def test_nanogpts_bins_are_adopted_and_untouched(tmp_path, capsys):
    before = nanogpt_folder(tmp_path / "data")
    prepare(adopted(tmp_path / "data", name="mine"))
    after = everything(tmp_path / "data")
    assert set(after) == {*before, "manifest.json", "tokenizer.json", "token_bytes.bin"} and before.items() <= after.items()
    manifest = read_manifest(tmp_path / "data")
    verify_token_files(tmp_path / "data", manifest, full=True)
    assert [info.documents for info in manifest.splits.values()] == [25, 5] and manifest.name == "mine"
    assert [info.bytes for info in manifest.splits.values()] == [len("".join(part).encode()) for part in (TEXTS[:25], TEXTS[25:])]
    assert "adopted" in capsys.readouterr().out
    prepare(adopted(tmp_path / "data"))
    assert "already has a manifest" in capsys.readouterr().out and everything(tmp_path / "data") == after


@pytest.mark.parametrize("overwrite", [False, True])
def test_adopted_bins_are_never_replaced(tmp_path, shards, overwrite):
    nanogpt_folder(tmp_path / "data")
    prepare(adopted(tmp_path / "data"))
    before = everything(tmp_path / "data")
    with pytest.raises(DataError, match="adopted"):
        prepare(local_config(tmp_path / "data", shards, overwrite=overwrite))
    assert everything(tmp_path / "data") == before


def test_the_digest_is_that_of_the_same_bins_prepared_here(tmp_path, shards):
    prepare(local_config(tmp_path / "ours", shards, num_proc=1))
    (tmp_path / "theirs").mkdir()
    for name, content in read_bins(tmp_path / "ours").items():
        (tmp_path / "theirs" / f"{name}.bin").write_bytes(content)
    prepare(adopted(tmp_path / "theirs"))
    ours, theirs = read_manifest(tmp_path / "ours"), read_manifest(tmp_path / "theirs")
    assert ours.data_digest == theirs.data_digest and ours.splits == theirs.splits


@pytest.mark.parametrize(
    ("damage", "complaint"),
    [
        (lambda folder: (folder / "val.bin").unlink(), "val.bin: missing"),
        (lambda folder: (folder / "val.bin").write_bytes(b""), "val.bin: 0 bytes"),
        (lambda folder: (folder / "val.bin").write_bytes(b"abc"), "val.bin: 3 bytes are no whole number"),
        (lambda folder: np.array([5, 60000], "<u2").tofile(folder / "train.bin"), "token id 60000"),
        (lambda folder: np.array([50256, 70, 9], "<u4").tofile(folder / "train.bin"), "four bytes each"),
        (lambda folder: np.array([5, 60, 9], "<u2").tofile(folder / "train.bin"), "characters or bytes"),
        (lambda folder: (folder / "meta.pkl").write_bytes(b"x"), "meta.pkl"),
        (lambda folder: (folder / "tokenizer.json").write_text("{}"), "tokenizer.json: was not written"),
        (lambda folder: (folder / "manifest.json").write_text("{}"), "manifest.json: was not written"),
    ],
)
def test_what_cannot_be_adopted_is_said_and_nothing_is_written(tmp_path, damage, complaint):
    nanogpt_folder(tmp_path / "data")
    damage(tmp_path / "data")
    before = everything(tmp_path / "data")
    with pytest.raises(DataError, match=complaint):
        prepare(adopted(tmp_path / "data"))
    assert everything(tmp_path / "data") == before


def test_counts_that_a_corpus_publishes_have_to_agree(tmp_path):
    nanogpt_folder(tmp_path / "data")
    data = DataConfig("openwebtext", str(tmp_path / "data"), "huggingface", "x", expected=ExpectedCounts(documents=8013769))
    with pytest.raises(DataError, match="30 documents, but openwebtext has 8,013,769; data=local"):
        adopt(tmp_path / "data", data, make_tokenizer("gpt2"))
    assert not os.path.exists(tmp_path / "data" / "manifest.json")


def test_bins_without_an_end_of_text_are_one_document(tmp_path):
    np.array([464, 262, 290, 1000], "<u2").tofile(tmp_path / "train.bin")
    np.array([464, 262, EOT, 1000], "<u2").tofile(tmp_path / "val.bin")
    prepare(adopted(tmp_path))
    raw = json.loads((tmp_path / "manifest.json").read_bytes())
    assert [raw["splits"][name]["documents"] for name in ("train", "val")] == [1, 2]
