"""prepare_owt.py: nanoGPT's bytes, however many workers, however often killed; and nothing half done under a final name."""

import hashlib
import json
import os
import re
import signal
import subprocess
import time

import numpy as np
import pytest
from corpus_support import (
    EOT,
    ROOT,
    command,
    is_alive,
    local_config,
    make_texts,
    nanogpt_bins,
    read_bins,
    run_command,
    write_parquet,
    write_shards,
)
from training import unmeasured

from corpus import encoding as coding
from corpus import prepare as module
from corpus import publication, splits
from corpus.documents import split_order
from corpus.prepare import prepare
from corpus.settings import SettingError
from corpus.token_file import DataError, read_manifest, verify_token_files
from corpus.tokenizer import load_tokenizer

TEXTS = make_texts(200)
FINAL = ["manifest.json", "token_bytes.bin", "tokenizer.json", "train.bin", "val.bin"]
# Small chunks and a record after each, so that a fault can fall between two of many.
FINE = "import corpus.encoding, corpus.splits, corpus.prepare, corpus.bin_writer, os, signal\n"
FINE += "corpus.encoding.CHUNK_BYTES = 4000\ncorpus.splits.SECONDS_BETWEEN_RECORDS = 0\n"


@pytest.fixture(scope="module")
def shards(tmp_path_factory):
    return write_shards(tmp_path_factory.mktemp("shards"), TEXTS)


@pytest.fixture(scope="module")
def expected(tmp_path_factory, shards):
    """nanoGPT's bins of the same shards, through datasets."""
    import glob

    return nanogpt_bins(sorted(glob.glob(shards)), tmp_path_factory.mktemp("cache"))


def names(folder):
    return sorted(path.name for path in folder.iterdir())


def overrides(out, files):
    return ["data=local", f"data.files='{files}'", f"data.dir={out}", "data.val_fraction=0.1", "num_proc=1"]


@pytest.mark.parametrize("count", [2, 3, 10, 999, 2001])
@pytest.mark.parametrize("fraction", [0.0005, 0.05, 0.3])
def test_split_is_the_librarys(count, fraction):
    import datasets

    ours = split_order(count, fraction, 2357)
    theirs = datasets.Dataset.from_dict({"row": range(count)}).train_test_split(test_size=fraction, seed=2357, shuffle=True)
    assert ours["train"].tolist() == theirs["train"][:]["row"] and ours["val"].tolist() == theirs["test"][:]["row"]


@pytest.mark.parametrize("workers", [1, 2, 5])
def test_bins_are_nanogpts_with_any_number_of_workers(tmp_path, shards, expected, monkeypatch, workers):
    monkeypatch.setattr(coding, "CHUNK_BYTES", 5000)
    monkeypatch.setattr(coding, "PIECE_BYTES", 300)
    prepare(local_config(tmp_path, shards, num_proc=workers))
    assert read_bins(tmp_path) == expected
    assert names(tmp_path) == FINAL
    manifest = read_manifest(tmp_path)
    verify_token_files(tmp_path, manifest, full=True)
    for name, info in manifest.splits.items():
        assert info.tokens * 2 == len(expected[name]) and info.sha256 == hashlib.sha256(expected[name]).hexdigest()
    assert [entry["name"] for entry in manifest.source["files"]] == ["0.parquet", "1.parquet", "2.parquet"]


def test_tokens_decode_to_the_documents(tmp_path, shards):
    prepare(local_config(tmp_path, shards))
    encoding = load_tokenizer(tmp_path / "tokenizer.json")
    for name, order in split_order(len(TEXTS), 0.1, 2357).items():
        tokens = np.fromfile(tmp_path / f"{name}.bin", dtype="<u2")
        ends = np.flatnonzero(tokens == EOT)
        documents = [encoding.decode(part[part != EOT].tolist()) for part in np.split(tokens, ends[:-1] + 1)]
        assert documents == [TEXTS[index] for index in order]


def test_command_says_what_it_did_and_that_it_was_done(tmp_path, shards, expected):
    first = run_command(*overrides(tmp_path, shards))
    assert first.returncode == 0 and "train.bin" in first.stdout and "Traceback" not in first.stderr
    assert read_bins(tmp_path) == expected and names(tmp_path) == FINAL
    before = (tmp_path / "train.bin").stat().st_mtime_ns
    second = run_command(*overrides(tmp_path, shards))
    assert (second.returncode, second.stdout) == (0, f"already prepared: {tmp_path}\n")
    assert (tmp_path / "train.bin").stat().st_mtime_ns == before


def test_other_settings_are_refused_unless_told_to_overwrite(tmp_path, shards):
    prepare(local_config(tmp_path, shards))
    old = read_bins(tmp_path)
    for changed in (
        {"split_seed": 1},
        {"val_fraction": 0.2},
        {"limit_documents": 50},
        {"tokenizer": "bytes", "vocab_size": 272},
        {"files": shards.replace("*", "[01]")},
    ):
        with pytest.raises(DataError, match="other settings .*overwrite=true") as caught:
            prepare(local_config(tmp_path, **{"files": shards, **changed}))
        assert {"split_seed": "split.seed", "val_fraction": "split.test_size", "tokenizer": "tokenizer.name"}.get(
            next(iter(changed)), "source."
        ) in str(caught.value)
    assert read_bins(tmp_path) == old
    prepare(local_config(tmp_path, shards, split_seed=1, overwrite=True))
    assert read_bins(tmp_path) != old and read_manifest(tmp_path).split["seed"] == 1


def test_damaged_bins_are_not_called_prepared(tmp_path, shards, expected):
    prepare(local_config(tmp_path, shards))
    (tmp_path / "val.bin").write_bytes(b"")
    with pytest.raises(DataError, match="val.bin: 0 bytes.*overwrite=true"):
        prepare(local_config(tmp_path, shards))
    prepare(local_config(tmp_path, shards, overwrite=True))
    assert read_bins(tmp_path) == expected


def test_limit_takes_the_first_documents(tmp_path, shards):
    prepare(local_config(tmp_path / "a", shards, limit_documents=80))
    prepare(local_config(tmp_path / "b", write_shards(tmp_path / "first", TEXTS[:80])))
    assert read_bins(tmp_path / "a") == read_bins(tmp_path / "b")


@pytest.mark.parametrize("chunks", [0, 9])
def test_killed_midway_and_run_again_is_byte_identical(tmp_path, shards, expected, chunks):
    # kill -9 from inside, in the middle of writing the chunk after that many
    fault = (
        FINE
        + f"""
from multiprocessing import active_children
original, count = corpus.bin_writer.BinWriter.append, [0]
def append(self, chunk):
    count[0] += 1
    if count[0] > {chunks}:
        corpus.bin_writer.write_all(self.file, chunk.content[: len(chunk.content) // 2])
        print(*(child.pid for child in active_children()), flush=True)
        os.kill(os.getpid(), signal.SIGKILL)
    original(self, chunk)
corpus.bin_writer.BinWriter.append = append
"""
    )
    killed = run_command(*overrides(tmp_path, shards), "num_proc=2", before=fault)
    assert killed.returncode == -signal.SIGKILL
    assert names(tmp_path) == ["prepare.partial"] and "train.bin" in names(tmp_path / "prepare.partial")
    wait_until_gone(map(int, killed.stdout.split()))
    recorded = (
        json.loads((tmp_path / "prepare.partial" / "progress.json").read_bytes())["splits"]["train"]["documents"] if chunks else 0
    )
    assert (recorded > 0) == (chunks > 0)
    # The second run reports how many chunks it still had to write: fewer than there were.
    counting = (
        FINE + "original = corpus.encoding.plan_chunks\ncorpus.splits.plan_chunks = lambda *a: (print('from', "
        "a[1]), original(*a))[1]"
    )
    again = run_command(*overrides(tmp_path, shards), before=counting)
    assert again.returncode == 0, again.stderr
    assert f"from {recorded}\n" in again.stdout
    assert read_bins(tmp_path) == expected and names(tmp_path) == FINAL
    verify_token_files(tmp_path, read_manifest(tmp_path), full=True)


def test_busy_workers_die_with_their_parent(tmp_path):
    # No blank and no digit to cut at: each document keeps a worker inside tiktoken for seconds.
    files = write_parquet(tmp_path / "long.parquet", ["abcdefghijklmnop" * 700_000, "abcdefghijklmnop" * 700_000, "x"], rows=1)
    announce = """
import contextlib, multiprocessing, corpus.workers
@contextlib.contextmanager
def without_interrupts(original=corpus.workers.without_interrupts):
    with original():
        yield
    print(*(child.pid for child in multiprocessing.active_children()), flush=True)
corpus.workers.without_interrupts = without_interrupts
"""
    process = subprocess.Popen(
        command(*overrides(tmp_path / "out", files), "num_proc=2", before=announce),
        stdout=subprocess.PIPE,
        text=True,
        cwd=ROOT,
    )
    pids = [int(part) for part in process.stdout.readline().split()]
    time.sleep(1)  # by now they have their documents
    assert all(map(is_alive, pids))
    process.kill()
    process.wait()  # not communicate(): the workers hold the pipe too, so that would wait for them
    wait_until_gone(pids, seconds=20)  # on a busy machine they may still be importing
    process.stdout.close()


def wait_until_gone(pids, seconds=5):
    pids = list(pids)
    assert len(pids) == 2
    deadline = time.monotonic() + seconds
    while any(map(is_alive, pids)):
        assert time.monotonic() < deadline, "a worker outlived its parent"
        time.sleep(0.05)


def test_partial_result_of_other_settings_is_not_continued(tmp_path, shards, expected):
    fault = (
        FINE
        + """
def append(self, chunk, original=corpus.bin_writer.BinWriter.append, count=[0]):
    original(self, chunk)
    count[0] += 1
    if count[0] > 5: os.kill(os.getpid(), signal.SIGKILL)
corpus.bin_writer.BinWriter.append = append
"""
    )
    assert run_command(*overrides(tmp_path, shards), "data.split_seed=7", before=fault).returncode == -signal.SIGKILL
    prepare(local_config(tmp_path, shards))
    assert read_bins(tmp_path) == expected


def test_partial_file_shorter_than_its_record_starts_over(tmp_path, shards, expected):
    fault = FINE + "import corpus.prepare as p\ndef publish(*a): os.kill(os.getpid(), signal.SIGKILL)\np.publish = publish"
    assert run_command(*overrides(tmp_path, shards), before=fault).returncode == -signal.SIGKILL
    with open(tmp_path / "prepare.partial" / "train.bin", "r+b") as file:
        file.truncate(100)
    prepare(local_config(tmp_path, shards))
    assert read_bins(tmp_path) == expected


def test_killed_between_the_renames(tmp_path, shards, expected, monkeypatch):
    monkeypatch.setattr(publication, "sync_path", fail_with(OSError(5, "Input/output error")))
    with pytest.raises(DataError, match="Input/output error"):
        prepare(local_config(tmp_path, shards, num_proc=1))
    monkeypatch.undo()
    with pytest.raises(DataError, match="manifest.json: missing"):
        read_manifest(tmp_path)
    monkeypatch.setattr(module, "open_documents", fail_with(AssertionError("nothing is read again")))
    prepare(local_config(tmp_path, shards))
    assert read_bins(tmp_path) == expected and names(tmp_path) == FINAL


def fail_with(error):
    def fail(*_, **__):
        raise error

    return fail


def test_ctrl_c_says_one_line_and_leaves_a_folder_to_continue(tmp_path, shards, expected):
    slow = (
        FINE
        + "import time\noriginal = corpus.bin_writer.BinWriter.append\n"
        + (
            "corpus.bin_writer.BinWriter.append = lambda self, chunk: (original(self, chunk), "
            "print('chunk', flush=True), time.sleep(0.2))"
        )
    )
    process = subprocess.Popen(
        command(*overrides(tmp_path, shards), "num_proc=2", before=slow),
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
        cwd=ROOT,
        start_new_session=True,
    )
    for _ in range(3):
        process.stdout.readline()
    os.killpg(process.pid, signal.SIGINT)  # as a terminal does: to the parent and every worker
    _, errors = process.communicate(timeout=20)
    complaint = [line for line in errors.splitlines() if not line.startswith("reading documents")]
    assert process.returncode == 130 and complaint == ["error: interrupted; the same command continues from here"]
    assert json.loads((tmp_path / "prepare.partial" / "progress.json").read_bytes())["splits"]["train"]["documents"] > 0
    prepare(local_config(tmp_path, shards))
    assert read_bins(tmp_path) == expected


def test_killed_worker_is_an_error_and_not_a_hang(tmp_path, shards, expected):
    fault = (
        FINE
        + """
from multiprocessing import active_children
original = corpus.bin_writer.BinWriter.append
def append(self, chunk):
    original(self, chunk)
    children = active_children()
    if len(children) == 2:
        os.kill(max(child.pid for child in children), signal.SIGKILL)
corpus.bin_writer.BinWriter.append = append
"""
    )
    result = run_command(*overrides(tmp_path, shards), "num_proc=2", before=fault)
    assert result.returncode == 3 and "worker process was killed" in result.stderr and "Traceback" not in result.stderr
    prepare(local_config(tmp_path, shards))
    assert read_bins(tmp_path) == expected


@pytest.mark.parametrize(("limit", "what"), [(2_000, "text.bin"), (60_000, "bins")])
def test_full_disk_is_one_line_and_can_be_continued(tmp_path, what, limit):
    # A limit on file sizes fails like a full disk; txt files are read in place, so there the bins are what does not fit.
    files = write_shards(tmp_path / "text", make_texts(300), 2)
    if what == "bins":
        (tmp_path / "text").mkdir(exist_ok=True)
        for number, text in enumerate(make_texts(400)):
            (tmp_path / "text" / f"{number:03}.txt").write_text(text, encoding="utf-8")
        files = str(tmp_path / "text" / "*.txt")
    out = tmp_path / "out"
    fault = FINE + f"import resource; resource.setrlimit(resource.RLIMIT_FSIZE, ({limit}, {limit}))"
    result = run_command(*overrides(out, files), before=fault, env=unmeasured())
    assert result.returncode == 3 and "disk is full" in result.stderr, result.stderr
    assert result.stderr.count("\n") == 2 and "Exception" not in result.stderr and "manifest.json" not in names(out)
    prepare(local_config(out, files))
    prepare(local_config(tmp_path / "clean", files))
    assert read_bins(out) == read_bins(tmp_path / "clean")


def test_disk_that_cannot_hold_the_bins_is_refused_at_the_start(tmp_path, shards, monkeypatch):
    monkeypatch.setattr(splits.shutil, "disk_usage", lambda path: splits.shutil._ntuple_diskusage(10**6, 10**6 - 1000, 1000))
    with pytest.raises(DataError, match="the disk is too small"):
        prepare(local_config(tmp_path, shards))


def test_two_runs_at_once_are_refused(tmp_path, shards):
    with module.lock_folder(tmp_path), pytest.raises(DataError, match="another prepare_owt.py is at work"):
        prepare(local_config(tmp_path, shards))
    prepare(local_config(tmp_path, shards))


@pytest.mark.parametrize(
    ("settings", "match"),
    [
        ({"source": "web"}, "huggingface, files, docs"),
        ({"tokenizer": "gpt3"}, "gpt2, bytes"),
        ({"val_fraction": 0.0}, "between 0 and 1"),
        ({"val_fraction": 1.0}, "between 0 and 1"),
        ({"num_proc": 0}, "num_proc"),
        ({"limit_documents": 0}, "limit_documents"),
        ({"files": None}, "data.files"),
        ({"files": [3]}, "data.files"),
        ({"vocab_size": 50000}, "data.vocab_size=50304 suits"),
        ({"vocab_size": 60000}, "data.vocab_size=50304 suits"),
        ({"source": "huggingface"}, "data.repo"),
        ({"split_seed": -1}, "split_seed"),
    ],
)
def test_settings_that_cannot_work(tmp_path, shards, settings, match):
    with pytest.raises(SettingError, match=match) as caught:
        prepare(local_config(tmp_path, **{"files": shards, **settings}))
    assert caught.value.exit_code == 2


def test_unexpected_counts_are_a_warning(tmp_path, shards, capsys):
    from corpus.settings import ExpectedCounts

    prepare(local_config(tmp_path, shards, expected=ExpectedCounts(documents=200, val_tokens=7)))
    errors = capsys.readouterr().err
    assert "the published count is 7" in errors and errors.count("warning") == 1


def test_long_runs_of_blanks_that_tiktoken_refuses(tmp_path):
    encoding = load_tokenizer_of(tmp_path)
    text = "x" + " " * 1_500_000 + "y" + "\n" * 5
    with pytest.raises(ValueError):
        encoding.encode_to_numpy(text)
    tokens = np.concatenate(list(coding.encode_text(encoding, text)))
    assert encoding.decode(tokens.tolist()) == text


def test_cutting_long_blanks_changes_no_token(tmp_path, monkeypatch):
    encoding = load_tokenizer_of(tmp_path)
    monkeypatch.setattr(coding, "LONG_BLANK", re.compile(r"[ \t\r\n]{4,}"))

    class GivesUpOnce:
        _pat_str, calls = encoding._pat_str, 0

        def encode_to_numpy(self, text, disallowed_special):
            self.calls += 1
            if self.calls == 1:
                raise ValueError("Max stack size exceeded for backtracking")
            return encoding.encode_to_numpy(text, disallowed_special=disallowed_special)

    for text in (
        "x     y",
        "x\n\n\n\n\n\nHello     world    \xa0z     ",
        "    a",
        "a    ",
        "\t\t\t\t\t'll    's\n\n\n\n\u30001",
    ):
        fake = GivesUpOnce()
        assert np.concatenate(list(coding.encode_text(fake, text))).tolist() == encoding.encode_ordinary(text)
        assert fake.calls > 1


def load_tokenizer_of(tmp_path):
    from corpus.tokenizer import make_tokenizer, tokenizer_json

    (tmp_path / "tokenizer.json").write_bytes(tokenizer_json(make_tokenizer("gpt2")))
    return load_tokenizer(tmp_path / "tokenizer.json")


def test_pieces_of_a_document_have_the_tokens_of_the_whole(tmp_path, monkeypatch):
    import random

    encoding = load_tokenizer_of(tmp_path)
    monkeypatch.setattr(coding, "PIECE_BYTES", 3)
    generator, alphabet, pieces_seen = (
        random.Random(0),
        "ab1Z0 \n\t'sll.,!éß漢。 \xa0\u3000\u2003\x85🙂𝟘²\u0301\r\x1c",
        0,
    )
    for _ in range(3000):
        text = "".join(generator.choices(alphabet, k=30))
        pieces = list(coding.split_document(encoding, text.encode("utf-8")))
        pieces_seen += len(pieces)
        tokens = np.concatenate([array for piece in pieces for array in coding.encode_text(encoding, piece.decode("utf-8"))])
        assert tokens.tolist() == encoding.encode_ordinary(text)
    assert pieces_seen > 6000


@pytest.mark.slow
def test_fifty_megabyte_document(tmp_path):
    big = ("the quick brown fox jumped over 13 lazy dogs\n" * 1_200_000)[:50_000_000]
    files = write_parquet(tmp_path / "big.parquet", ["a", big, "b"])
    out = tmp_path / "out"
    own, others = (f"resource.getrusage(resource.RUSAGE_{who}).ru_maxrss // 1024" for who in ("SELF", "CHILDREN"))
    measured = f"import atexit, resource; atexit.register(lambda: print('peak', {own}, {others}))"
    result = run_command(*overrides(out, files), "num_proc=2", before=measured)
    assert result.returncode == 0, result.stderr
    assert sum(info.bytes for info in read_manifest(out).splits.values()) == 50_000_002
    peaks = [int(part) for part in result.stdout.split("peak ")[1].split()]
    parent, worker = peaks  # MiB; what the parent holds while it unpacks the file varies with Arrow's pools
    assert worker < 600, peaks  # 50 MB of text in one piece took over 600 in tiktoken alone
    assert parent + 2 * worker < 2048, peaks
