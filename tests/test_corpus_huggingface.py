"""A tokenizer.json of anyone's: the same bins as its own library gives, every token's exact bytes, or a clear refusal."""

import json
import os
import signal
from pathlib import Path

import numpy as np
import pytest
from corpus_support import local_config, make_texts, read_bins, run_command, write_shards
from foreign_tokenizers import byte_level_json, large_json, sentencepiece_json, write
from tokenizers import AddedToken, Tokenizer, decoders, models, pre_tokenizers
from training import SMALL, error_line, metrics, run

from corpus.documents import split_order
from corpus.huggingface_tokenizer import HuggingFaceTokenizer, read_tokenizer_file
from corpus.prepare import prepare
from corpus.settings import SettingError
from corpus.token_file import DataError, read_manifest, token_byte_lengths, verify_token_files
from corpus.tokenizer import load_tokenizer, make_tokenizer, packaged_files, tokenizer_json

TEXTS = [*make_texts(60), " leading", "two  blanks\n\n\tand </s> and <s> and <0x0A>\r\n", "\x00\x1f", "naïve Ω 🙂" * 20]
KINDS = {"sentencepiece": sentencepiece_json, "byte_level": byte_level_json}


@pytest.fixture(scope="module", params=KINDS)
def kind(request):
    return request.param


@pytest.fixture(scope="module")
def raws():
    return {kind: make() for kind, make in KINDS.items()}


@pytest.fixture(scope="module")
def raw(raws, kind):
    return raws[kind]


@pytest.fixture(scope="module")
def shards(tmp_path_factory):
    return write_shards(tmp_path_factory.mktemp("shards"), TEXTS)


def foreign_config(out, files, tokenizer_file, **settings):
    return local_config(out, files, **{"tokenizer": "own", "tokenizer_files": tokenizer_file, "vocab_size": 704, **settings})


def reference_bins(raw: dict, eos: int) -> dict[str, bytes]:
    """Return the bins by the library alone, with a document's special tokens spelled out of its reach."""
    library = Tokenizer.from_str(json.dumps(raw))
    library.encode_special_tokens = True
    ids = [[*library.encode(text, add_special_tokens=False).ids, eos] for text in TEXTS]
    orders = split_order(len(TEXTS), 0.1, 2357)
    return {name: np.concatenate([ids[index] for index in order]).astype("<u2").tobytes() for name, order in orders.items()}


def test_bins_are_the_librarys_with_any_number_of_workers(tmp_path, raw, kind, shards, monkeypatch):
    monkeypatch.setattr("corpus.encoding.CHUNK_BYTES", 5000)
    file = write(tmp_path / "tokenizer.json", raw)
    for workers in (1, 3):
        prepare(foreign_config(tmp_path / str(workers), shards, file, num_proc=workers))
    eos = 2 if kind == "sentencepiece" else 0
    assert read_bins(tmp_path / "1") == read_bins(tmp_path / "3") == reference_bins(raw, eos)
    manifest = read_manifest(tmp_path / "1")
    verify_token_files(tmp_path / "1", manifest, full=True)
    assert (manifest.tokenizer.name, manifest.tokenizer.eot_id, manifest.dtype) == ("own", eos, "uint16")
    assert manifest.tokenizer.vocab_size == 700 and manifest.source["altered_documents"] == 0


def test_token_bytes_spell_every_document(tmp_path, raw, kind, shards):
    prepare(foreign_config(tmp_path / "data", shards, write(tmp_path / "tokenizer.json", raw)))
    manifest = read_manifest(tmp_path / "data")
    tokenizer = load_tokenizer(tmp_path / "data" / "tokenizer.json")
    lengths = token_byte_lengths(tmp_path / "data", manifest)
    for name, order in split_order(len(TEXTS), 0.1, 2357).items():
        tokens = np.fromfile(tmp_path / "data" / f"{name}.bin", dtype="<u2")
        ends = np.flatnonzero(tokens == manifest.tokenizer.eot_id)
        documents = [part[:-1] for part in np.split(tokens, ends[:-1] + 1)]
        spelled = [b"".join(map(tokenizer.decode_single_token_bytes, part.tolist())).decode() for part in documents]
        # SentencePiece's normalizer puts one space before a document, so that its bytes are counted one too many.
        front = " " if kind == "sentencepiece" else ""
        assert spelled == [front + TEXTS[index] if TEXTS[index] else "" for index in order]
        surplus = sum(bool(TEXTS[index]) for index in order) if front else 0
        assert lengths[tokens].sum(dtype=np.int64) == manifest.splits[name].bytes + surplus


def test_gpt2_as_a_tokenizer_json_gives_tiktokens_bins(tmp_path, shards):
    files = packaged_files()
    merges = [tuple(line.split(" ")) for line in files["vocab.bpe"].read_text(encoding="utf-8").split("\n")[1:-1]]
    library = Tokenizer(models.BPE(json.loads(files["encoder.json"].read_bytes()), merges))
    library.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    library.decoder = decoders.ByteLevel()
    library.add_special_tokens([AddedToken("<|endoftext|>", special=True)])
    library.save(str(tmp_path / "tokenizer.json"))
    prepare(foreign_config(tmp_path / "theirs", shards, str(tmp_path), vocab_size=50304))  # the folder will do
    prepare(local_config(tmp_path / "ours", shards))
    assert read_bins(tmp_path / "theirs") == read_bins(tmp_path / "ours")
    lengths = [(tmp_path / folder / "token_bytes.bin").read_bytes() for folder in ("theirs", "ours")]
    assert lengths[0] == lengths[1]


def test_special_tokens_in_a_text_are_text(tmp_path, raw, kind):
    tokenizer = read_tokenizer_file(tmp_path / write(tmp_path / "t.json", raw), "own", None)
    eos = tokenizer.eos_token
    ids = tokenizer.encode_ordinary(f"a{eos}b <s>")
    assert tokenizer.eot_token not in ids and tokenizer.spells(ids, f"a{eos}b <s>")
    prompt = tokenizer.encode(f"a{eos}b", allowed_special="all")
    assert prompt.count(tokenizer.eot_token) == 1
    assert tokenizer.encode(eos, allowed_special="all") == [tokenizer.eot_token]
    assert tokenizer.spells(tokenizer.encode_ordinary("half a pair \ud83d"), "half a pair \ufffd")
    stored = tmp_path / "stored.json"
    stored.write_bytes(tokenizer.stored_json())
    assert load_tokenizer(stored).stored_json() == stored.read_bytes()


def test_what_would_change_documents_is_left_out(tmp_path, raw):
    altered = {**raw, "model": {**raw["model"], "dropout": 0.9}}
    altered["truncation"] = {"direction": "Right", "max_length": 3, "strategy": "LongestFirst", "stride": 0}
    altered["padding"] = {
        "strategy": {"Fixed": 50},
        "direction": "Right",
        "pad_to_multiple_of": None,
        "pad_id": 0,
        "pad_type_id": 0,
        "pad_token": "<pad>",
    }
    text = "def the_decoder(self): pass"
    assert HuggingFaceTokenizer("a", json.dumps(altered)).encode_ordinary(text) == (
        HuggingFaceTokenizer("b", json.dumps(raw)).encode_ordinary(text)
    )


REFUSED = [
    ({"normalizer": {"type": "Lowercase"}}, "normalizer 'Lowercase'"),
    ({"normalizer": {"type": "Replace", "pattern": {"String": "a"}, "content": "aa"}}, "normalizer 'Replace'"),
    ({"model": {"type": "WordLevel", "vocab": {"a": 0}, "unk_token": "a"}}, "'WordLevel', not BPE"),
    ({"model": None}, "no model"),
    ({"decoder": None, "pre_tokenizer": None}, "neither byte-level nor"),
    ({"decoder": {"type": "WordPiece", "prefix": "##", "cleanup": True}}, "neither byte-level nor"),
    ({"pre_tokenizer": {"type": "Whitespace"}}, "does not keep a text as it is"),
    ({"normalizer": {"type": "Sequence", "normalizers": 3}}, "cannot be used as a tokenizer"),
]


@pytest.mark.parametrize(("change", "match"), REFUSED, ids=lambda value: str(value)[:40])
def test_tokenizers_that_would_lose_text_are_refused(tmp_path, raws, change, match):
    path = tmp_path / "tokenizer.json"
    write(path, {**raws["byte_level"], **change})
    with pytest.raises(DataError, match=match) as caught:
        read_tokenizer_file(path, "own", None)
    assert str(path) in str(caught.value) and "\n" not in str(caught.value)


@pytest.mark.parametrize("where", ["added", "vocabulary", "both"])
def test_a_tokenizer_with_gaps_in_its_ids_is_read(tmp_path, raws, where):
    """As OLMo's and others': the library alone would renumber what comes after a gap."""
    text = "def the_decoder(self): pass\n"
    whole = HuggingFaceTokenizer("own", json.dumps(raws["byte_level"]))
    raw = json.loads(json.dumps(raws["byte_level"]))
    move = {}
    if where != "added":
        vocab = raw["model"]["vocab"]
        move = {id: id + 37 for id in vocab.values() if id > 500}
        raw["model"]["vocab"] = {token: move.get(id, id) for token, id in vocab.items()}
    if where != "vocabulary":
        raw["added_tokens"] += [
            {**raw["added_tokens"][0], "id": id, "content": content} for id, content in ((5000, "<y>"), (4000, "</s>"))
        ]
    tokenizer = read_tokenizer_file(Path(write(tmp_path / "t.json", raw)), "own", None if where == "vocabulary" else "</s>")
    assert tokenizer.n_vocab == (737 if where == "vocabulary" else 5001)
    assert tokenizer.eot_token == (0 if where == "vocabulary" else 4000)
    assert tokenizer.encode_ordinary(text) == [move.get(id, id) for id in whole.encode_ordinary(text)]
    assert tokenizer.spells(tokenizer.encode_ordinary(text), text)


@pytest.mark.parametrize("ids", [{"far": 1 << 40}, {"minus": -1}, {"twice": 5}, {"half": 0.5}, {"true": True}])
def test_ids_that_cannot_be_are_refused(tmp_path, raws, ids):
    raw = json.loads(json.dumps(raws["byte_level"]))
    raw["model"]["vocab"] |= ids
    with pytest.raises(DataError, match="cannot be used as a tokenizer"):
        read_tokenizer_file(Path(write(tmp_path / "t.json", raw)), "own", None)


@pytest.mark.parametrize("kind", ["byte_level", "sentencepiece"])
def test_without_a_decoder_and_with_a_byte_order_mark(tmp_path, raws, kind):
    whole = HuggingFaceTokenizer("own", json.dumps(raws[kind]))
    path = tmp_path / "t.json"
    path.write_text(json.dumps({**raws[kind], "decoder": None}), encoding="utf-8-sig")
    tokenizer = read_tokenizer_file(path, "own", None)
    assert tokenizer.token_bytes == whole.token_bytes


@pytest.mark.parametrize("name", ["bytes", "own"])
def test_the_tokenizer_of_a_run_is_read_under_its_own_name(tmp_path, raws, name):
    foreign = write(tmp_path / "foreign.json", raws["sentencepiece"]) if name == "own" else None
    stored = tmp_path / "tokenizer.json"
    stored.write_bytes(tokenizer_json(make_tokenizer(name, foreign)))
    assert tokenizer_json(make_tokenizer(name, str(stored))) == stored.read_bytes()
    assert tokenizer_json(make_tokenizer(name, str(tmp_path))) == stored.read_bytes()
    with pytest.raises(SettingError, match=f"data.tokenizer={name} reads it"):
        make_tokenizer("mine", str(stored))


def test_a_tokenizer_without_some_characters_is_refused(tmp_path, raws):
    path = tmp_path / "tokenizer.json"
    raw = json.loads(json.dumps(raws["sentencepiece"]))
    raw["model"]["byte_fallback"] = False
    write(path, raw)
    with pytest.raises(DataError, match="does not keep a text"):
        read_tokenizer_file(path, "own", None)
    for content in ("", "[]", "null", "{", '{"model": 3}', "[" * 100_000, "\ud83d".encode("utf-8", "surrogatepass")):
        path.write_bytes(content if isinstance(content, bytes) else content.encode())
        with pytest.raises(DataError, match="cannot be used"):
            read_tokenizer_file(path, "own", None)


def with_specials(raw: dict, *names: str) -> dict:
    library = Tokenizer.from_str(json.dumps(raw))
    library.add_special_tokens(list(names))
    return json.loads(library.to_str())


def test_which_token_ends_a_document(tmp_path, raws):
    file = write(tmp_path / "two.json", with_specials(raws["byte_level"], "</s>"))
    with pytest.raises(SettingError, match=r"tokenizer\.eos_token=TOKEN.*</s>, <\|endoftext\|>"):
        make_tokenizer("own", file)
    assert make_tokenizer("own", file, "</s>").eot_token == 700
    with pytest.raises(SettingError, match="eos_token=e: not a special token; there are: </s>"):
        make_tokenizer("own", file, "e")
    only = {**raws["byte_level"], "added_tokens": [{**raws["byte_level"]["added_tokens"][0], "content": "<end>"}]}
    only["model"] = {
        **only["model"],
        "vocab": {"<end>" if k == "<|endoftext|>" else k: v for k, v in only["model"]["vocab"].items()},
    }
    assert make_tokenizer("own", write(tmp_path / "one.json", only)).eos_token == "<end>"


def test_settings_say_what_would_work(tmp_path, raws, shards):
    file = write(tmp_path / "tokenizer.json", raws["sentencepiece"])
    done = run("prepare_owt.py", "data=openwebtext_llama2", f"data.dir={tmp_path / 'out'}", code=2)
    assert "data.tokenizer=llama2" in error_line(done) and "tokenizer.files=PATH" in error_line(done)
    cases = [
        ({"tokenizer": "gpt2"}, "data=openwebtext_llama2"),
        ({"vocab_size": 32000}, "own has 700 tokens; data.vocab_size=704 suits it"),
        ({"vocab_size": 699}, "data.vocab_size=704 suits it"),
        ({"tokenizer": "../x"}, "data.tokenizer=../x"),
    ]
    for settings, match in cases:
        with pytest.raises(SettingError, match=match):
            prepare(foreign_config(tmp_path / "out", shards, file, **settings))
    with pytest.raises(DataError, match="no such file"):
        make_tokenizer("own", str(tmp_path / "missing.json"))
    assert not (tmp_path / "out").exists()


def test_documents_that_normalization_alters_are_counted_and_told(tmp_path, raws, capsys):
    raw = {**raws["byte_level"], "normalizer": {"type": "NFC"}}
    files = write_shards(tmp_path / "text", ["e\u0301 accent", *["plain"] * 10, "a\u0308"])
    prepare(foreign_config(tmp_path / "data", files, write(tmp_path / "t.json", raw)))
    assert "warning: in 2 documents the tokens do not spell" in capsys.readouterr().err
    assert read_manifest(tmp_path / "data").source["altered_documents"] == 2


def test_killed_midway_and_run_again_is_byte_identical(tmp_path, raws, shards):
    raw = raws["sentencepiece"]
    file = write(tmp_path / "tokenizer.json", raw)
    overrides = [
        "data=local",
        f"data.files='{shards}'",
        f"data.dir={tmp_path / 'data'}",
        "data.val_fraction=0.1",
        "data.tokenizer=own",
        "data.vocab_size=704",
        f"tokenizer.files={file}",
        "num_proc=2",
    ]
    fault = """
import corpus.encoding, corpus.splits, corpus.prepare, corpus.bin_writer, os, signal
corpus.encoding.CHUNK_BYTES, corpus.splits.SECONDS_BETWEEN_RECORDS = 4000, 0
def append(self, chunk, original=corpus.bin_writer.BinWriter.append, count=[0]):
    original(self, chunk)
    count[0] += 1
    if count[0] > 4: os.kill(os.getpid(), signal.SIGKILL)
corpus.bin_writer.BinWriter.append = append
"""
    assert run_command(*overrides, before=fault).returncode == -signal.SIGKILL
    again = run_command(*overrides)
    assert again.returncode == 0, again.stderr
    assert read_bins(tmp_path / "data") == reference_bins(raw, 2)
    os.unlink(file)
    with pytest.raises(DataError, match="no such file"):
        prepare(foreign_config(tmp_path / "data", shards, file))


@pytest.mark.slow
def test_more_than_65536_tokens_from_text_to_sample(tmp_path, shards):
    """uint32 bins all the way: prepare, train, continue, sample, without the tokenizer.json at hand."""
    file = write(tmp_path / "tokenizer.json", large_json())
    data = ["data=local", f"data.dir={tmp_path / 'data'}", "data.tokenizer=large", "data.vocab_size=65856"]
    run("prepare_owt.py", *data, f"data.files='{shards}'", "data.val_fraction=0.1", f"tokenizer.files={file}")
    os.unlink(file)
    manifest = read_manifest(tmp_path / "data")
    assert manifest.dtype == "uint32" and manifest.splits["train"].max_id == manifest.tokenizer.eot_id == 65792
    assert os.path.getsize(tmp_path / "data" / "train.bin") == 4 * manifest.splits["train"].tokens
    small = [part for part in SMALL if part != "data=docs"]
    overrides = [
        *small,
        *data,
        "model=gpt",
        "max_steps=2",
        "eval_interval=1",
        "eval_windows=2",
        "checkpoint_interval=1",
        f"out_dir={tmp_path / 'runs'}",
        "run_name=large",
    ]
    run("train.py", *overrides)
    folder = tmp_path / "runs" / "large"
    losses = metrics(folder, "val/loss")
    assert set(losses) >= {1, 2} and abs(losses[1] - np.log(65856)) < 1.5
    assert (folder / "tokenizer.json").read_bytes() == (tmp_path / "data" / "tokenizer.json").read_bytes()
    done = run("sample.py", f"run={folder}", "prompt=The naïve 🙂", "max_new_tokens=5", "device=cpu")
    assert done.stdout.startswith("The naïve 🙂")
