"""Where each document's bytes lie: file, offset and length, so that any worker can read any document with one pread.

The split is shuffled, so documents are read in random order. A memory map would do, but its touched pages count towards
resident memory and a 40 GB corpus would fill it; twenty bytes of index per document do not.
"""

import io
import json
import os
from array import array
from dataclasses import dataclass
from pathlib import Path
from typing import Self

import numpy as np

from corpus.manifest import DataError
from runfolder.files import write_json_atomically

RECORD = np.dtype([("file", "<i4"), ("offset", "<i8"), ("length", "<i8")])


@dataclass(frozen=True)
class Documents:
    """A corpus in its original order; repaired counts documents whose invalid UTF-8 was already replaced on reading."""

    paths: list[str]
    records: np.ndarray  # (documents,) RECORD
    repaired: int = 0

    def __len__(self) -> int:
        return len(self.records)

    def save(self, folder: Path, fingerprint: str) -> None:
        """Write the index so that a later run can skip reading the source."""
        self.records.tofile(folder / "documents.records")
        description = {
            "fingerprint": fingerprint,
            "documents": len(self),
            "paths": self.paths,
            "repaired": self.repaired,
        }
        write_json_atomically(folder / "documents.json", description)

    @classmethod
    def load(cls, folder: Path, fingerprint: str) -> Self | None:
        """Return the index a completed earlier run left in folder, None if its settings or files are others."""
        try:
            saved = json.loads((folder / "documents.json").read_bytes())
            paths, repaired, count = saved["paths"], saved["repaired"], saved["documents"]
            kinds = {type(path) for path in paths} | {type(repaired)}
            if saved["fingerprint"] != fingerprint or kinds != {str, int}:
                return None
            sizes = np.array([os.path.getsize(path) for path in paths if os.path.isfile(path)], dtype=np.int64)
            records = np.fromfile(folder / "documents.records", dtype=RECORD)
        except (OSError, ValueError, KeyError, TypeError, OverflowError, RecursionError):
            return None
        if len(records) != count or len(sizes) != len(paths):
            return None
        file, offset, length = (records[name].astype(np.int64) for name in ("file", "offset", "length"))
        # Compared in this order, no sum can overflow.
        is_inside = (file >= 0) & (file < len(sizes)) & (offset >= 0) & (length >= 0)
        is_inside &= offset <= sizes[file.clip(0, len(sizes) - 1)] - length
        return cls(paths, records, repaired) if is_inside.all() else None


class DocumentStore:
    """Collect documents in order, unpacking into one flat file those whose bytes cannot be addressed where they lie."""

    def __init__(self, path: Path, limit: int | None) -> None:
        self.limit = limit
        self.paths = [str(path)]
        self.file = open(path, "wb", buffering=0)
        self.count, self.size, self.repaired = 0, 0, 0
        self.records: list[np.ndarray] = []
        self.pending, self.pending_lengths = bytearray(), array("q")

    @property
    def is_full(self) -> bool:
        return self.limit is not None and self.count >= self.limit

    def add(self, text: bytes) -> None:
        self.add_many(text, [len(text)])

    def add_many(self, text: bytes | memoryview, lengths: list[int]) -> None:
        """Append consecutive documents whose bytes lie in text without gaps, up to the limit."""
        if self.limit is not None and self.count + len(lengths) > self.limit:
            lengths = lengths[: self.limit - self.count]
            text = memoryview(text)[: sum(lengths)]
        self.pending += text
        self.pending_lengths.extend(lengths)
        self.count += len(lengths)
        if len(self.pending) + 8 * len(self.pending_lengths) >= 1 << 20:
            self.write_pending()

    def add_file(self, path: str) -> None:
        """Append a whole file as one document, read later from where it is."""
        if not self.is_full:
            self.write_pending()
            lengths = np.array([os.path.getsize(path)], dtype=np.int64)
            self.records.append(consecutive_records(lengths, file=len(self.paths), start=0))
            self.paths.append(os.path.abspath(path))
            self.count += 1

    def write_pending(self) -> None:
        lengths = np.array(self.pending_lengths, dtype=np.int64)
        self.records.append(consecutive_records(lengths, file=0, start=self.size))
        write_all(self.file, self.pending)
        self.size += len(self.pending)
        self.pending, self.pending_lengths = bytearray(), array("q")

    def finish(self) -> Documents:
        self.write_pending()
        self.file.close()
        return Documents(self.paths, np.concatenate(self.records), self.repaired)


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


def split_order(count: int, test_size: float, seed: int) -> dict[str, np.ndarray]:
    """Return which documents each split holds and in what order, exactly as datasets' train_test_split(shuffle=True) does.

    A test compares it with the library: computing it here needs neither that import nor an Arrow copy of the corpus.
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
