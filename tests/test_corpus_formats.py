"""Files are read by what they hold; bad rows are left out and counted when asked; reading goes on where it stopped."""

import bz2
import gzip
import json
import lzma
import os

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from corpus_support import local_config as any_config
from corpus_support import make_texts, read_bins, write_parquet

from corpus import reading
from corpus.documents import DocumentReader
from corpus.files import find_files
from corpus.prepare import prepare
from corpus.reading import read_files
from corpus.token_file import DataError, read_manifest

TEXTS = make_texts(40)
LINES = "".join(json.dumps({"text": text}) + "\n" for text in TEXTS).encode()


def local_config(out, files, **settings):
    return any_config(out, files, **{"tokenizer": "bytes", "vocab_size": 272, "num_proc": 1, **settings})


def texts_of(index):
    reader = DocumentReader(index.paths)
    return [reader.read(*record).decode("utf-8", "replace") for record in index.records.tolist()]


def read(folder, *paths, **settings):
    (folder / "scratch").mkdir(exist_ok=True)
    return read_files([str(path) for path in paths], "text", folder / "scratch", **settings)


def zstd(content):
    return pa.compress(content, codec="zstd", asbytes=True)


@pytest.mark.parametrize(
    ("name", "content"),
    [
        ("c4.json.gz", gzip.compress(LINES)),
        ("x.json", LINES),
        ("x.ndjson", LINES),
        ("x.jsonl.zstd", zstd(LINES)),
        ("x.json.zst", zstd(LINES)),
        ("x.jsonl.bz2", bz2.compress(LINES)),
        ("x.jsonl.xz", lzma.compress(LINES)),
        ("named-wrongly.jsonl", gzip.compress(LINES)),
        ("decompressed-on-the-way.jsonl.gz", LINES),
        ("part-00000", LINES),
        ("array.json", json.dumps([{"text": text} for text in TEXTS], indent=1).encode()),
    ],
)
def test_json_by_content(tmp_path, name, content):
    (tmp_path / name).write_bytes(content)
    assert texts_of(read(tmp_path, tmp_path / name)) == TEXTS


@pytest.mark.parametrize("writer", [pa.ipc.new_stream, pa.ipc.new_file])
def test_arrow_files_of_both_kinds(tmp_path, writer):
    table = pa.table({"text": TEXTS})
    with writer(str(tmp_path / "data-00000-of-00001.arrow"), table.schema) as file:
        file.write_table(table, max_chunksize=7)
    (tmp_path / "state.json").write_text("{}")
    (tmp_path / "dataset_info.json").write_text("{}")
    assert find_files(str(tmp_path)) == [str(tmp_path / "data-00000-of-00001.arrow")]
    assert texts_of(read(tmp_path, *find_files(str(tmp_path)))) == TEXTS


def test_what_is_named_otherwise_is_parquet_and_a_compressed_text_is_one_document(tmp_path):
    write_parquet(tmp_path / "data", TEXTS)
    (tmp_path / "book.txt.gz").write_bytes(gzip.compress("naïve".encode()))
    assert texts_of(read(tmp_path, tmp_path / "data", tmp_path / "book.txt.gz")) == [*TEXTS, "naïve"]


def test_a_folder_means_its_data_files(tmp_path):
    spark = tmp_path / "spark" / "part=1"
    spark.mkdir(parents=True)
    write_parquet(spark / "part-00000.snappy.parquet", TEXTS)
    (tmp_path / "spark" / "_SUCCESS").write_text("")
    (tmp_path / "spark" / "README.rst").write_text("how it was made")
    (tmp_path / "spark" / ".part-00000.crc").write_text("crc")
    assert find_files(str(tmp_path / "spark")) == [str(spark / "part-00000.snappy.parquet")]
    assert find_files([f"{tmp_path}/sp*"]) == [str(spark / "part-00000.snappy.parquet")]
    (spark / "notes.txt").write_text("a")
    with pytest.raises(DataError, match="parquet and text files"):
        find_files(str(tmp_path / "spark"))
    (tmp_path / "empty").mkdir()
    with pytest.raises(DataError, match="no file matches"):
        find_files(str(tmp_path / "empty"))


def test_a_name_with_the_signs_of_a_glob_is_a_name(tmp_path):
    (tmp_path / "a[1].txt").write_text("x")
    assert find_files(str(tmp_path / "a[1].txt")) == [str(tmp_path / "a[1].txt")]


@pytest.mark.parametrize("name", ["table.csv", "table.tsv.gz", "archive.tar"])
def test_tables_and_archives_are_refused(tmp_path, name):
    content = b"text,other\n" if "table" in name else b"ustar" + bytes(600)
    (tmp_path / name).write_bytes(gzip.compress(content) if name.endswith("gz") else content)
    with pytest.raises(DataError, match=f"{name}: this kind of file is not read"):
        read(tmp_path, tmp_path / name)


@pytest.mark.parametrize("encoding", ["utf-16", "utf-16-be", "utf-32"])
@pytest.mark.parametrize("name", ["x.txt", "x.jsonl", "x", "x.txt.gz"])
def test_another_unicode_is_refused_and_told_how(tmp_path, name, encoding):
    content = ("\ufeff" if encoding == "utf-16-be" else "").encode(encoding) + LINES.decode().encode(encoding)
    (tmp_path / name).write_bytes(gzip.compress(content) if name.endswith("gz") else content)
    with pytest.raises(DataError, match=f"{name}: UTF-16, which is not read; write it anew: iconv"):
        read(tmp_path, tmp_path / name)


def test_a_dictionary_of_bytes_that_are_no_utf8(tmp_path):
    values = pa.array([b"fine", b"bad \xff\xfe", b"fine", None], pa.binary()).dictionary_encode()
    pq.write_table(pa.table({"text": values}), tmp_path / "x.parquet")
    prepare(local_config(tmp_path / "out", str(tmp_path / "x.parquet"), val_fraction=0.3))
    source = read_manifest(tmp_path / "out").source
    assert (source["invalid_utf8_documents"], source["null_rows"]) == (1, 1)


@pytest.mark.parametrize("kind", [pa.binary_view(), pa.string_view(), pa.binary(3)], ids=str)
def test_further_types_of_text(tmp_path, kind):
    (tmp_path / "scratch").mkdir()
    array = pa.array([b"one", None, b"two"]).cast(kind)
    from corpus.rows import column_batches

    batches = list(column_batches("x", iter([array]), 0))
    assert bytes(batches[0].text) == b"onetwo" and batches[0].lengths == [3, 0, 3] and batches[0].nulls == 1


@pytest.mark.parametrize("nulls", [True, False])
def test_nothing_but_nulls_is_refused(tmp_path, nulls):
    write_parquet(tmp_path / "x.parquet", [None if nulls else ""] * 5)
    with pytest.raises(DataError, match="nothing but nulls" if nulls else "every document is empty"):
        prepare(local_config(tmp_path / "out", str(tmp_path / "x.parquet")))


def test_a_long_window_is_told_how(tmp_path):
    """A frame whose header asks for a window of 2 GiB, as `zstd --long=31` writes it, and one raw block."""
    header = b"\x28\xb5\x2f\xfd" + bytes([0, (31 - 10) << 3])
    (tmp_path / "x.jsonl.zst").write_bytes(header + (len(LINES) << 3 | 1).to_bytes(3, "little") + LINES)
    with pytest.raises(DataError, match="x.jsonl.zst: compressed with a long window.*zstd -dc --long=31 x.jsonl.zst"):
        read(tmp_path, tmp_path / "x.jsonl.zst")


BAD = [b"{", b"[1]", b'{"body": "x"}', b'{"text": 5}']


def bad_file(tmp_path):
    rows = LINES.splitlines()
    rows[10:10] = BAD[:2]
    rows[20:20] = BAD[2:]
    (tmp_path / "x.jsonl").write_bytes(b"\n".join(rows))
    return str(tmp_path / "x.jsonl")


def test_bad_rows_are_left_out_counted_and_said(tmp_path, capsys):
    prepare(local_config(tmp_path / "out", bad_file(tmp_path), on_bad_row="skip"))
    (tmp_path / "good.jsonl").write_bytes(LINES)
    prepare(local_config(tmp_path / "good", str(tmp_path / "good.jsonl")))
    assert read_bins(tmp_path / "out") == read_bins(tmp_path / "good")
    assert read_manifest(tmp_path / "out").source["bad_rows"] == 4
    assert read_manifest(tmp_path / "good").source["bad_rows"] == 0
    said = capsys.readouterr()
    assert said.err.count("left out: ") == 4 and "4 bad rows were left out" in said.err
    prepare(local_config(tmp_path / "out", str(tmp_path / "x.jsonl")))
    assert "already prepared" in capsys.readouterr().out


def test_the_rest_of_a_damaged_file_is_left_out(tmp_path):
    long = "".join(json.dumps({"text": os.urandom(3000).hex()}) + "\n" for _ in range(100)).encode()
    (tmp_path / "a.jsonl.gz").write_bytes(gzip.compress(long)[:-5000])
    (tmp_path / "b.jsonl").write_bytes(LINES)
    with pytest.raises(DataError, match=r"a.jsonl.gz: not a sound file.*on_bad_row=skip"):
        read(tmp_path, tmp_path / "a.jsonl.gz", tmp_path / "b.jsonl")
    index = read(tmp_path, tmp_path / "a.jsonl.gz", tmp_path / "b.jsonl", on_bad_row="skip")
    assert index.counts.damaged_files == 1 and 80 < len(index) - len(TEXTS) < 100 and texts_of(index)[-len(TEXTS) :] == TEXTS


@pytest.mark.parametrize("kind", ["jsonl", "parquet"])
def test_reading_goes_on_behind_a_bad_row(tmp_path, monkeypatch, capsys, kind):
    """The first file is not opened again, and the rows before the bad one are not parsed again."""
    if kind == "jsonl":
        (tmp_path / "a.jsonl").write_bytes(LINES)
    else:
        write_parquet(tmp_path / "a.parquet", TEXTS)
    files = [tmp_path / f"a.{kind}", bad_file(tmp_path)]
    with pytest.raises(DataError, match=r"x.jsonl, line 11: not JSON.*on_bad_row=skip leaves it out, and reading continues"):
        read(tmp_path, *files)
    opened, parsed = [], []
    detect, json_text = reading.detect, reading.read_rows.__globals__["json_text"]
    monkeypatch.setattr(reading, "detect", lambda path: (opened.append(path), detect(path))[1])
    monkeypatch.setitem(reading.read_rows.__globals__, "json_text", lambda *a: (parsed.append(a[0]), json_text(*a))[1])
    index = read(tmp_path, *files, on_bad_row="skip")
    assert texts_of(index) == TEXTS * 2 and index.counts.bad_rows == 4
    assert opened == [str(files[1])] and parsed[0].endswith("line 11")
    assert "goes on after 50 documents" in capsys.readouterr().err


def test_a_file_that_was_mended_is_read_anew_and_those_before_it_are_not(tmp_path, monkeypatch):
    (tmp_path / "a.jsonl").write_bytes(LINES)
    files = [tmp_path / "a.jsonl", bad_file(tmp_path)]
    with pytest.raises(DataError):
        read(tmp_path, *files)
    (tmp_path / "x.jsonl").write_bytes(LINES[:500] + b"\n")
    os.utime(tmp_path / "x.jsonl", ns=(1, 1))
    with pytest.raises(DataError, match="x.jsonl, line"):  # cut in the middle of a row
        read(tmp_path, *files)
    (tmp_path / "x.jsonl").write_bytes(LINES)
    assert texts_of(read(tmp_path, *files)) == TEXTS * 2


def test_killed_while_reading(tmp_path, monkeypatch):
    """What is on disk when the process dies is at most two seconds old; then everything is as if it had never died."""
    for name in "abc":
        (tmp_path / f"{name}.jsonl").write_bytes(LINES)
    files = [tmp_path / f"{name}.jsonl" for name in "abc"]
    monkeypatch.setattr(reading, "SECONDS_BETWEEN_RECORDS", -1)
    original, calls = reading.read_file, []

    def read_file(place, *arguments):
        calls.append(place.file)
        yield from original(place, *arguments)
        if len(calls) == 2:
            raise KeyboardInterrupt

    monkeypatch.setattr(reading, "read_file", read_file)
    with pytest.raises(KeyboardInterrupt):
        read(tmp_path, *files)
    assert texts_of(read(tmp_path, *files)) == TEXTS * 3 and calls == [0, 1, 1, 2]


@pytest.mark.parametrize("content", ["To be, or not to be: ✓✓✓✓✓✓ that is\nthe question. ", "✓" * 50])
def test_one_document_is_cut_at_its_end(tmp_path, capsys, content):
    (tmp_path / "input.txt").write_text(content * 20, encoding="utf-8")
    prepare(local_config(tmp_path / "out", str(tmp_path / "input.txt"), val_fraction=0.1))
    bins = {name: np.frombuffer(part, "<u2") for name, part in read_bins(tmp_path / "out").items()}
    halves = {name: bytes(part[part < 256].astype(np.uint8)).decode("utf-8") for name, part in bins.items()}
    assert halves["train"] + halves["val"] == content * 20
    assert abs(len(halves["val"]) / len(content * 20) - 0.1) < 0.01
    assert "one document: its last" in capsys.readouterr().err
    assert read_manifest(tmp_path / "out").split["method"] == "position"
    prepare(local_config(tmp_path / "out", str(tmp_path / "input.txt"), val_fraction=0.1))
    assert "already prepared" in capsys.readouterr().out
