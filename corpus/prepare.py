"""Prepare one data folder: documents in, token bins and a manifest out, from the beginning or from where a run was killed."""

import errno
import fcntl
import os
import shutil
import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import asdict
from pathlib import Path
from typing import Any

import numpy as np

from corpus.adopt import adopt
from corpus.documents import INDEX_NAME, READING_NAME, DocumentIndex, cut_in_two, split_order
from corpus.manifest import MANIFEST_NAME, TOKEN_BYTES_NAME, TOKENIZER_NAME, DataError, SplitInfo, read_manifest
from corpus.plan import Plan, describe_tokenizer
from corpus.progress import PROGRESS_NAME
from corpus.publication import (
    ADOPTED,
    LOCK_NAME,
    SCRATCH_NAME,
    foreign,
    forget_publication,
    is_complete,
    is_own_manifest,
    publish,
    refuse_foreign_files,
    refuse_foreign_scratch,
)
from corpus.settings import PrepareConfig, check_settings, check_vocab_size
from corpus.sources import open_documents
from corpus.splits import encode_splits
from corpus.token_file import verify_token_files
from corpus.tokenizer import byte_lengths, make_tokenizer, tokenizer_json
from runfolder.files import write_atomically, write_json_atomically
from runfolder.lock import take

UNPACKED_NAME = "documents"
# What a run leaves that the next one can continue from.
CONTINUED = (PROGRESS_NAME, MANIFEST_NAME, f"{UNPACKED_NAME}/{INDEX_NAME}", f"{UNPACKED_NAME}/{READING_NAME}")
SHORT_VALIDATION = 1024  # tokens: one window of a common context
FULL_DISK = (errno.ENOSPC, errno.EDQUOT, errno.EFBIG)


class Interrupted(Exception):
    """Ctrl-C; the message says how to go on."""

    exit_code = 130


def prepare(config: PrepareConfig) -> None:
    """Write train.bin, val.bin, the tokenizer and the manifest into config.data.dir.

    Raises SettingError (2), DataError (3) or Interrupted (130); each leaves a folder that the same command continues.
    """
    check_settings(config)
    directory = Path(config.data.dir)
    try:
        encoding = make_tokenizer(config.tokenizer.name, config.tokenizer.files, config.tokenizer.eos_token)
        check_vocab_size(config.data.vocab_size, encoding.name, encoding.n_vocab)
        if config.adopt:
            adopt(directory, config.data, encoding)
            return
        plan = Plan.make(config, encoding)
        if not is_prepared(directory, plan, config.overwrite):  # asked before anything is written: the folder may be read-only
            with lock_folder(directory) as scratch:
                build(directory, scratch, config, plan)
    except KeyboardInterrupt:
        raise Interrupted("interrupted; the same command continues from here") from None
    except OSError as error:
        if error.errno in FULL_DISK:
            raise DataError(
                f"{directory}: the disk is full ({error.strerror}); free some space, then the same command continues"
            ) from None
        raise DataError(f"{error.filename or directory}: {error.strerror or error}") from None


@contextmanager
def lock_folder(directory: Path) -> Iterator[Path]:
    """Lock a data folder against a second preparation and provide its scratch folder.

    The lock ends with the process however it ends. The scratch folder stays if the next run can continue from it.

    Raises:
        DataError: another preparation is at work, or the scratch folder's name is taken.
    """
    scratch = directory / SCRATCH_NAME
    refuse_foreign_scratch(scratch)
    scratch.mkdir(parents=True, exist_ok=True)
    with open(scratch / LOCK_NAME, "a+b") as file:
        if not take(file, fcntl.flock):
            raise DataError(f"{directory}: another prepare_owt.py is at work here; wait for it, or pass another data.dir")
        try:
            yield scratch
        finally:
            if not any((scratch / name).exists() for name in CONTINUED):
                shutil.rmtree(scratch, ignore_errors=True)


def is_prepared(directory: Path, plan: Plan, overwrite: bool) -> bool:
    """Say, also to the user, whether the folder already holds what the plan would produce.

    Raises:
        DataError: it holds something else.
    """
    if overwrite or not (directory / MANIFEST_NAME).exists():
        return False
    if not is_own_manifest(directory / MANIFEST_NAME):
        raise foreign(directory / MANIFEST_NAME)
    manifest = read_manifest(directory)
    if manifest.source["kind"] == ADOPTED:
        raise DataError(f"{directory}: holds bins that were adopted; train.py reads them, data.dir=DIR prepares elsewhere")
    if manifest.source.get("fingerprint") != plan.fingerprint:
        pairs = (
            ("source", plan.source, manifest.source),
            ("split", plan.split, manifest.split),
            ("tokenizer", describe_tokenizer(plan.encoding), asdict(manifest.tokenizer)),
        )
        differing = [
            f"{part}.{key}"
            for part, planned, found in pairs
            for key in planned
            if key not in ("fingerprint", "method", "shuffle") and planned[key] != found.get(key)
        ]
        raise DataError(
            f"{directory}: holds bins prepared with other settings ({', '.join(differing)}); "
            "overwrite=true replaces them, data.dir=DIR keeps both"
        )
    verify_token_files(directory, manifest)
    left_out = sum(manifest.source.get(key) or 0 for key in ("bad_rows", "damaged_files"))
    print(f"already prepared: {directory}" + (f" ({left_out:,} bad rows or files were left out)" if left_out else ""))
    return True


def build(directory: Path, scratch: Path, config: PrepareConfig, plan: Plan) -> None:
    """Tokenize every split in scratch, then put all files in place with the manifest last."""
    if is_complete(directory, scratch, plan.fingerprint):
        publish(directory, scratch)
        print(f"prepared {directory}: a run that was killed had only its files left to move")
        return
    refuse_foreign_files(directory, scratch)
    forget_publication(directory, scratch)
    started = time.monotonic()
    num_proc = config.num_proc or len(os.sched_getaffinity(0))
    say(f"reading documents: {config.data.source} {config.data.repo or config.data.files or ''}".rstrip())
    index = open_documents(config, plan.files, scratch / UNPACKED_NAME, num_proc, plan.fingerprint)
    index, orders, split = split_documents(index, plan.split)
    write_atomically(scratch / TOKENIZER_NAME, tokenizer_json(plan.encoding))
    writers = encode_splits(scratch, index, orders, plan, num_proc)
    splits = {name: writer.finish() for name, writer in writers.items()}
    counts = {
        "invalid_utf8_documents": index.counts.repaired + sum(writer.progress.repaired for writer in writers.values()),
        "altered_documents": sum(writer.progress.altered for writer in writers.values()),
        "null_rows": index.counts.nulls,
        "bad_rows": index.counts.bad_rows,
        "damaged_files": index.counts.damaged_files,
    }
    write_atomically(scratch / TOKEN_BYTES_NAME, byte_lengths(plan.encoding).tobytes())
    write_json_atomically(scratch / MANIFEST_NAME, plan.manifest(splits, split, counts))
    publish(directory, scratch)
    summarize(directory, config, splits, counts, time.monotonic() - started)


def split_documents(index: DocumentIndex, split: dict[str, Any]) -> tuple[DocumentIndex, dict[str, np.ndarray], dict[str, Any]]:
    """Return the documents, which of them each split holds in what order, and how the manifest describes that.

    One document, a book or nanoGPT's input.txt, is cut: its end is the validation split.
    """
    if len(index) != 1:
        return index, split_order(len(index), split["test_size"], split["seed"]), split
    index = cut_in_two(index, split["test_size"])
    length = int(index.records["length"][1])
    say(f"one document: its last {length:,} bytes (data.val_fraction={split['test_size']}) are the validation split")
    return index, {"train": np.array([0]), "val": np.array([1])}, {**split, "method": "position", "shuffle": False}


def summarize(directory: Path, config: PrepareConfig, splits: dict[str, SplitInfo], counts: dict[str, int], seconds: float) -> None:
    """Print what was written, and warnings: left out, altered, too short, other counts than published."""
    for info in splits.values():
        print(f"{directory / info.file}: {info.tokens:,} tokens, {info.documents:,} documents, {info.bytes:,} bytes of text")
    print(f"prepared {directory} in {seconds:.1f} s")
    messages = {
        "invalid_utf8_documents": "invalid UTF-8 was replaced in {:,} documents",
        "null_rows": "{:,} rows without a text became empty documents",
        "bad_rows": "{:,} bad rows were left out",
        "damaged_files": "{:,} damaged files were left out from the damage on",
        "altered_documents": "in {:,} documents the tokens do not spell the text byte for byte (the tokenizer normalizes it); "
        "bits per byte is that of the tokens' bytes",
    }
    for key, message in messages.items():
        if counts[key]:
            say(f"warning: {message.format(counts[key])}")
    if splits["val"].tokens <= SHORT_VALIDATION:
        say(f"warning: val.bin holds only {splits['val'].tokens:,} tokens; a larger data.val_fraction makes it longer")
    if config.limit_documents is None:
        documents = sum(info.documents for info in splits.values())
        found = {"documents": documents, **{f"{name}_tokens": info.tokens for name, info in splits.items()}}
        for key, actual in found.items():
            expected = getattr(config.data.expected, key)
            if expected is not None and expected != actual:
                say(f"warning: {actual:,} {key.replace('_', ' ')}, the published count is {expected:,}")


def say(message: str) -> None:
    print(message, file=sys.stderr, flush=True)
