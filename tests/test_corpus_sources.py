"""Where text comes from: every format gives the same bins, every defect one line that names the file."""

import gzip
import json
import os
import socket
import subprocess
import tempfile
import time
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from corpus_support import ROOT, command, make_texts, nanogpt_bins, read_bins, run_command, write_parquet, write_shards
from corpus_support import local_config as any_config

from corpus.documentation import add_documentation
from corpus.documents import DocumentReader, DocumentWriter
from corpus.files import find_files
from corpus.prepare import prepare
from corpus.reading import read_files
from corpus.rows import column_batches
from corpus.token_file import DataError, read_manifest

TEXTS = make_texts(40)


def local_config(out, files, **settings):
    """Bytes as tokens: what is tested here is the reading, and GPT-2's tables take a second to load."""
    return any_config(out, files, **{"tokenizer": "bytes", "vocab_size": 272, **settings})


def json_lines(texts, **dumps):
    return "".join(json.dumps({"id": 1, "text": text}, **dumps) + "\n" for text in texts).encode("utf-8", "surrogatepass")


def zstd(content: bytes) -> bytes:
    """Two frames, as tools that append produce."""
    half = len(content) // 2
    return b"".join(pa.compress(part, codec="zstd", asbytes=True) for part in (content[:half], content[half:]))


def read_documents(tmp_path, *paths, limit=None, column="text"):
    folder = Path(tempfile.mkdtemp(dir=tmp_path))
    documents = read_files([str(path) for path in paths], column, folder, limit)
    reader = DocumentReader(documents.paths)
    return [reader.read(*record) for record in documents.records.tolist()], documents


def test_every_format_gives_the_same_bins(tmp_path):
    content = json_lines(TEXTS, ensure_ascii=False)
    variants = {
        "a.parquet": None,
        "b.jsonl": content,
        "c.jsonl.gz": gzip.compress(content[:500]) + gzip.compress(content[500:]),
        "d.jsonl.zst": zstd(content),
        "e.jsonl": b"\xef\xbb\xbf" + content.replace(b"\n", b"\r\n\n"),
        "f.JSONL": json_lines(TEXTS).rstrip(b"\n"),
    }
    write_parquet(tmp_path / "a.parquet", TEXTS)
    for name, variant in variants.items():
        if variant is not None:
            (tmp_path / name).write_bytes(variant)
        prepare(local_config(tmp_path / "out" / name, str(tmp_path / name)))
    for number, text in enumerate(TEXTS):
        (tmp_path / f"{number:03}.txt").write_bytes(text.encode())
    prepare(local_config(tmp_path / "out" / "txt", str(tmp_path / "*.txt")))
    bins = [read_bins(folder) for folder in sorted((tmp_path / "out").iterdir())]
    assert len(bins) == 7 and all(one == bins[0] for one in bins)


def test_files_are_sorted_and_taken_once(tmp_path):
    for name in ("b", "a", "c"):
        (tmp_path / f"{name}.txt").write_text(name)
    assert [path[-5] for path in find_files([f"{tmp_path}/c.txt", f"{tmp_path}/*.txt"])] == ["a", "b", "c"]
    mixed = [tmp_path / "a.txt", write_parquet(tmp_path / "p.parquet", ["one", None, "three"]), tmp_path / "b.txt"]
    assert read_documents(tmp_path, *mixed)[0] == [b"a", b"one", b"", b"three", b"b"]
    for limit in range(1, 6):
        assert read_documents(tmp_path, *mixed, limit=limit)[0] == [b"a", b"one", b"", b"three", b"b"][:limit]


@pytest.mark.parametrize(
    "kind",
    [
        pa.string(),
        pa.large_string(),
        pa.string_view(),
        pa.dictionary(pa.int32(), pa.string()),
        pa.binary(),
        pa.large_binary(),
    ],
    ids=str,
)
def test_column_types(tmp_path, kind):
    values = ["one", None, "", "four", "one"] * 5
    column = pa.array(values).dictionary_encode() if pa.types.is_dictionary(kind) else pa.array(values).cast(kind)
    pq.write_table(pa.table({"text": column}), tmp_path / "x.parquet", row_group_size=6)
    assert read_documents(tmp_path, tmp_path / "x.parquet")[0] == [(value or "").encode() for value in values]


def test_null_with_bytes_behind_it_is_empty(tmp_path):
    # The Arrow format allows it: the slot of a null may span bytes.
    offsets, data, valid = (pa.py_buffer(part) for part in (np.array([0, 3, 6, 9], "<i4").tobytes(), b"onetwosix", b"\x05"))
    array = pa.StringArray.from_buffers(3, offsets, data, valid)
    writer = DocumentWriter(tmp_path, None)
    for batch in column_batches("x", iter([array, array.slice(1)]), 0):
        writer.add_many(batch.text, batch.lengths)
    documents = writer.finish()
    reader = DocumentReader(documents.paths)
    assert [reader.read(*record) for record in documents.records.tolist()] == [b"one", b"", b"six", b"", b"six"]


def test_other_column_by_name(tmp_path):
    write_parquet(tmp_path / "x.parquet", ["no"] * 3, body=["a", "b", "c"])
    assert read_documents(tmp_path, tmp_path / "x.parquet", column="body")[0] == [b"a", b"b", b"c"]


def test_invalid_utf8_is_replaced_and_counted(tmp_path):
    raw = [b"fine", b"bad \xff\xfe end", "naïve".encode(), b"\xc3", b"cut \xe6\xbc", b"x" * 10] * 3
    offsets = pa.py_buffer(b"".join(sum(map(len, raw[:n])).to_bytes(4, "little") for n in range(len(raw) + 1)))
    pq.write_table(
        pa.table({"text": pa.StringArray.from_buffers(len(raw), offsets, pa.py_buffer(b"".join(raw)))}),
        tmp_path / "x.parquet",
    )
    (tmp_path / "x.jsonl").write_bytes(b"".join(b'{"text": "' + text + b'"}\n' for text in raw))
    for number, text in enumerate(raw):
        (tmp_path / f"{number:02}.txt").write_bytes(text)
    write_parquet(tmp_path / "clean.parquet", [text.decode("utf-8", "replace") for text in raw])
    prepare(local_config(tmp_path / "clean", str(tmp_path / "clean.parquet")))
    for name in ("x.parquet", "x.jsonl", "*.txt"):
        prepare(local_config(tmp_path / "out", str(tmp_path / name), overwrite=True))
        assert read_bins(tmp_path / "out") == read_bins(tmp_path / "clean")
        manifest, clean = read_manifest(tmp_path / "out"), read_manifest(tmp_path / "clean")
        assert manifest.source["invalid_utf8_documents"] == 9 and clean.source["invalid_utf8_documents"] == 0
        assert [info.bytes for info in manifest.splits.values()] == [info.bytes for info in clean.splits.values()]


def test_half_surrogates_become_what_tiktoken_makes_of_them(tmp_path):
    (tmp_path / "x.jsonl").write_text(r'{"text": "a\ud800b"}' + "\n" + r'{"text": "\ud83d\ude42"}' + "\n")
    contents, documents = read_documents(tmp_path, tmp_path / "x.jsonl")
    assert contents == ["a\ufffdb".encode(), "🙂".encode()] and documents.counts.repaired == 1


def damaged(tmp_path, kind):
    """Write one damaged file and return (its name, what the complaint must say)."""
    good = write_parquet(tmp_path / "a.parquet", TEXTS)
    content = bytearray(Path(good).read_bytes())
    if kind == "middle of parquet":
        content[40:4000] = b"\x99" * 3960
        (tmp_path / "b.parquet").write_bytes(content)
        return "b.parquet", "not a sound parquet file"
    if kind in ("cut parquet", "empty parquet", "not parquet"):
        (tmp_path / "b.parquet").write_bytes(
            {"c": content[: len(content) // 2], "e": b"", "n": b"hello world, no parquet"}[kind[0]]
        )
        return "b.parquet", "not a sound parquet file"
    if kind == "number column":
        pq.write_table(pa.table({"text": [1, 2, 3]}), tmp_path / "b.parquet")
        return "b.parquet", "int64"
    if kind == "no column":
        pq.write_table(pa.table({"body": ["x"], "title": ["y"]}), tmp_path / "b.parquet")
        return "b.parquet", "no column 'text'; there are: body, title"
    contents = {
        "json no column": (
            "b.jsonl",
            b'{"text": "a"}\n{"body": "b", "n": 1}\n',
            "line 2: no column 'text'; there are: body, n",
        ),
        "json broken": ("b.jsonl", b'{"text": "a"}\n\n{"text": \n', "line 3: not JSON"),
        "json list": ("b.jsonl", b"[1]\n", "line 1: not a JSON object"),
        "json number": ("b.jsonl", b'{"text": 5}\n', "line 1: text holds int"),
        "json deep": ("b.jsonl", b"[" * 100000 + b"\n", "line 1: not JSON"),
        "json long number": ("b.jsonl", b'{"text": ' + b"1" * 5000 + b"}\n", "line 1: not JSON"),
        "cut gzip": ("b.jsonl.gz", gzip.compress(json_lines(TEXTS))[:-20], "not a sound file"),
        "not gzip": ("b.jsonl.gz", b"hello", "not a sound file"),
        "cut zstd": ("b.jsonl.zst", zstd(json_lines(TEXTS))[:-20], "b.jsonl.zst"),
        "not zstd": ("b.jsonl.zst", b"hello", "not a sound file"),
        "kind of file": ("b.csv", b"text\n", "this kind of file is not read"),
    }
    name, content, complaint = contents[kind]
    (tmp_path / name).write_bytes(content)
    return name, complaint


@pytest.mark.parametrize(
    "kind",
    [
        "middle of parquet",
        "cut parquet",
        "empty parquet",
        "not parquet",
        "number column",
        "no column",
        "json no column",
        "json broken",
        "json list",
        "json number",
        "json deep",
        "json long number",
        "cut gzip",
        "not gzip",
        "cut zstd",
        "not zstd",
        "kind of file",
    ],
)
def test_defects_name_the_file_in_one_line(tmp_path, kind):
    name, complaint = damaged(tmp_path, kind)
    with pytest.raises(DataError) as caught:
        prepare(local_config(tmp_path / "out", str(tmp_path / "[ab].*")))
    assert str(tmp_path / name) in str(caught.value) and complaint in str(caught.value) and "\n" not in str(caught.value)
    assert not (tmp_path / "out" / "train.bin").exists()


def test_defects_exit_with_code_3_and_no_traceback(tmp_path):
    (tmp_path / "x.parquet").write_bytes(b"PAR1 nothing PAR1")
    for files, complaint in (
        (tmp_path / "x.parquet", "x.parquet: not a sound"),
        (tmp_path / "none*.parquet", "none*.parquet: no file matches"),
    ):
        result = run_command("data=local", f"data.files='{files}'", f"data.dir={tmp_path / 'out'}")
        lines = [line for line in result.stderr.splitlines() if not line.startswith("reading documents")]
        assert result.returncode == 3 and len(lines) == 1 and lines[0].startswith("error: ") and complaint in lines[0]


@pytest.mark.parametrize(("texts", "complaint"), [([], "^0 documents are not"), (["x"], "^1 document of 1 bytes is not")])
def test_too_few_documents(tmp_path, texts, complaint):
    write_parquet(tmp_path / "x.parquet", texts)
    with pytest.raises(DataError, match=complaint):
        prepare(local_config(tmp_path / "out", str(tmp_path / "x.parquet")))


def test_source_that_changes_while_it_is_read(tmp_path):
    (tmp_path / "x.txt").write_text("hello")
    documents = read_files([str(tmp_path / "x.txt")], "text", tmp_path)
    (tmp_path / "x.txt").write_text("h")
    with pytest.raises(DataError, match="x.txt: ends before byte 5"):
        DocumentReader(documents.paths).read(*documents.records.tolist()[0])
    (tmp_path / "x.txt").unlink()
    with pytest.raises(DataError, match="x.txt: No such file"):
        DocumentReader(documents.paths).read(*documents.records.tolist()[0])


def test_reader_keeps_few_files_open(tmp_path, monkeypatch):
    monkeypatch.setattr(DocumentReader, "MAX_OPEN", 3)
    paths = []
    for number in range(10):
        (tmp_path / f"{number}.txt").write_text(str(number))
        paths.append(str(tmp_path / f"{number}.txt"))
    reader = DocumentReader(paths)
    assert [reader.read(number, 0, 1) for number in (*range(10), *range(10))] == [
        b"%d" % number for number in (*range(10), *range(10))
    ]
    assert len(reader.open) == 3


@pytest.mark.parametrize("in_place", [True, False])
def test_hub_dataset_gives_nanogpts_bins(tmp_path, monkeypatch, in_place):
    import datasets

    files = write_shards(tmp_path / "text", TEXTS)
    expected = nanogpt_bins(sorted(str(path) for path in (tmp_path / "text").iterdir()), tmp_path / "cache")
    original, asked = datasets.load_dataset, []

    def load_dataset(repo, revision, split, num_proc):
        asked.append((repo, revision, split))
        paths = sorted(str(path) for path in (tmp_path / "text").iterdir())
        return original("parquet", data_files=paths, split="train", cache_dir=str(tmp_path / "cache"), keep_in_memory=not in_place)

    monkeypatch.setattr(datasets, "load_dataset", load_dataset)
    monkeypatch.setattr("corpus.hub.hub_answers", lambda: True)
    config = local_config(
        tmp_path / "out",
        files,
        source="huggingface",
        repo="Skylion007/openwebtext",
        revision="79d93d78",
        tokenizer="gpt2",
        vocab_size=50304,
    )
    prepare(config)
    assert asked == [("Skylion007/openwebtext", "79d93d78", "train")] and read_bins(tmp_path / "out") == expected
    prepare(config)
    assert len(asked) == 1  # a finished folder is recognised without the dataset
    manifest = read_manifest(tmp_path / "out")
    assert (manifest.source["kind"], manifest.source["name"], manifest.source["revision"]) == (
        "huggingface",
        "Skylion007/openwebtext",
        "79d93d78",
    )


@pytest.mark.parametrize(
    "error",
    [ConnectionError("no route"), ValueError("unknown split\nlong text"), FileNotFoundError("no such dataset")],
    ids=repr,
)
def test_hub_failures_are_one_line(tmp_path, monkeypatch, error):
    import datasets

    def fail(*arguments, **settings):
        raise error

    monkeypatch.setattr(datasets, "load_dataset", fail)
    monkeypatch.setattr("corpus.hub.hub_answers", lambda: True)
    with pytest.raises(DataError, match="^Skylion007/openwebtext") as caught:
        prepare(local_config(tmp_path / "out", None, source="huggingface", repo="Skylion007/openwebtext"))
    assert "\n" not in str(caught.value)


def test_without_the_hub_the_command_ends_soon(tmp_path):
    """No name server, or a proxy that accepts and never answers; the hub's own retries would take 24 seconds."""
    base = {key: value for key, value in os.environ.items() if not key.startswith("HF_")} | {"HF_HOME": str(tmp_path / "cache")}
    with socket.create_server(("127.0.0.1", 0)) as server:
        started, programs = time.monotonic(), []
        for number, port in enumerate((9, server.getsockname()[1])):  # both at once: they wait
            environment = base | dict.fromkeys(("HTTPS_PROXY", "https_proxy"), f"http://127.0.0.1:{port}")
            words = command(f"data.dir={tmp_path / str(number)}", "num_proc=1")
            programs.append(subprocess.Popen(words, env=environment, cwd=ROOT, stderr=subprocess.PIPE, text=True))
        complaints = [program.communicate(timeout=60)[1] for program in programs]
        seconds = time.monotonic() - started
    for program, complaint in zip(programs, complaints, strict=True):
        assert program.returncode == 3 and "no answer from https://huggingface.co" in complaint, complaint
        assert complaint.count("\n") == 2
    assert seconds < 15  # three of waiting; the rest is the importing of datasets, on a machine that may be busy


def test_file_names_that_are_not_utf8(tmp_path):
    text = tmp_path / "text"
    text.mkdir()
    for number in range(3):
        with open(os.fsencode(text) + b"/%d\xff.txt" % number, "w") as file:
            file.write(f"text {number}")
    prepare(local_config(tmp_path / "out", str(text / "*.txt")))
    assert len(read_manifest(tmp_path / "out").source["files"]) == 3
    prepare(local_config(tmp_path / "out", str(text / "*.txt")))


def test_documentation_takes_docstrings_and_runs_nothing(tmp_path):
    library = tmp_path / "library"
    for name, source in {
        "pydoc_data/topics.py": "topics = {'b': 'second topic', 'a': 'first topic', 'c': 'second topic'}",
        "noisy.py": '"""Module text."""\nraise SystemExit("imported")\n'
        'class A:\n    """Class\n       text."""\n    def f(self, x=1): "Method text."\ndef g(): "Method text."',
        "test/skipped.py": '"""Test text."""',
        "pkg/__init__.py": '"""Package text."""',
        "pkg/idle_test/x.py": '"""Idle text."""',
        "broken.py": "def (:",
        "silent.py": "x = 1",
        "site-packages/other.py": '"""Foreign text."""',
    }.items():
        (library / name).parent.mkdir(parents=True, exist_ok=True)
        (library / name).write_text(source)
    writer = DocumentWriter(tmp_path, None)
    add_documentation(writer, library)
    documents = writer.finish()
    reader = DocumentReader(documents.paths)
    assert [reader.read(*record).decode() for record in documents.records.tolist()] == [
        "first topic",
        "second topic",
        "noisy\n\nModule text.\n\nnoisy.A\n\nClass\ntext.\n\nnoisy.A.f(self, x=1)\n\nMethod text.\n",
        "pkg\n\nPackage text.\n",
    ]


@pytest.mark.slow
def test_docs_command(tmp_path):
    result = run_command("data=docs", f"data.dir={tmp_path}")
    assert result.returncode == 0, result.stderr
    manifest = read_manifest(tmp_path)
    assert (manifest.tokenizer.name, manifest.tokenizer.vocab_size, manifest.tokenizer.eot_id) == ("bytes", 257, 256)
    assert manifest.splits["train"].tokens > 1_500_000 and manifest.splits["val"].tokens > 50_000
    for name, info in manifest.splits.items():
        assert info.tokens == info.bytes + info.documents, name


def test_data_files_share_their_keys():
    from corpus_support import ROOT
    from omegaconf import OmegaConf

    from corpus.settings import DataConfig

    configs = {path.stem: OmegaConf.load(path) for path in (ROOT / "configs" / "data").glob("*.yaml")}
    assert {"openwebtext", "docs", "local"} <= set(configs)
    keys = set(DataConfig.__dataclass_fields__)
    for name, config in configs.items():
        assert set(config) == keys and set(config.expected) == {"documents", "train_tokens", "val_tokens"}, name
        assert config.name == name
