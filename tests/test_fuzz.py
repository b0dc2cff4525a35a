"""Every file that is read back, in hostile hands: one clear error or a right answer; never a hang, a crash, code, or a stray write.

What is trusted is the command line. A data folder or a run folder may be damaged, edited or somebody else's.
"""

import hashlib
import json
import os
import shutil
import subprocess
import sys

import numpy as np
import pytest
import torch
import yaml
from foreign_tokenizers import byte_level_json, sentencepiece_json
from hostile import NUMBERS, bounded, edits, hostile_json, mutations, snapshot, watched
from hypothesis import given
from hypothesis import strategies as st
from safetensors.torch import load_file, save_file
from training import ROOT, SMALL, environment, error_line, run

from cli.composition import ConfigError
from corpus.documents import DocumentIndex, DocumentReader, DocumentWriter
from corpus.huggingface_tokenizer import HuggingFaceTokenizer, read_tokenizer_file
from corpus.manifest import read_manifest
from corpus.progress import read_progress
from corpus.reading import Place, resume
from corpus.token_file import DataError, open_token_file, token_byte_lengths, verify_token_files
from corpus.tokenizer import load_tokenizer, make_tokenizer, tokenizer_json
from engine.checkpoint import CheckpointError, load_model, load_optimizer, load_trainer_state, verify_checkpoint
from engine.config_file import load_config
from engine.models import build_model
from engine.optimization import build_optimizer
from engine.run_data import open_data
from engine.run_folder import open_run_folder
from engine.trained import load_trained_model
from lab.runs import RunFolderError, read_runs
from runfolder.lock import RunLock
from runfolder.metrics import rewind_metrics
from runfolder.status import read_json

TOKENIZERS = {
    "bytes": lambda: tokenizer_json(make_tokenizer("bytes")),
    "sentencepiece": lambda: HuggingFaceTokenizer("own", json.dumps(sentencepiece_json(400))).stored_json(),
    "byte_level": lambda: HuggingFaceTokenizer("own", json.dumps(byte_level_json(300))).stored_json(),
}


@pytest.fixture(scope="module")
def trained(docs, tmp_path_factory):
    """A finished run of two steps."""
    folder = tmp_path_factory.mktemp("trained")
    steps = ["max_steps=2", "eval_interval=1", "checkpoint_interval=1", "run_name=run"]
    run("train.py", *SMALL, f"data.dir={docs}", f"out_dir={folder}", "model=ngpt", *steps)
    return folder / "run"


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    """A place to write hostile files to, with a file beside it that nothing may touch."""
    place = tmp_path_factory.mktemp("fuzz")
    (place / "victim").write_text("untouched")
    (place / "inside").mkdir()
    yield place / "inside"
    assert snapshot(place).keys() - {path for path in snapshot(place) if path.startswith("inside")} == {"victim"}
    assert (place / "victim").read_text() == "untouched"


def fresh(folder, source):
    shutil.rmtree(folder)
    shutil.copytree(source, folder)


def use_data_folder(folder):
    manifest = read_manifest(folder)
    lengths = token_byte_lengths(folder, manifest)
    assert len(lengths) == manifest.tokenizer.vocab_size
    for split in ("train", "val"):
        tokens = open_token_file(folder, split, manifest)
        tokens.read_window(0, min(len(tokens), 10))
    verify_token_files(folder, manifest)
    verify_token_files(folder, manifest, full=True)


@bounded
@given(st.data())
def test_manifest(folder, docs, data):
    fresh(folder, docs)
    valid = json.loads((docs / "manifest.json").read_bytes())
    with watched():
        (folder / "manifest.json").write_bytes(data.draw(hostile_json(valid)))
        use_data_folder(folder)


@bounded
@given(st.data())
def test_bins_and_byte_table(folder, docs, data):
    name = data.draw(st.sampled_from(("val.bin", "token_bytes.bin", "tokenizer.json")))
    valid = (docs / name).read_bytes()
    content = data.draw(mutations(valid))
    fresh(folder, docs)
    (folder / name).write_bytes(content)
    manifest = read_manifest(folder)
    if content == valid:
        return
    with pytest.raises(DataError, match=name):
        verify_token_files(folder, manifest, full=True)
    with watched():
        use_data_folder(folder)


@pytest.mark.parametrize("kind", TOKENIZERS)
def test_stored_tokenizer(folder, kind):
    valid = TOKENIZERS[kind]()
    parsed = json.loads(valid)

    @bounded
    @given(hostile_json(parsed))
    def fuzz(content):
        (folder / "tokenizer.json").write_bytes(content)
        with watched():
            use_tokenizer(load_tokenizer(folder / "tokenizer.json"))

    fuzz()


def use_tokenizer(tokenizer):
    for prompt in ("Hello  world\n🙂</s><|endoftext|>\ud83d", ""):
        ids = tokenizer.encode(prompt, allowed_special="all")
        assert all(0 <= id < tokenizer.n_vocab for id in ids)
        b"".join(tokenizer.decode_single_token_bytes(id) for id in ids)


@pytest.mark.parametrize("kind", ["sentencepiece", "byte_level"])
def test_somebodys_tokenizer_json(folder, kind):
    valid = json.loads(json.loads(TOKENIZERS[kind]())["tokenizer"])

    @bounded
    @given(
        hostile_json(valid)
        | edits({**valid, "model": {**valid["model"], "vocab": {}, "merges": []}}).map(lambda raw: json.dumps(raw).encode())
    )
    def fuzz(content):
        (folder / "own.json").write_bytes(content)
        with watched():
            use_tokenizer(read_tokenizer_file(folder / "own.json", "own", None))

    fuzz()


def test_a_tokenizer_that_would_blow_a_prompt_up_is_refused(folder):
    """A hundred normalizers, each of which doubles: a word would become 2^100 letters."""
    raw = byte_level_json(300)
    double = {"type": "Replace", "pattern": {"String": "e"}, "content": "ee"}
    for normalizer in (
        {"type": "Sequence", "normalizers": [double] * 100},
        {"type": "Prepend", "prepend": "x" * 10**6},
    ):
        (folder / "own.json").write_text(json.dumps({**raw, "normalizer": normalizer}))
        with watched(), pytest.raises(DataError, match="does not keep every text"):
            read_tokenizer_file(folder / "own.json", "own", None)
    nested = None
    for _ in range(3000):
        nested = {"type": "Sequence", "normalizers": [nested] if nested else []}
    text = '{"type": "Sequence", "normalizers": [' * 3000 + "]}" * 3000
    (folder / "own.json").write_text(json.dumps(raw)[:-1] + f', "normalizer": {text}}}')
    with watched(), pytest.raises(DataError):
        read_tokenizer_file(folder / "own.json", "own", None)


@pytest.fixture(scope="module")
def scratch(tmp_path_factory):
    """The index of three documents, and a copy of each of its files to begin from."""
    scratch = tmp_path_factory.mktemp("scratch")
    writer = DocumentWriter(scratch, None)
    writer.add_many(b"one two three", [4, 4, 5])
    writer.finish().save(scratch, "f")
    for name in ("documents.json", "documents.records"):
        shutil.copy(scratch / name, scratch / f"{name}.valid")
    assert len(DocumentIndex.load(scratch, "f")) == 3
    return scratch


@bounded
@given(st.data())
def test_what_a_killed_preparation_left(folder, scratch, data):
    """progress.json, documents.json and documents.records."""
    splits = {"documents": 3, "tokens": 9, "text_bytes": 20, "max_id": 5, "repaired": 0, "altered": 0}
    recorded = {"fingerprint": "f", "splits": {"train": splits, "val": splits}}
    (folder / "progress").write_bytes(data.draw(hostile_json(recorded)))
    with watched():
        assert all(done.tokens >= 0 for done in read_progress(folder / "progress", "f").values())
    name = data.draw(st.sampled_from(("documents.json", "documents.records")))
    path, valid = scratch / name, (scratch / f"{name}.valid").read_bytes()
    for other in ("documents.json", "documents.records"):
        shutil.copy(scratch / f"{other}.valid", scratch / other)
    path.write_bytes(data.draw(hostile_json(json.loads(valid)) if name == "documents.json" else mutations(valid)))
    with watched():
        documents = DocumentIndex.load(scratch, "f")
        for record in [] if documents is None else documents.records.tolist():
            DocumentReader(documents.paths).read(*record)
    source = scratch / "documents.json.valid"
    place = Place([str(source)], ("text", None))
    counts = {"documents": 3, "text_bytes": 13, "repaired": 0, "nulls": 0, "bad_rows": 1, "damaged_files": 0}
    shutil.copytree(scratch, folder / "reading", dirs_exist_ok=True)
    content = data.draw(hostile_json({"place": place.describe(), "counts": counts}))
    (folder / "reading" / "reading.json").write_bytes(content)
    with watched():
        resume(place, folder / "reading", None, "skip")


def reseal(checkpoint, **changes):
    """Write a manifest that vouches for whatever the files now hold."""
    files = {}
    for name in ("model.safetensors", "optimizer.safetensors", "trainer.json"):
        content = (checkpoint / name).read_bytes()
        files[name] = {"bytes": len(content), "sha256": hashlib.sha256(content).hexdigest()}
    (checkpoint / "manifest.json").write_text(json.dumps({"format": 1, "files": files}))


@pytest.fixture(scope="module")
def checkpoint(trained):
    return trained / "checkpoints" / "step-00000002"


def use_checkpoint(path, config):
    verify_checkpoint(path)
    load_trainer_state(path)
    model = build_model(config.model)
    load_model(path, model)
    optimizer = build_optimizer(model, config)
    load_optimizer(path, model, optimizer)
    for parameter in model.parameters():
        parameter.grad = torch.zeros_like(parameter)
    optimizer.step()


@bounded
@given(st.data())
def test_checkpoint_manifest_and_state(folder, trained, checkpoint, data):
    name = data.draw(st.sampled_from(("manifest.json", "trainer.json")))
    fresh(folder, checkpoint)
    place = folder / "step-00000002"
    shutil.copytree(checkpoint, place)
    valid = json.loads((checkpoint / name).read_bytes())
    (place / name).write_bytes(data.draw(hostile_json(valid)))
    if name == "trainer.json":
        reseal(place)
    with watched():
        use_checkpoint(place, load_config(trained / "config.yaml"))


@bounded
@given(st.data())
def test_checkpoint_tensors(folder, trained, checkpoint, data):
    """Mutated safetensors under a manifest that vouches for them, so that the reader itself must cope."""
    name = data.draw(st.sampled_from(("model.safetensors", "optimizer.safetensors")))
    shutil.rmtree(folder)
    shutil.copytree(checkpoint, folder / "step-00000002")
    path = folder / "step-00000002" / name
    valid = path.read_bytes()
    length = int.from_bytes(valid[:8], "little")
    header, body = json.loads(valid[8 : 8 + length]), valid[8 + length :]

    def pack(header) -> bytes:
        text = json.dumps(header).encode()
        return len(text).to_bytes(8, "little") + text + body

    path.write_bytes(data.draw(mutations(valid) | edits(header).map(pack)))
    reseal(path.parent)
    with watched():
        use_checkpoint(path.parent, load_config(trained / "config.yaml"))


def test_safetensors_that_claim_too_much(folder, trained, checkpoint):
    config = load_config(trained / "config.yaml")
    for header in (
        {"x": {"dtype": "F32", "shape": [2**40, 2**20], "data_offsets": [0, 4]}},
        {"x": {"dtype": "F32", "shape": [2**62], "data_offsets": [0, 2**64 - 4]}},
        {"x": {"dtype": "F32", "shape": [0] * 100, "data_offsets": [0, 0]}},
    ):
        shutil.rmtree(folder)
        shutil.copytree(checkpoint, folder / "step-00000002")
        text = json.dumps(header).encode()
        for size in (len(text), 2**63):
            (folder / "step-00000002" / "model.safetensors").write_bytes(size.to_bytes(8, "little") + text)
            reseal(folder / "step-00000002")
            with watched():
                use_checkpoint(folder / "step-00000002", config)
                pytest.fail("loaded")


def test_optimizer_state_of_another_parameter_is_refused(folder, trained, checkpoint):
    """Two tensors of different shapes under each other's names: sound as a file, and no state of this model."""
    shutil.rmtree(folder)
    shutil.copytree(checkpoint, folder / "step-00000002")
    path = folder / "step-00000002" / "optimizer.safetensors"
    tensors = load_file(path)
    first, second = sorted((name for name in tensors if name.startswith("exp_avg/")), key=lambda n: tensors[n].numel())[
        :: len(tensors) // 3 - 1
    ]
    assert tensors[first].shape != tensors[second].shape
    tensors[first], tensors[second] = tensors[second], tensors[first]
    save_file(tensors, path)
    reseal(path.parent)
    with pytest.raises(CheckpointError, match=r"optimizer\.safetensors"):
        use_checkpoint(path.parent, load_config(trained / "config.yaml"))


@bounded
@given(st.data())
def test_run_configuration(folder, trained, data):
    valid = yaml.safe_load((trained / "config.yaml").read_text())
    text = (trained / "config.yaml").read_bytes()
    content = data.draw(edits(valid).map(dump_yaml) | mutations(text))
    (folder / "config.yaml").write_bytes(content)
    with watched():
        load_config(folder / "config.yaml")


def dump_yaml(value) -> bytes:
    return yaml.safe_dump(value, allow_unicode=False).encode("utf-8", "replace")


BOMB = "a: &a [x, x, x, x, x, x, x, x, x, x]\n" + "".join(
    f"{name}: &{name} [{', '.join([f'*{before}'] * 10)}]\n" for before, name in zip("abcdefghijk", "bcdefghijkl", strict=True)
)
HOSTILE_YAML = {
    "object": "!!python/object/apply:os.system ['touch executed']",
    "name": "model: !!python/name:os.system",
    "module": "x: !!python/module:antigravity",
    "bomb": BOMB,
    "deep": "[" * 100_000,
    "deep list": "- " * 5_000,
    "deep key": "? " * 5_000,
    "deep map": "".join(f"{' ' * n}a:\n" for n in range(2000)),
    "date": "seed: 2001-99-99",
    "long number": "seed: " + "9" * 5000,
    "self": "&a [*a]",
    "self map": "&a {model: *a}",
    "merge": "a: &a {x: 1}\nb: {<<: *a, <<: [*a, *a]}",
    "key": "{[1]: 2, {a: b}: c}",
    "interpolation": "out_dir: ${oc.env:HOME}",
    "empty": "",
    "binary": "data: !!binary gICAgA==",
    "set": "!!set {a, b}",
    "bytes": b"\xff\xfe\x00",
    "null byte": "a\x00b",
}


@pytest.mark.parametrize("name", HOSTILE_YAML)
def test_hostile_yaml(folder, trained, name, monkeypatch):
    monkeypatch.chdir(folder)
    content = HOSTILE_YAML[name]
    content = content if isinstance(content, bytes) else content.encode()
    valid = (trained / "config.yaml").read_bytes()
    for text in (
        content,
        valid + b"\n" + content,
        valid.replace(b"learning_rate: 0.01", b"learning_rate: *l") if name == "bomb" else b"",
    ):
        shutil.rmtree(folder / "run", ignore_errors=True)
        shutil.copytree(trained, folder / "run", ignore=shutil.ignore_patterns("checkpoints"))
        (folder / "run" / "config.yaml").write_bytes(BOMB.encode() + text if b"*l" in text else text)
        with watched():
            load_config(folder / "run" / "config.yaml")
        with watched(RunFolderError):
            read_runs([folder / "run"])
    assert not (folder / "executed").exists()


@bounded
@given(st.data())
def test_run_folder_for_the_report(folder, trained, data):
    """analysis.runs on a folder in which one or two files are hostile."""
    shutil.rmtree(folder)
    shutil.copytree(trained, folder, ignore=shutil.ignore_patterns("checkpoints"))
    for name in data.draw(
        st.lists(st.sampled_from(("config.yaml", "environment.json", "status.json", "metrics.jsonl")), min_size=1, max_size=2)
    ):
        (folder / name).write_bytes(data.draw(hostile_file(trained / name)))
    with watched(RunFolderError):
        read_runs([folder])


NUMBERS_READ = [
    "config.yaml:max_steps",
    "config.yaml:learning_rate",
    "config.yaml:seed",
    "config.yaml:global_batch_size",
    "config.yaml:model.sequence_length",
    "environment.json:tokens_per_step",
    "metrics.jsonl:step",
    "metrics.jsonl:tokens",
    "metrics.jsonl:train_seconds",
    "metrics.jsonl:val/loss",
    "metrics.jsonl:val/bits_per_byte",
    "metrics.jsonl:train/tokens_per_second",
]


@pytest.mark.parametrize("where", NUMBERS_READ)
def test_every_number_that_the_report_reads(folder, trained, where):
    name, key = where.split(":")
    for number in [*NUMBERS, "1e999", "1" * 5000, True, None, [1], {"a": 1}]:
        shutil.rmtree(folder)
        shutil.copytree(trained, folder, ignore=shutil.ignore_patterns("checkpoints"))
        text = (folder / name).read_text()
        if name == "metrics.jsonl":
            rows = [json.loads(line) for line in text.splitlines()]
            text = "".join(json.dumps({**row, key: number} if key in row else row) + "\n" for row in rows)
        else:
            value = yaml.safe_load(text)
            *parents, last = key.split(".")
            inner = value
            for parent in parents:
                inner = inner[parent]
            inner[last] = number
            text = json.dumps(value) if name.endswith(".json") else yaml.safe_dump(value)
        (folder / name).write_text(text)
        with watched(RunFolderError):
            read_runs([folder])


def hostile_file(path):
    text = path.read_bytes()
    if path.suffix == ".yaml":
        return edits(yaml.safe_load(text)).map(dump_yaml) | mutations(text)
    if path.suffix == ".json":
        return hostile_json(json.loads(text))
    lines = [json.loads(line) for line in text.splitlines()]
    return edits(lines).map(
        lambda rows: b"\n".join(json.dumps(row).encode() for row in (rows if isinstance(rows, list) else [rows]))
    ) | mutations(text)


@bounded
@given(st.data())
def test_run_folder_for_resuming(folder, trained, docs, data):
    """Everything that train.py reads of an existing run before its first step."""
    shutil.rmtree(folder)
    folder.mkdir()
    shutil.copytree(trained, folder / "run")
    (folder / "beside").write_text("untouched")
    config = load_config(trained / "config.yaml")
    config.out_dir = str(folder)
    for name in data.draw(
        st.lists(st.sampled_from(("config.yaml", "environment.json", "status.json", "metrics.jsonl")), min_size=1, max_size=2)
    ):
        (folder / "run" / name).write_bytes(data.draw(hostile_file(trained / name)))
    lock = RunLock()
    try:
        with watched():
            read_json(folder / "run" / "status.json")
            open_run_folder(config, open_data(config), lock)
    finally:
        lock.close()
    assert (folder / "beside").read_text() == "untouched"
    assert {path.name for path in folder.iterdir()} == {"beside", "run"}


@bounded
@given(st.data())
def test_metrics_lines(folder, trained, data):
    valid = trained / "metrics.jsonl"
    content = data.draw(hostile_file(valid))
    for old in folder.iterdir():
        old.unlink() if old.is_file() else shutil.rmtree(old)
    (folder / "metrics.jsonl").write_bytes(content)
    with watched():
        rewind_metrics(folder, 1)
        kept = (folder / "metrics.jsonl").read_text(errors="replace").splitlines()
        assert all(json.loads(line)["step"] <= 1 for line in kept)
        again = (folder / "metrics.jsonl").read_bytes()
        rewind_metrics(folder, 1)
        assert (folder / "metrics.jsonl").read_bytes() == again


LINKS = [
    "run.lock",
    "config.tmp",
    "config.yaml",
    "environment.json",
    "status.json",
    "metrics.jsonl",
    "metrics.jsonl.tmp",
    "metrics.stale.jsonl",
    "tokenizer.json",
    "checkpoints",
]


def folder_with_link(tmp_path, trained, name):
    """Return a run folder from elsewhere in which a name that training writes leads to tmp_path/outside."""
    shutil.copytree(trained, tmp_path / "runs" / "run", ignore=shutil.ignore_patterns("step-00000002"))
    outside, link = tmp_path / "outside", tmp_path / "runs" / "run" / name
    if name == "checkpoints":
        shutil.move(link, outside)
    else:
        outside.write_bytes(link.read_bytes() if link.exists() else b"precious")
        link.unlink(missing_ok=True)
    link.symlink_to(outside)
    return {key: value for key, value in snapshot(tmp_path).items() if key.startswith("outside")}


@pytest.mark.parametrize("name", LINKS)
def test_links_in_a_run_folder_are_refused_before_anything_is_written(tmp_path, trained, docs, name):
    before = folder_with_link(tmp_path, trained, name)
    config, lock = load_config(trained / "config.yaml"), RunLock()
    config.out_dir = str(tmp_path / "runs")
    try:
        with pytest.raises(ConfigError, match=rf"{name}: a link"):
            open_run_folder(config, open_data(config), lock)
    finally:
        lock.close()
    assert {key: value for key, value in snapshot(tmp_path).items() if key.startswith("outside")} == before


@pytest.mark.slow
@pytest.mark.parametrize("name", ["run.lock", "tokenizer.json", "checkpoints"])
def test_links_in_a_run_folder_lead_no_write_outside(tmp_path, trained, docs, name):
    before = folder_with_link(tmp_path, trained, name)
    done = run(
        "train.py",
        *SMALL,
        f"data.dir={docs}",
        f"out_dir={tmp_path / 'runs'}",
        "model=ngpt",
        "max_steps=2",
        "eval_interval=1",
        "checkpoint_interval=1",
        "run_name=run",
        code=2,
    )
    assert "link" in error_line(done)
    assert {key: value for key, value in snapshot(tmp_path).items() if key.startswith("outside")} == before


@pytest.mark.slow
def test_prompts_that_are_no_text_and_a_tokenizer_that_is_anothers(folder, trained):
    overrides = ["max_new_tokens=2", "device=cpu"]
    program = [sys.executable, str(ROOT / "sample.py"), f"run={trained}", *overrides]
    for prompt, given_bytes in ((["prompt=a\udcffb"], b""), ([], b"a\xffb")):
        arguments = [os.fsencode(part) for part in (*program, *prompt)]
        done = subprocess.run(arguments, input=given_bytes, capture_output=True, env=environment(), cwd=ROOT)
        assert done.returncode == 0 and done.stdout.startswith(b"a"), done.stderr
    fresh(folder, trained)
    (folder / "tokenizer.json").write_bytes(TOKENIZERS["sentencepiece"]())
    done = run("sample.py", f"run={folder}", "prompt=a", *overrides, code=3)
    assert "not the tokenizer that the run was trained with" in error_line(done)


def test_a_configuration_larger_than_its_checkpoint_allocates_nothing(folder, trained):
    """config.yaml may claim any size; the checkpoint beside it says what there is."""
    valid = (trained / "config.yaml").read_text()
    for change in (
        ("n_embd: 32", "n_embd: 3200000"),
        ("n_layer: 2", "n_layer: 20000000"),
        ("vocab_size: 272", "vocab_size: 2000000000"),
        ("sequence_length: 32", "sequence_length: 4000000000"),
    ):
        assert change[0] in valid
        shutil.rmtree(folder)
        shutil.copytree(trained, folder)
        (folder / "config.yaml").write_text(valid.replace(*change))
        with watched():
            load_trained_model(folder)
            pytest.fail(f"loaded with {change[1]}")


def test_special_files_do_not_hang(folder, docs):
    """A named pipe is waited for by whoever opens it."""
    for name in ("manifest.json", "train.bin", "token_bytes.bin", "tokenizer.json"):
        fresh(folder, docs)
        (folder / name).unlink()
        os.mkfifo(folder / name)
        with watched():
            use_data_folder(folder)
            pytest.fail("read")
        with watched():
            load_tokenizer(folder / name)
            pytest.fail("read")
    (folder / "tokenizer.json").unlink()


def test_sparse_files_of_enormous_size_are_not_read(folder, docs):
    for name in ("manifest.json", "token_bytes.bin", "tokenizer.json", "train.bin"):
        fresh(folder, docs)
        with open(folder / name, "wb") as file:
            file.truncate(1 << 42)
        with watched():
            manifest = read_manifest(folder)
            if name == "tokenizer.json":
                load_tokenizer(folder / name)
            verify_token_files(folder, manifest)
            pytest.fail("read")


def test_ids_beyond_the_vocabulary_are_not_trained_on(folder, docs):
    """A bin whose ids are too large has another digest; without digests the fast check cannot know."""
    fresh(folder, docs)
    tokens = np.fromfile(folder / "val.bin", dtype="<u2")
    tokens[5] = 60000
    tokens.tofile(folder / "val.bin")
    for full in (False, True):
        with pytest.raises(DataError, match=r"val\.bin"):
            verify_token_files(folder, read_manifest(folder), full)
