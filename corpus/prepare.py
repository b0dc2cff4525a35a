"""Prepare one data folder: documents in, token bins and a manifest out, from the beginning or from where a run was killed."""

import errno
import fcntl
import os
import shutil
import sys
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import asdict
from pathlib import Path
from typing import Any

from corpus.bin_writer import BinWriter
from corpus.documents import Documents, split_order
from corpus.manifest import MANIFEST_NAME, SPLITS, TOKEN_BYTES_NAME, TOKENIZER_NAME, DataError, SplitInfo
from corpus.parallel import Encoded, encoder, plan_chunks
from corpus.plan import Plan, PrepareConfig, check_settings
from corpus.progress import ProgressReport, read_progress, record_progress
from corpus.sources import check_vocab_size, open_documents
from corpus.token_file import read_manifest, verify_token_files
from corpus.tokenizer import make_tokenizer
from runfolder.files import sync_path, write_json_atomically
from runfolder.lock import take

PROGRESS_NAME = "progress.json.partial"
SCRATCH_NAME = "documents.partial"
SECONDS_BETWEEN_RECORDS = 2.0  # a killed run repeats at most this much work
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
        plan = Plan(config, encoding)
        directory.mkdir(parents=True, exist_ok=True)
        with exclusive(directory):
            if is_prepared(directory, plan, config.overwrite):
                print(f"already prepared: {directory}")
            else:
                build(directory, config, plan)
    except KeyboardInterrupt:
        raise Interrupted("interrupted; the same command continues from here") from None
    except OSError as error:
        if error.errno in FULL_DISK:
            raise DataError(
                f"{directory}: the disk is full ({error.strerror}); free some space, then the same command continues"
            ) from None
        raise DataError(f"{error.filename or directory}: {error.strerror or error}") from None


@contextmanager
def exclusive(directory: Path) -> Iterator[None]:
    """Hold the folder against a second run; the lock ends with the process however it ends."""
    path = directory / "prepare.lock.partial"
    with open(path, "a+b") as file:
        if not take(file, fcntl.flock):
            raise DataError(f"{directory}: another prepare_owt.py is at work here; wait for it, or pass another data.dir")
        try:
            yield
        finally:
            path.unlink(missing_ok=True)


def is_prepared(directory: Path, plan: Plan, overwrite: bool) -> bool:
    """Say whether the folder already holds what the plan would produce; raise DataError if it holds something else."""
    if overwrite or not (directory / MANIFEST_NAME).exists():
        return False
    manifest = read_manifest(directory)
    if manifest.source.get("fingerprint") != plan.fingerprint:
        pairs = (
            ("source", plan.source, manifest.source),
            ("split", plan.split, manifest.split),
            ("tokenizer", plan.tokenizer, asdict(manifest.tokenizer)),
        )
        differing = [
            f"{part}.{key}"
            for part, planned, found in pairs
            for key in planned
            if key != "fingerprint" and planned[key] != found.get(key)
        ]
        raise DataError(
            f"{directory}: holds bins prepared with other settings ({', '.join(differing)}); "
            "overwrite=true replaces them, data.dir=DIR keeps both"
        )
    verify_token_files(directory, manifest)
    return True


def build(directory: Path, config: PrepareConfig, plan: Plan) -> None:
    """Tokenize every split, then put all files in place with the manifest last."""
    started = time.monotonic()
    num_proc = config.num_proc or len(os.sched_getaffinity(0))
    scratch = directory / SCRATCH_NAME
    progress = read_progress(directory / PROGRESS_NAME, plan.fingerprint)
    print(
        f"reading documents: {config.data.source} {config.data.repo or config.data.files or ''}".rstrip(),
        file=sys.stderr,
        flush=True,
    )
    try:
        documents = open_documents(config.data, scratch, config.limit_documents, num_proc, plan.fingerprint)
    except BaseException:
        shutil.rmtree(scratch, ignore_errors=True)  # half a copy of the text is of no use to the next run
        raise
    orders = split_order(len(documents), plan.split["test_size"], plan.split["seed"])
    tokenizer_path = scratch / TOKENIZER_NAME
    tokenizer_path.write_bytes(plan.tokenizer_json)
    writers = {name: BinWriter(directory / f"{name}.bin", 2 if plan.dtype == "uint16" else 4, progress[name]) for name in SPLITS}
    require_space(directory, documents, writers, plan)
    chunks = {name: plan_chunks(documents.records["length"][orders[name]], writers[name].progress.documents) for name in SPLITS}
    workers = max(1, min(num_proc, sum(map(len, chunks.values()))))
    index_path = scratch / "order.records"

    def record() -> None:
        record_progress(directory / PROGRESS_NAME, plan.fingerprint, {name: writer.flush() for name, writer in writers.items()})

    with encoder(tokenizer_path, documents.paths, plan.dtype, workers) as encode:
        for name in SPLITS:
            documents.records[orders[name]].tofile(index_path)
            write_split(
                writers[name],
                encode(str(index_path), chunks[name]),
                ProgressReport(name, len(orders[name]), writers[name].progress.documents),
                record,
            )
    repaired = documents.repaired + sum(writer.progress.repaired for writer in writers.values())
    altered = sum(writer.progress.altered for writer in writers.values())
    splits = {name: writer.finish() for name, writer in writers.items()}
    publish(directory, plan, splits, plan.manifest(splits, repaired, altered))
    summarize(directory, config, splits, repaired, time.monotonic() - started)
    if altered:
        print(
            f"warning: in {altered:,} documents the tokens do not spell the text byte for byte (the tokenizer normalizes "
            "it); bits per byte is that of the tokens' bytes",
            file=sys.stderr,
        )


def require_space(directory: Path, documents: Documents, writers: dict[str, BinWriter], plan: Plan) -> None:
    """Raise DataError now rather than hours later if the bins cannot fit on the disk."""
    # English is about 4.5 bytes per GPT-2 token; 7 keeps the estimate below what is really needed.
    bytes_per_token = 1 if plan.encoding.name == "bytes" else 7
    itemsize = writers["train"].itemsize
    needed = int(documents.records["length"].sum()) * itemsize // bytes_per_token
    missing = needed - sum(writer.progress.tokens * itemsize for writer in writers.values()) - shutil.disk_usage(directory).free
    if missing > 0:
        raise DataError(f"{directory}: the disk is too small, the bins need at least {needed:,} bytes and {missing:,} are wanting")


def write_split(writer: BinWriter, chunks: Iterator[Encoded], report: ProgressReport, record: Callable[[], None]) -> None:
    """Append every chunk of one split, recording now and then how far it is."""
    recorded = time.monotonic()
    try:
        for chunk in chunks:
            writer.append(chunk)
            report.update(chunk.documents, chunk.tokens)
            if time.monotonic() - recorded >= SECONDS_BETWEEN_RECORDS:
                record()
                recorded = time.monotonic()
    except KeyboardInterrupt:
        record()
        raise
    finally:
        report.close()
    record()


def publish(directory: Path, plan: Plan, splits: dict[str, SplitInfo], manifest: dict[str, Any]) -> None:
    """Give every file its final name, the manifest last: where it is, everything is."""
    (directory / MANIFEST_NAME).unlink(missing_ok=True)  # overwrite=true: no old manifest over new bins
    for name, content in ((TOKENIZER_NAME, plan.tokenizer_json), (TOKEN_BYTES_NAME, plan.token_bytes)):
        partial = directory / f"{name}.partial"
        partial.write_bytes(content)
        os.replace(partial, directory / name)
    for info in splits.values():
        os.replace(directory / f"{info.file}.partial", directory / info.file)
    sync_path(directory)
    write_json_atomically(directory / MANIFEST_NAME, manifest)
    (directory / PROGRESS_NAME).unlink(missing_ok=True)
    shutil.rmtree(directory / SCRATCH_NAME, ignore_errors=True)


def summarize(directory: Path, config: PrepareConfig, splits: dict[str, SplitInfo], repaired: int, seconds: float) -> None:
    """Print what was written, and a warning where published counts differ."""
    for info in splits.values():
        print(f"{directory / info.file}: {info.tokens:,} tokens, {info.documents:,} documents, {info.bytes:,} bytes of text")
    print(
        f"prepared {directory} in {seconds:.1f} s" + (f"; invalid UTF-8 was replaced in {repaired:,} documents" if repaired else "")
    )
    if config.limit_documents is None:
        counts = {
            "documents": sum(info.documents for info in splits.values()),
            **{f"{name}_tokens": info.tokens for name, info in splits.items()},
        }
        for key, actual in counts.items():
            expected = getattr(config.data.expected, key)
            if expected is not None and expected != actual:
                print(f"warning: {actual:,} {key.replace('_', ' ')}, the published count is {expected:,}", file=sys.stderr)
