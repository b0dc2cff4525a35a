"""The tokenizer: the published one, found without network, saved so that a run folder needs nothing else."""

import hashlib
import json
import os
import shutil
import subprocess
import sys
import time

import numpy as np
import pytest
import tiktoken
from corpus_support import ROOT

from corpus import tokenizer as module
from corpus.token_file import DataError
from corpus.tokenizer import byte_lengths, load_tokenizer, make_tokenizer, packaged_files, tokenizer_json

PACKAGED = packaged_files()  # before any test hides them
TEXT = "Hello, I'm a language model,\n\n  naïve 漢字 🙂 <|endoftext|> don't 1984\t "


@pytest.fixture
def nowhere(tmp_path, monkeypatch):
    """A machine without tiktoken's cache and without the package that carries the files."""
    monkeypatch.setenv("TIKTOKEN_CACHE_DIR", str(tmp_path / "empty"))
    monkeypatch.setattr(module, "packaged_files", dict)


def test_gpt2_ids_are_the_published_ones():
    encoding = make_tokenizer("gpt2")
    assert encoding.encode_ordinary("Hello world") == [15496, 995]
    assert encoding.encode_ordinary("Hello, I'm a language model,") == [15496, 11, 314, 1101, 257, 3303, 2746, 11]
    assert encoding.n_vocab == 50257 and encoding.eot_token == 50256
    assert 50256 not in encoding.encode_ordinary("<|endoftext|>")


def test_parsed_merges_equal_the_published_table():
    table = json.loads(packaged_files()["encoder.json"].read_text(encoding="utf-8"))
    assert len(table) == 50257 and sorted(make_tokenizer("gpt2")._mergeable_ranks.values()) == list(range(50256))
    from tiktoken.load import data_gym_to_mergeable_bpe_ranks

    files = packaged_files()
    os.environ.setdefault("TIKTOKEN_CACHE_DIR", "")
    assert make_tokenizer("gpt2")._mergeable_ranks == data_gym_to_mergeable_bpe_ranks(
        str(files["vocab.bpe"]), str(files["encoder.json"])
    )


@pytest.mark.parametrize("name", ["gpt2", "bytes"])
def test_saved_tokenizer_is_the_same_and_deterministic(tmp_path, name):
    encoding = make_tokenizer(name)
    path = tmp_path / "tokenizer.json"
    path.write_bytes(tokenizer_json(encoding))
    loaded = load_tokenizer(path)
    assert loaded.encode_ordinary(TEXT) == encoding.encode_ordinary(TEXT)
    assert loaded.decode(loaded.encode_ordinary(TEXT)) == TEXT
    assert loaded.encode("<|endoftext|>", allowed_special="all") == [encoding.eot_token]
    assert tokenizer_json(loaded) == path.read_bytes()


def test_bytes_tokenizer_is_utf8():
    encoding = make_tokenizer("bytes")
    assert encoding.encode_ordinary(TEXT) == list(TEXT.encode("utf-8")) and (encoding.n_vocab, encoding.eot_token) == (
        257,
        256,
    )
    assert np.array_equal(byte_lengths(encoding), [1] * 256 + [0])


@pytest.mark.parametrize(
    "change",
    [
        {"eot_id": 3},
        {"vocab_size": 300},
        {"mergeable_ranks": ["AA=="]},
        {"mergeable_ranks": ["?"]},
        {"mergeable_ranks": 5},
        {"pattern": "("},
        {"pattern": 5},
        {"special_tokens": {}},
        {"special_tokens": {"<|endoftext|>": 5}},
        {"special_tokens": None},
    ],
    ids=str,
)
def test_damaged_saved_tokenizer_is_refused(tmp_path, change):
    path = tmp_path / "tokenizer.json"
    path.write_text(json.dumps({**json.loads(tokenizer_json(make_tokenizer("bytes"))), **change}))
    with pytest.raises(DataError, match="tokenizer.json"):
        load_tokenizer(path)
    path.unlink()
    with pytest.raises(DataError, match="tokenizer.json: missing"):
        load_tokenizer(path)


def test_files_folder_is_used_verified_and_left_alone(tmp_path, nowhere):
    for name, path in PACKAGED.items():
        shutil.copy(path, tmp_path / name)
    assert make_tokenizer("gpt2", str(tmp_path)).encode_ordinary("Hello world") == [15496, 995]
    damaged = tmp_path / "vocab.bpe"
    content = damaged.read_bytes()[:-1]
    damaged.write_bytes(content)
    with pytest.raises(DataError, match=r"vocab\.bpe: sha256 .*1ce1664773c5"):
        make_tokenizer("gpt2", str(tmp_path))
    assert damaged.read_bytes() == content
    with pytest.raises(DataError, match="neither vocab.bpe nor gpt2.tiktoken"):
        make_tokenizer("gpt2", str(tmp_path / "empty"))


def test_rank_file_gives_the_same_tokenizer(tmp_path, nowhere, monkeypatch):
    import base64

    encoding = module.make_tokenizer("gpt2", str(next(iter(PACKAGED.values())).parent))
    ordered = sorted(encoding._mergeable_ranks.items(), key=lambda item: item[1])
    (tmp_path / "gpt2.tiktoken").write_bytes(b"".join(base64.b64encode(token) + b" %d\n" % rank for token, rank in ordered))
    assert hashlib.sha256((tmp_path / "gpt2.tiktoken").read_bytes()).hexdigest() == module.PUBLISHED["gpt2.tiktoken"][0]
    assert tokenizer_json(make_tokenizer("gpt2", str(tmp_path))) == tokenizer_json(encoding)


def test_tiktoken_cache_is_used_and_never_damaged(tmp_path, nowhere, monkeypatch):
    monkeypatch.setenv("TIKTOKEN_CACHE_DIR", str(tmp_path))
    monkeypatch.setattr(tiktoken, "get_encoding", lambda name: pytest.fail("went to the network"))
    for name, path in PACKAGED.items():
        shutil.copy(path, tmp_path / module.PUBLISHED[name][1])
    assert make_tokenizer("gpt2").encode_ordinary("Hello world") == [15496, 995]


def test_the_network_gets_three_seconds(nowhere, monkeypatch):
    monkeypatch.setattr(tiktoken, "get_encoding", lambda name: time.sleep(30))
    monkeypatch.setattr(module, "NETWORK_LIMIT_SECONDS", 0.2)
    started = time.monotonic()
    with pytest.raises(DataError, match=r"vocab\.bpe .*encoder\.json .*tokenizer\.files=DIR"):
        make_tokenizer("gpt2")
    assert time.monotonic() - started < 2 and module.NETWORK_LIMIT_SECONDS < 5


def test_command_without_files_or_network_ends_soon(tmp_path):
    # A proxy that accepts and never answers: the worst network there is.
    import socket

    with socket.create_server(("127.0.0.1", 0)) as server:
        proxy = f"http://127.0.0.1:{server.getsockname()[1]}"
        environment = {**os.environ, "TIKTOKEN_CACHE_DIR": str(tmp_path), "HTTPS_PROXY": proxy, "https_proxy": proxy}
        before = "import corpus.tokenizer as t; t.packaged_files = dict; t.NETWORK_LIMIT_SECONDS = 0.5"
        from corpus_support import command

        started = time.monotonic()
        result = subprocess.run(
            command(f"data.dir={tmp_path / 'out'}", before=before),
            env=environment,
            capture_output=True,
            text=True,
            cwd=ROOT,
            timeout=30,
        )
        seconds = time.monotonic() - started
    # Half a second of waiting, and starting Python on a machine that may be busy.
    assert result.returncode == 3 and seconds < 10, (seconds, result.stderr)
    assert (
        result.stderr.count("\n") == 1
        and "vocab.bpe" in result.stderr
        and "encoder.json" in result.stderr
        and "tokenizer.files" in result.stderr
    )


def test_nothing_heavy_is_imported_by_workers():
    code = "import sys, corpus.workers, corpus.token_file; "
    code += "print([m for m in ('torch', 'datasets', 'pyarrow', 'hydra', 'pandas') if m in sys.modules])"
    assert subprocess.run([sys.executable, "-c", code], cwd=ROOT, capture_output=True, text=True).stdout.strip() == "[]"
    code = (
        "import sys, corpus.prepare, prepare_owt; print([m for m in ('torch', 'datasets', 'pyarrow', 'hydra') if m in sys.modules])"
    )
    assert subprocess.run([sys.executable, "-c", code], cwd=ROOT, capture_output=True, text=True).stdout.strip() == "[]"
