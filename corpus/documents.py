"""Where each document's bytes lie: file, offset and length, so that any worker can read any document with one pread.

The split is shuffled, so documents are read in random order. A memory map would do, but its touched pages count towards
resident memory and a 40 GB corpus would fill it; twenty bytes of index per document do not.
"""

import io
import json
import os
from array import array
from dataclasses import asdict, astuple, dataclass, field
from pathlib import Path
from typing import Self

import numpy as np

from corpus.manifest import DataError
from runfolder.files import write_json_atomically

TEXT_NAME, RECORDS_NAME, INDEX_NAME = "text.bin", "documents.records", "documents.json"
READING_NAME = "reading.json"  # how far a killed run had read
RECORD = np.dtype([("file", "<i4"), ("offset", "<i8"), ("length", "<i8")])


@dataclass
class ReadCounts:
    """What was read so far; text_bytes counts those of the one flat file alone."""

    documents: int = 0
    text_bytes: int = 0
    repaired: int = 0  # documents whose invalid UTF-8 was replaced on reading
    nulls: int = 0  # rows without a value: empty documents
    bad_rows: int = 0  # left out
    damaged_files: int = 0  # left out from the damage on


@dataclass(frozen=True)
class DocumentIndex:
    """A corpus in its original order."""

    paths: list[str]
    records: np.ndarray  # (documents,) RECORD
    counts: ReadCounts = field(default_factory=ReadCounts)

    def __len__(self) -> int:
        return len(self.records)

    def save(self, folder: Path, fingerprint: str) -> None:
        """Write the index so that a later run can skip reading the source."""
        self.records.tofile(folder / RECORDS_NAME)
        description = {
            "fingerprint": fingerprint,
            "documents": len(self),
            "paths": self.paths,
            "counts": asdict(self.counts),
        }
        write_json_atomically(folder / INDEX_NAME, description)

    @classmethod
    def load(cls, folder: Path, fingerprint: str) -> Self | None:
        """Return the index a completed earlier run left in folder, None if its settings or files are others."""
        try:
            saved = json.loads((folder / INDEX_NAME).read_bytes())
            paths, count, counts = saved["paths"], saved["documents"], ReadCounts(**saved["counts"])
            kinds = {type(path) for path in paths} | {type(value) for value in astuple(counts)}
            if saved["fingerprint"] != fingerprint or kinds != {str, int}:
                return None
            sizes = np.array([os.path.getsize(path) for path in paths if os.path.isfile(path)], dtype=np.int64)
            records = np.fromfile(folder / RECORDS_NAME, dtype=RECORD)
        except (OSError, ValueError, KeyError, TypeError, OverflowError, RecursionError):
            return None
        if len(records) != count or len(sizes) != len(paths):
            return None
        file, offset, length = (records[name].astype(np.int64) for name in ("file", "offset", "length"))
        # Compared in this order, no sum can overflow.
        is_inside = (file >= 0) & (file < len(sizes)) & (offset >= 0) & (length >= 0)
        is_inside &= offset <= sizes[file.clip(0, len(sizes) - 1)] - length
        return cls(paths, records, counts) if is_inside.all() else None


class DocumentWriter:
    """Collect documents in order, unpacking into one flat file those whose bytes cannot be addressed where they are."""

    def __init__(self, folder: Path, limit: int | None, counts: ReadCounts | None = None) -> None:
        """Begin in folder, or go on after what counts says that an earlier run wrote there.

        Raises:
            OSError: the folder cannot be written.
            ValueError: the folder holds less than counts says.
        """
        self.limit, self.counts = limit, counts or ReadCounts()
        self.paths = [str(folder / TEXT_NAME)]
        self.file = open_at(folder / TEXT_NAME, self.counts.text_bytes)
        self.records_file = open_at(folder / RECORDS_NAME, self.counts.documents * RECORD.itemsize)
        self.pending, self.pending_lengths = bytearray(), array("q")

    @property
    def is_full(self) -> bool:
        return self.limit is not None and self.counts.documents >= self.limit

    def add(self, text: bytes) -> None:
        self.add_many(text, [len(text)])

    def add_many(self, text: bytes | bytearray | memoryview, lengths: list[int]) -> None:
        """Append consecutive documents, whose bytes follow each other in text without gaps, up to the limit."""
        if self.limit is not None and self.counts.documents + len(lengths) > self.limit:
            lengths = lengths[: self.limit - self.counts.documents]
            text = memoryview(text)[: sum(lengths)]
        self.pending += text
        self.pending_lengths.extend(lengths)
        self.counts.documents += len(lengths)
        if len(self.pending) + 8 * len(self.pending_lengths) >= 1 << 20:
            self.flush()

    def add_file(self, path: str) -> None:
        """Append a whole file as one document, read later from where it is."""
        if not self.is_full:
            self.flush()
            lengths = np.array([os.path.getsize(path)], dtype=np.int64)
            write_all(self.records_file, consecutive_records(lengths, file=len(self.paths), start=0).tobytes())
            self.paths.append(os.path.abspath(path))
            self.counts.documents += 1

    def flush(self) -> None:
        """Write what is pending, so that counts is true of the files."""
        lengths = np.array(self.pending_lengths, dtype=np.int64)
        write_all(self.file, self.pending)
        write_all(self.records_file, consecutive_records(lengths, file=0, start=self.counts.text_bytes).tobytes())
        self.counts.text_bytes += len(self.pending)
        self.pending, self.pending_lengths = bytearray(), array("q")

    def close(self) -> None:
        self.file.close()
        self.records_file.close()

    def finish(self) -> DocumentIndex:
        self.flush()
        self.close()
        records = np.fromfile(self.records_file.name, dtype=RECORD)
        return DocumentIndex(self.paths, records, self.counts)


def open_at(path: Path, size: int) -> io.FileIO:
    """Open a file for writing behind its first size bytes; what was there is cut off.

    Raises:
        ValueError: it is shorter than size.
    """
    if size and (not path.is_file() or path.stat().st_size < size):
        raise ValueError(f"{path}: shorter than {size:,} bytes")
    file = io.FileIO(path, "r+" if size else "w+")
    file.truncate(size)
    file.seek(size)
    return file


def write_all(file: io.RawIOBase, content: bytes | bytearray) -> None:
    """Write every byte to an unbuffered file.

    Unbuffered, because a buffer that could not be written to a full disk is tried again, and complains again, at exit.
    """
    view = memoryview(content)
    while view:
        view = view[file.write(view) :]


def consecutive_records(lengths: np.ndarray, file: int, start: int) -> np.ndarray:
    """Return the records of documents that lie without gaps from start on in one file."""
    records = np.empty(len(lengths), dtype=RECORD)
    records["file"], records["length"] = file, lengths
    records["offset"] = start + np.cumsum(lengths) - lengths
    return records


def cut_in_two(index: DocumentIndex, val_fraction: float) -> DocumentIndex:
    """Return an index of two documents, the first and the last part of the only one, cut between two characters.

    The part behind the cut is val_fraction of the bytes, rounded up to whole characters.

    Raises:
        DataError: the document is too short for two parts.
    """
    file, offset, length = index.records.tolist()[0]
    cut = int(length * (1 - val_fraction))
    near = DocumentReader(index.paths).read(file, offset + max(cut - 4, 0), min(cut, 4) + (cut < length))
    while cut > 0 and len(near) and near[-1] & 0xC0 == 0x80:  # inside a character
        cut, near = cut - 1, near[:-1]
    if not 0 < cut < length:
        raise DataError(f"1 document of {length:,} bytes is not enough for a train and a val split (val_fraction {val_fraction})")
    records = np.array([(file, offset, cut), (file, offset + cut, length - cut)], dtype=RECORD)
    return DocumentIndex(index.paths, records, index.counts)


def split_order(count: int, test_size: float, seed: int) -> dict[str, np.ndarray]:
    """Return which documents each split holds and in what order, exactly as datasets' train_test_split(shuffle=True) does.

    A test compares it with the library: computing it here needs neither that import nor an Arrow copy of the corpus.

    Raises:
        DataError: there are too few documents for two splits.
    """
    val_count = int(np.ceil(test_size * count))
    if count - val_count < 1 or val_count < 1:
        raise DataError(
            f"{count} documents are not enough for a train and a val split (val_fraction {test_size}); at least 2 are needed"
        )
    order = np.random.default_rng(seed).permutation(count)
    return {"train": order[val_count:], "val": order[:val_count]}


class DocumentReader:
    """Read documents by record, keeping few files open however many there are."""

    MAX_OPEN = 256

    def __init__(self, paths: list[str]) -> None:
        self.paths = paths
        self.open: dict[int, int] = {}

    def read(self, file: int, offset: int, length: int) -> bytes:
        """Return the bytes of one document; raise DataError naming the file if they are not all there."""
        try:
            if file not in self.open:
                if len(self.open) >= self.MAX_OPEN:
                    os.close(self.open.pop(next(iter(self.open))))
                self.open[file] = os.open(self.paths[file], os.O_RDONLY)
            parts, missing = [], length
            while missing:  # one call reads at most 2 GiB
                part = os.pread(self.open[file], missing, offset + length - missing)
                if not part:
                    raise DataError(f"{self.paths[file]}: ends before byte {offset + length}; it changed while it was being read")
                parts.append(part)
                missing -= len(part)
        except OSError as error:
            raise DataError(f"{self.paths[file]}: {error.strerror}") from None
        return parts[0] if len(parts) == 1 else b"".join(parts)
