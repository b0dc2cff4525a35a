"""Encode documents on every core, delivered in order.

Workers are spawned, not forked: the parent may have run pyarrow's or datasets' threads, and a fork copies the locks those
threads hold but not the threads. A worker imports numpy and tiktoken only, reads its documents itself and sends finished
bytes back, so the parent only writes; no text crosses a pipe.
"""

import multiprocessing
import os
import signal
import threading
from collections import deque
from collections.abc import Callable, Iterator
from concurrent.futures import Future, ProcessPoolExecutor
from concurrent.futures.process import BrokenProcessPool
from contextlib import contextmanager
from functools import cache
from multiprocessing import resource_tracker
from pathlib import Path

from corpus.encoding import ChunkEncoder, Encoded
from corpus.manifest import DataError

CHUNKS_PER_WORKER = 6  # between the first unwritten chunk and the newest one handed out: bounds the parent's memory

Encode = Callable[[str, list[tuple[int, int]]], Iterator[Encoded]]
settings: tuple[str, list[str], str]  # of this process, if it is a worker: what ChunkEncoder takes


@contextmanager
def encoder(tokenizer_path: Path, paths: list[str], dtype: str, workers: int) -> Iterator[Encode]:
    """Provide encode(index_path, ranges) -> results in order, on that many processes (none of its own for 1).

    Raises:
        DataError: from encode, a document that cannot be encoded, or a worker that was killed.
    """
    if workers == 1:
        only = ChunkEncoder(str(tokenizer_path), paths, dtype)
        yield lambda index_path, ranges: (only.encode(index_path, *chunk) for chunk in ranges)
        return
    before = set(multiprocessing.active_children())
    context = multiprocessing.get_context("spawn")
    pool = ProcessPoolExecutor(workers, mp_context=context, initializer=begin_work, initargs=(str(tokenizer_path), paths, dtype))
    try:
        yield lambda index_path, ranges: run_in_order(pool, workers, index_path, ranges)
    except BaseException:
        for worker in set(multiprocessing.active_children()) - before:
            worker.kill()  # one may be busy with a long document for half a minute
        raise
    finally:
        pool.shutdown(cancel_futures=True)


def run_in_order(pool: ProcessPoolExecutor, workers: int, index_path: str, ranges: list[tuple[int, int]]) -> Iterator[Encoded]:
    """Hand ranges to the pool and yield the results in order, holding a bounded number.

    Raises:
        DataError: a worker could not encode a document, was killed, or ran out of memory.
    """
    waiting: deque[Future[Encoded]] = deque()
    remaining = iter(ranges)
    try:
        while True:
            with without_interrupts():
                while len(waiting) < CHUNKS_PER_WORKER * workers and (chunk := next(remaining, None)) is not None:
                    waiting.append(pool.submit(encode_chunk, index_path, *chunk))
            if not waiting:
                return
            yield waiting.popleft().result()
    except BrokenProcessPool:
        raise DataError(
            "a worker process was killed, often because memory ran out; the same command continues, num_proc=N takes fewer workers"
        ) from None
    except MemoryError:
        raise DataError("out of memory; num_proc=N takes fewer workers") from None


@contextmanager
def without_interrupts() -> Iterator[None]:
    """Block Ctrl-C while workers start.

    It reaches the whole terminal group, and the parent alone answers it. Blocked here, it stays blocked in the workers from
    their first instruction on, and reaches the parent afterwards. The tracker that multiprocessing starts with the first child
    unblocks it, so it is started before.
    """
    resource_tracker.ensure_running()
    previous = signal.pthread_sigmask(signal.SIG_BLOCK, {signal.SIGINT})
    try:
        yield
    finally:
        signal.pthread_sigmask(signal.SIG_SETMASK, previous)


def begin_work(tokenizer_path: str, paths: list[str], dtype: str) -> None:
    """Remember what a worker encodes with, and end it with its parent."""
    global settings
    settings = tokenizer_path, paths, dtype
    threading.Thread(target=end_with_parent, daemon=True).start()


def end_with_parent() -> None:
    """End this process when its parent ends: a killed parent cannot say so, and a long document takes seconds."""
    parent = multiprocessing.parent_process()
    if parent is not None:
        parent.join()
    os._exit(1)


def encode_chunk(index_path: str, start: int, stop: int) -> Encoded:
    """Encode documents [start, stop) of an index file, in a worker."""
    return chunk_encoder().encode(index_path, start, stop)


@cache
def chunk_encoder() -> ChunkEncoder:
    """Load the tokenizer, once; with the first chunk, so that what is wrong with it becomes that chunk's error."""
    return ChunkEncoder(*settings)
