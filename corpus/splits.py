"""Encode the splits into the scratch folder, recording how far each is."""

import shutil
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import numpy as np

from corpus.bin_writer import BinWriter
from corpus.documents import DocumentIndex
from corpus.encoding import Encoded, plan_chunks
from corpus.manifest import DTYPES, SPLITS, TOKENIZER_NAME, DataError
from corpus.plan import Plan, dtype_of
from corpus.progress import PROGRESS_NAME, ProgressReport, read_progress, record_progress
from corpus.workers import encoder

ORDER_NAME = "order.records"  # of the split being encoded: its documents' records in its order
SECONDS_BETWEEN_RECORDS = 2.0  # a killed run repeats at most this much work


def encode_splits(
    scratch: Path, index: DocumentIndex, orders: dict[str, np.ndarray], plan: Plan, num_proc: int
) -> dict[str, BinWriter]:
    """Write the tokens of every split into scratch, from where a killed run was; return the writers, still open.

    Raises:
        DataError: the disk is too small, or a document cannot be encoded.
    """
    progress = read_progress(scratch / PROGRESS_NAME, plan.fingerprint)
    dtype = dtype_of(plan.encoding)
    writers = {name: BinWriter(scratch / f"{name}.bin", DTYPES[dtype].itemsize, progress[name]) for name in SPLITS}
    require_space(scratch.parent, index, writers, plan)
    chunks = {name: plan_chunks(index.records["length"][orders[name]], writers[name].progress.documents) for name in SPLITS}
    workers = max(1, min(num_proc, sum(map(len, chunks.values()))))
    index_path = scratch / ORDER_NAME

    def record() -> None:
        record_progress(scratch / PROGRESS_NAME, plan.fingerprint, {name: writer.flush() for name, writer in writers.items()})

    with encoder(scratch / TOKENIZER_NAME, index.paths, dtype, workers) as encode:
        for name in SPLITS:
            index.records[orders[name]].tofile(index_path)
            report = ProgressReport(name, len(orders[name]), writers[name].progress.documents)
            write_split(writers[name], encode(str(index_path), chunks[name]), report, record)
    return writers


def require_space(directory: Path, index: DocumentIndex, writers: dict[str, BinWriter], plan: Plan) -> None:
    """Raise DataError now rather than hours later if the bins cannot fit on the disk."""
    # English is about 4.5 bytes per GPT-2 token; 7 keeps the estimate below what is really needed.
    bytes_per_token = 1 if plan.encoding.name == "bytes" else 7
    itemsize = writers["train"].itemsize
    needed = int(index.records["length"].sum()) * itemsize // bytes_per_token
    missing = needed - sum(writer.progress.tokens * itemsize for writer in writers.values()) - shutil.disk_usage(directory).free
    if missing > 0:
        raise DataError(
            f"{directory}: the disk is too small: the bins need at least {needed:,} bytes, {missing:,} more than it has"
        )


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
