"""Long stretches of text for the length extrapolation: each inside one document, if there are documents so long."""

import glob
import hashlib
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

import numpy as np

from corpus import reading
from corpus.documents import DocumentReader
from corpus.manifest import MANIFEST_NAME, DataError, first_line
from corpus.token_file import TokenFile, open_token_file
from lab.evaluation.hub import note_if_offline
from lab.evaluation.trained_run import MeasuredRun, data_folder, open_bins

PG19 = "emozilla/pg19"  # the books as parquet; deepmind/pg19 is a script, which datasets no longer runs
SCANNED_TOKENS = 1 << 24  # at a time, in search of the ends of documents


@dataclass(frozen=True)
class LongText:
    """Spans of token ids (n_spans, span_tokens + 1), int64; the first id of each is only read, never predicted."""

    spans: np.ndarray
    documents: int  # that the spans come from; 0: cut from the stream of all documents joined
    source: str

    def describe(self) -> dict[str, Any]:
        return {
            "source": self.source,
            "inside_documents": self.documents > 0,
            "documents": self.documents,
            "spans": self.spans.shape[0],
            "span_tokens": self.spans.shape[1] - 1,
            "sha256": hashlib.sha256(np.ascontiguousarray(self.spans, dtype="<i8").tobytes()).hexdigest(),
        }


def read_long_text(run: MeasuredRun, data: str | None, split: str, column: str, span_tokens: int, max_tokens: int) -> LongText:
    """Return spans of span_tokens + 1 ids, at most max_tokens tokens in all (but one span at least).

    Args:
        data: a folder written by prepare_owt.py (None: the run's own), "pg19" for its test books, or a glob of text files.

    Raises:
        DataError: there is no such text, it was made with another tokenizer, or all of it is shorter than one span.
    """
    count = max(1, max_tokens // span_tokens)
    if data == "pg19":
        return choose_spans([encode(run, text) for text in pg19_books()], "PG19 test", span_tokens, count)
    folder = Path(data) if data else data_folder(run)
    if folder.is_dir() or data is None:
        manifest = open_bins(run, folder, split, 1)
        tokens = open_token_file(folder, split, manifest)
        return choose_from_bins(tokens, manifest.tokenizer.eot_id, f"{manifest.name} {split}", span_tokens, count)
    if not glob.glob(data, recursive=True):
        raise DataError(f"data={data}: neither a folder with {MANIFEST_NAME}, nor pg19, nor a glob that matches files")
    texts = documents_of(sorted(p for p in glob.glob(data, recursive=True) if Path(p).is_file()), column)
    return choose_spans([encode(run, text) for text in texts], Path(data).name, span_tokens, count)


def encode(run: MeasuredRun, text: str) -> np.ndarray:
    return np.array(run.tokenizer.encode_ordinary(text), dtype=np.int64)


def pg19_books() -> list[str]:
    """Return the test books of PG19 from the hub; raise DataError if they cannot be had."""
    silence = note_if_offline()
    import datasets

    try:
        return [row["text"] for row in datasets.load_dataset(PG19, split="test", streaming=True)]
    except Exception as error:  # of datasets, its hub client and its HTTP library: they have no common base
        reason = silence or f"{type(error).__name__}: {first_line(error)}"
        raise DataError(
            f"data=pg19: {PG19} cannot be loaded ({reason}); data=DIR takes prepared bins, data='x/*.txt' local text"
        ) from None


def documents_of(paths: list[str], column: str) -> Iterator[str]:
    """Yield the documents of files in any format that prepare_owt.py reads."""
    with TemporaryDirectory() as scratch:
        documents = reading.read_files(paths, column, Path(scratch))
        reader = DocumentReader(documents.paths)
        for file, offset, length in documents.records.tolist():
            yield reader.read(file, offset, length).decode("utf-8", "replace")


def choose_from_bins(tokens: TokenFile, eot_id: int, source: str, span_tokens: int, count: int) -> LongText:
    """Choose spans between the end-of-text tokens of a bin."""
    ends = [np.array([-1])]
    for start in range(0, len(tokens), SCANNED_TOKENS):
        piece = tokens.read_window(start, min(SCANNED_TOKENS, len(tokens) - start))
        ends.append(start + np.flatnonzero(piece == eot_id))
    bounds = np.append(np.concatenate(ends), len(tokens))
    starts, lengths = bounds[:-1] + 1, np.diff(bounds) - 1
    chosen, documents = deal_spans(lengths.tolist(), span_tokens, count)
    places = [int(starts[document]) + offset for document, offset in chosen] or spread(len(tokens), span_tokens, count)
    return gather(lambda place: tokens.read_window(place, span_tokens + 1), places, documents, source, len(tokens))


def choose_spans(texts: list[np.ndarray], source: str, span_tokens: int, count: int) -> LongText:
    """Choose spans inside documents given as token ids."""
    chosen, documents = deal_spans([len(text) for text in texts], span_tokens, count)
    if chosen:
        return gather(lambda c: texts[c[0]][c[1] : c[1] + span_tokens + 1], chosen, documents, source, 0)
    stream = np.concatenate(texts) if texts else np.empty(0, np.int64)
    places = spread(len(stream), span_tokens, count)
    return gather(lambda place: stream[place : place + span_tokens + 1], places, 0, source, len(stream))


def deal_spans(lengths: list[int], span_tokens: int, count: int) -> tuple[list[tuple[int, int]], int]:
    """Return (document, offset) of up to count spans, the first of every document before the second of any, and of how many."""
    fit = [(length - 1) // span_tokens for length in lengths]
    dealt = [
        (document, turn * span_tokens) for turn in range(max(fit, default=0)) for document, spans in enumerate(fit) if turn < spans
    ][:count]
    return dealt, len({document for document, _ in dealt})


def spread(length: int, span_tokens: int, count: int) -> list[int]:
    """Return the places of up to count spans, evenly spread over a stream of length tokens."""
    available = (length - 1) // span_tokens
    count = min(available, count)
    return [i * available // count * span_tokens for i in range(count)]


def gather(read: Any, places: list[Any], documents: int, source: str, available: int) -> LongText:
    if not places:
        raise DataError(f"{source}: {available:,} tokens are fewer than one span of the largest length; lower multiples=")
    return LongText(np.stack([read(place) for place in places]).astype(np.int64), documents, source)
