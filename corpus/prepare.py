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

from corpus.adopt import adopt
from corpus.bin_writer import BinWriter
from corpus.documents import Documents, split_order
from corpus.manifest import DTYPES, MANIFEST_NAME, SPLITS, TOKEN_BYTES_NAME, TOKENIZER_NAME, DataError, SplitInfo
from corpus.parallel import Encoded, encoder, plan_chunks
from corpus.plan import Plan, PrepareConfig, check_settings, describe_tokenizer, dtype_of
from corpus.progress import ProgressReport, read_progress, record_progress
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
from corpus.sources import check_vocab_size, open_documents
from corpus.token_file import read_manifest, verify_token_files
from corpus.tokenizer import byte_lengths, make_tokenizer, tokenizer_json
from runfolder.files import write_atomically, write_json_atomically
from runfolder.lock import take

PROGRESS_NAME = "progress.json"
UNPACKED_NAME = "documents"
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
    """Hold a data folder against a second preparation and provide its scratch folder.

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
            if not any((scratch / name).exists() for name in (PROGRESS_NAME, MANIFEST_NAME, UNPACKED_NAME)):
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
            if key != "fingerprint" and planned[key] != found.get(key)
        ]
        raise DataError(
            f"{directory}: holds bins prepared with other settings ({', '.join(differing)}); "
            "overwrite=true replaces them, data.dir=DIR keeps both"
        )
    verify_token_files(directory, manifest)
    print(f"already prepared: {directory}")
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
    unpacked = scratch / UNPACKED_NAME
    progress = read_progress(scratch / PROGRESS_NAME, plan.fingerprint)
    print(
        f"reading documents: {config.data.source} {config.data.repo or config.data.files or ''}".rstrip(),
        file=sys.stderr,
        flush=True,
    )
    try:
        documents = open_documents(config.data, unpacked, config.limit_documents, num_proc, plan.fingerprint)
    except BaseException:
        shutil.rmtree(unpacked, ignore_errors=True)  # half a copy of the text is of no use to the next run
        raise
    orders = split_order(len(documents), plan.split["test_size"], plan.split["seed"])
    tokenizer_path = scratch / TOKENIZER_NAME
    write_atomically(tokenizer_path, tokenizer_json(plan.encoding))
    dtype = dtype_of(plan.encoding)
    writers = {name: BinWriter(scratch / f"{name}.bin", DTYPES[dtype].itemsize, progress[name]) for name in SPLITS}
    require_space(directory, documents, writers, plan)
    chunks = {name: plan_chunks(documents.records["length"][orders[name]], writers[name].progress.documents) for name in SPLITS}
    workers = max(1, min(num_proc, sum(map(len, chunks.values()))))
    index_path = unpacked / "order.records"

    def record() -> None:
        record_progress(scratch / PROGRESS_NAME, plan.fingerprint, {name: writer.flush() for name, writer in writers.items()})

    with encoder(tokenizer_path, documents.paths, dtype, workers) as encode:
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
    write_atomically(scratch / TOKEN_BYTES_NAME, byte_lengths(plan.encoding).tobytes())
    write_json_atomically(scratch / MANIFEST_NAME, plan.manifest(splits, repaired, altered))
    publish(directory, scratch)
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
