"""Encode documents on every core, straight from their bytes to token arrays, delivered in order.

Workers are spawned, not forked: the parent may have run pyarrow's or datasets' threads, and a fork copies the locks those
threads hold but not the threads. A worker imports numpy and tiktoken only, reads its documents itself and sends finished
bytes back, so the parent only writes; no text crosses a pipe.
"""

import itertools
import multiprocessing
import os
import re
import signal
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from multiprocessing import resource_tracker
from multiprocessing.connection import Connection, wait
from pathlib import Path
from typing import Any, cast

import numpy as np

from corpus.documents import RECORD, DocumentReader
from corpus.huggingface_tokenizer import HuggingFaceTokenizer
from corpus.manifest import DTYPES, DataError, first_line
from corpus.tokenizer import BYTES_PATTERN, GPT2_PATTERN, Tokenizer, load_tokenizer

CHUNK_BYTES = 2_000_000  # of text: a fraction of a second of work
DOCUMENT_COST = 100  # bytes; what a document costs beyond its text, so that empty ones fill a chunk too
CHUNKS_PER_WORKER = 6  # between the first unwritten chunk and the newest one handed out: bounds the parent's memory
PIECE_BYTES = 1_000_000
# Before a blank that follows a character that is no white space (outside ASCII, white space starts with c2, e1, e2 or e3),
# or before an ASCII digit that follows an ASCII letter. Led by one set of bytes, which `re` scans for quickly.
SAFE_CUT = re.compile(
    rb"[ \n0-9](?:(?<=[!-~][ \n])|(?<=[\xc3-\xdf][\x80-\xbf][ \n])|(?<=[\xe0\xe4-\xef][\x80-\xbf]{2}[ \n])"
    rb"|(?<=[\xf0-\xf4][\x80-\xbf]{3}[ \n])|(?<=[A-Za-z][0-9]))"
)
LONG_BLANK = re.compile(r"[ \t\r\n]{100000,}")


@dataclass(frozen=True)
class Encoded:
    """One chunk of documents as tokens: content is their little-endian bytes, EOT after each document."""

    content: bytes
    documents: int
    tokens: int
    text_bytes: int
    max_id: int
    repaired: int  # documents with invalid UTF-8, decoded with U+FFFD in its place
    altered: int  # documents whose tokens do not spell the text; tiktoken's always do


class ChunkEncoder:
    """Turn a range of an index file into tokens; what each worker holds."""

    def __init__(self, tokenizer_path: str, paths: list[str], dtype: str) -> None:
        self.encoding = load_tokenizer(tokenizer_path)
        self.reader = DocumentReader(paths)
        self.dtype = DTYPES[dtype]
        self.eot = np.array([self.encoding.eot_token], dtype=self.dtype)

    def encode(self, index_path: str, start: int, stop: int) -> Encoded:
        """Encode documents [start, stop) of an index file of RECORDs."""
        records = np.fromfile(index_path, dtype=RECORD, count=stop - start, offset=start * RECORD.itemsize)
        arrays, text_bytes, repaired, altered = [], 0, 0, 0
        for file, offset, length in records.tolist():
            is_valid = True
            try:
                for piece in split_document(self.encoding, self.reader.read(file, offset, length)):
                    try:
                        text = piece.decode("utf-8")
                        text_bytes += len(piece)
                    except UnicodeDecodeError:
                        text, is_valid = piece.decode("utf-8", "replace"), False
                        text_bytes += len(text.encode("utf-8"))
                    for tokens in encode_text(self.encoding, text):
                        arrays.append(tokens.astype(self.dtype))
                    if isinstance(self.encoding, HuggingFaceTokenizer):  # one piece, one array
                        altered += not self.encoding.spells(tokens.tolist(), text)
            except DataError:
                raise
            except ValueError as error:
                raise DataError(
                    f"{self.reader.paths[file]}: the document of {length:,} bytes at byte {offset:,} "
                    f"cannot be encoded ({first_line(error)})"
                ) from None
            arrays.append(self.eot)
            repaired += not is_valid
        tokens = np.concatenate(arrays)
        return Encoded(tokens.tobytes(), len(records), len(tokens), text_bytes, int(tokens.max()), repaired, altered)


def split_document(encoding: Tokenizer, raw: bytes) -> Iterator[bytes]:
    """Yield a document in pieces of about PIECE_BYTES whose tokens, put together, are those of the whole.

    GPT-2's expression never matches across a SAFE_CUT, never looks behind, and looks ahead from blanks alone; in the byte
    tokenizer nothing merges. Decoding is safe there too: both sides of a cut are whole characters. It bounds memory:
    tiktoken takes about ten bytes for each byte of text, and 50 MB documents may meet in all workers at once. Of other
    tokenizers nothing is known, so their documents stay whole.
    """
    start, pattern = 0, getattr(encoding, "_pat_str", None)
    while len(raw) - start > PIECE_BYTES and pattern in (GPT2_PATTERN, BYTES_PATTERN):
        cut = SAFE_CUT.search(raw, start + PIECE_BYTES)
        if cut is None:
            break
        yield raw[start : cut.start()]
        start = cut.start()
    yield raw[start:] if start else raw


def encode_text(encoding: Tokenizer, text: str) -> Iterator[np.ndarray]:
    """Yield the tokens of encode_ordinary(text) as uint32 arrays; text that spells EOT is ordinary text.

    tiktoken gives up on about a million blanks in a row. GPT-2's expression makes one match of a run of blanks but for its
    last character, so cutting there changes no token.
    """
    if isinstance(encoding, HuggingFaceTokenizer):
        yield np.array(encoding.encode_ordinary(text), dtype=np.uint32)
        return
    try:
        # Not encode_ordinary: this skips building a list of Python integers.
        yield encoding.encode_to_numpy(text, disallowed_special=())
        return
    except ValueError:
        cuts = [match.end() - 1 for match in LONG_BLANK.finditer(text) if not text[match.end() : match.end() + 1].isspace()]
        if not cuts or encoding._pat_str != GPT2_PATTERN:
            raise
    for start, stop in zip([0, *cuts], [*cuts, len(text)], strict=True):
        yield encoding.encode_to_numpy(text[start:stop], disallowed_special=())


def plan_chunks(lengths: np.ndarray, start: int) -> list[tuple[int, int]]:
    """Cut documents [start, end) into ranges of about CHUNK_BYTES of text."""
    ends = np.cumsum(lengths[start:] + DOCUMENT_COST)
    cuts = np.flatnonzero(np.diff(ends // CHUNK_BYTES)) + 1 + start
    edges = [start, *cuts.tolist(), len(lengths)]
    return [(first, last) for first, last in itertools.pairwise(edges) if last > first]


Encode = Callable[[str, list[tuple[int, int]]], Iterator[Encoded]]


@contextmanager
def encoder(tokenizer_path: Path, paths: list[str], dtype: str, workers: int) -> Iterator[Encode]:
    """Provide encode(index_path, ranges) -> results in order, on that many processes (none of its own for 1)."""
    settings = (str(tokenizer_path), paths, dtype)
    if workers == 1:
        chunk_encoder = ChunkEncoder(*settings)
        yield lambda index_path, ranges: (chunk_encoder.encode(index_path, *chunk) for chunk in ranges)
        return
    context = multiprocessing.get_context("spawn")
    processes, connections = [], []
    try:
        # Ctrl-C reaches the whole terminal group; the parent alone shall answer it. Blocked here, it stays blocked in the
        # children from their first instruction on, and reaches the parent afterwards. The tracker that multiprocessing
        # starts with the first child unblocks it, so it is started before.
        resource_tracker.ensure_running()
        signal.pthread_sigmask(signal.SIG_BLOCK, {signal.SIGINT})
        for _ in range(workers):
            ours, theirs = context.Pipe()
            process = context.Process(target=serve, args=(theirs, settings), daemon=True)
            process.start()
            theirs.close()  # so that the death of either side is an end of file at the other
            processes.append(process)
            connections.append(ours)
        signal.pthread_sigmask(signal.SIG_UNBLOCK, {signal.SIGINT})
        yield lambda index_path, ranges: run_in_order(connections, index_path, ranges)
    finally:
        signal.pthread_sigmask(signal.SIG_UNBLOCK, {signal.SIGINT})
        for process in processes:
            process.kill()
        for process in processes:
            process.join()


def run_in_order(connections: list[Connection], index_path: str, ranges: list[tuple[int, int]]) -> Iterator[Encoded]:
    """Hand ranges to whichever worker is free and yield the results in order, holding a bounded number."""
    results: dict[int, Encoded] = {}
    running: dict[Connection, list[int]] = {connection: [] for connection in connections}
    given = written = 0
    while written < len(ranges):
        # Up to two for each worker, so that it finds the next one waiting when it has sent a result.
        for depth in (0, 1):
            for connection in connections:
                if len(running[connection]) == depth and given < min(len(ranges), written + CHUNKS_PER_WORKER * len(connections)):
                    send(connection, (index_path, *ranges[given]))
                    running[connection].append(given)
                    given += 1
        for connection in cast(list[Connection], wait([c for c in connections if running[c]])):
            results[running[connection].pop(0)] = receive(connection)
        while written in results:
            yield results.pop(written)
            written += 1


def send(connection: Connection, task: tuple[str, int, int]) -> None:
    try:
        connection.send(task)
    except OSError:
        raise worker_died() from None


def receive(connection: Connection) -> Encoded:
    """Return a worker's next result; raise what it raised, or DataError if it is gone."""
    try:
        result = connection.recv()
    except (EOFError, OSError):
        raise worker_died() from None
    if isinstance(result, BaseException):
        raise result
    return result


def worker_died() -> DataError:
    return DataError(
        "a worker process was killed, often for want of memory; the same command continues, num_proc=N takes fewer workers"
    )


def serve(connection: Connection, settings: tuple[str, list[str], str]) -> None:
    """Answer tasks until the parent closes the pipe or is gone."""
    parent: Any = multiprocessing.parent_process()
    # A killed parent cannot say so, and a 50 MB document would keep this process busy for seconds.
    threading.Thread(target=lambda: (parent.join(), os._exit(1)), daemon=True).start()
    try:
        chunk_encoder = ChunkEncoder(*settings)
        while True:
            connection.send(chunk_encoder.encode(*connection.recv()))
    except (EOFError, BrokenPipeError, ConnectionResetError):
        return
    except (DataError, OSError, MemoryError) as error:
        connection.send(DataError("out of memory; num_proc=N takes fewer workers") if isinstance(error, MemoryError) else error)
