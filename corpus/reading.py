"""Read all files of a corpus, one after the other, from the beginning or from where an earlier run stopped."""

import hashlib
import json
import os
import sys
import time
from contextlib import suppress
from dataclasses import asdict, astuple
from pathlib import Path

from corpus.documents import READING_NAME, DocumentIndex, DocumentWriter, ReadCounts
from corpus.formats import detect
from corpus.manifest import DataError
from corpus.rows import BadRow, read_rows
from runfolder.files import write_json_atomically

SECONDS_BETWEEN_RECORDS = 2.0
SHOWN_COMPLAINTS = 5
REMEDY = "on_bad_row=skip leaves it out, and reading continues from here"


class Place:
    """How far reading is: a file, the number of its next row, and a digest of the files before it."""

    def __init__(self, paths: list[str], settings: tuple[str, int | None]) -> None:
        self.paths = paths
        self.digest = hashlib.sha256(repr(settings).encode())
        self.file = self.row = 0

    def next_file(self) -> None:
        self.digest.update(identity(self.paths[self.file]))
        self.file, self.row = self.file + 1, 0

    def describe(self) -> dict[str, object]:
        current = identity(self.paths[self.file]).decode() if self.file < len(self.paths) else ""
        return {"file": self.file, "row": self.row, "before": self.digest.hexdigest(), "current": current}


def identity(path: str) -> bytes:
    """Return what tells a file from a changed one: name, size, time of change."""
    status = os.stat(path)
    return repr((os.path.abspath(path), status.st_size, status.st_mtime_ns)).encode("utf-8", "backslashreplace")


def read_files(paths: list[str], column: str, folder: Path, limit: int | None = None, on_bad_row: str = "stop") -> DocumentIndex:
    """Return every document of the files in order; texts are addressed where they are, others unpacked into folder.

    Args:
        on_bad_row: skip leaves out a row that is no document and the rest of a damaged file, and counts them; stop ends with
            an error. Either way what was read is kept in folder, and the next call goes on behind it.

    Raises:
        DataError: a file that cannot be read, or a bad row with on_bad_row=stop.
    """
    place = Place(paths, (column, limit))
    writer = resume(place, folder, limit, on_bad_row) or DocumentWriter(folder, limit)
    recorded = time.monotonic()
    try:
        while place.file < len(paths) and not writer.is_full:
            for _ in read_file(place, writer, column, on_bad_row == "skip"):
                if time.monotonic() - recorded >= SECONDS_BETWEEN_RECORDS:
                    record(place, writer, folder)
                    recorded = time.monotonic()
            place.next_file()
    except BaseException:
        with suppress(OSError):
            record(place, writer, folder)
        writer.close()
        raise
    index = writer.finish()
    (folder / READING_NAME).unlink(missing_ok=True)
    return index


def read_file(place: Place, writer: DocumentWriter, column: str, skip: bool):
    """Append the documents of the file at place, moving place along; yield after each batch."""
    path, counts = place.paths[place.file], writer.counts
    try:
        form = detect(path)
        if (form.kind, form.compression) == ("text", None):
            writer.add_file(path)
            return
        for item in read_rows(path, form, column, place.row):
            if isinstance(item, BadRow):
                leave_out(counts, DataError(item.complaint), skip, REMEDY)
                counts.bad_rows += 1
            else:
                writer.add_many(item.text, item.lengths)
                counts.repaired += item.repaired
                counts.nulls += item.nulls
            place.row = item.next_row
            if writer.is_full:
                return
            yield
    except DataError as error:
        if str(error).endswith(REMEDY):
            raise
        leave_out(counts, error, skip, "on_bad_row=skip leaves out such a file from here on")
        counts.damaged_files += 1


def leave_out(counts: ReadCounts, error: DataError, skip: bool, remedy: str) -> None:
    """Say what is left out, the first times; raise the error instead unless skip."""
    if not skip:
        raise DataError(f"{error}; {remedy}")
    if counts.bad_rows + counts.damaged_files < SHOWN_COMPLAINTS:
        print(f"left out: {error}", file=sys.stderr, flush=True)


def record(place: Place, writer: DocumentWriter, folder: Path) -> None:
    """Write down how far reading is.

    Not where texts are addressed in place: their names are in memory, and looking at them again takes seconds.
    """
    if len(writer.paths) == 1 and writer.counts.documents + writer.counts.bad_rows + writer.counts.damaged_files:
        writer.flush()
        write_json_atomically(folder / READING_NAME, {"place": place.describe(), "counts": asdict(writer.counts)})


def resume(place: Place, folder: Path, limit: int | None, on_bad_row: str) -> DocumentWriter | None:
    """Move place to where an earlier run stopped and return its writer; None if there is nothing to go on with."""
    try:
        saved = json.loads((folder / READING_NAME).read_bytes())
        counts, file, row = ReadCounts(**saved["counts"]), saved["place"]["file"], saved["place"]["row"]
        if not all(type(value) is int and value >= 0 for value in (*astuple(counts), file, row)):
            return None
        left_out = counts.bad_rows + counts.damaged_files
        if file > len(place.paths) or (left_out and on_bad_row == "stop"):
            return None
        ahead = Place(place.paths, ("", None))
        ahead.digest = place.digest.copy()
        while ahead.file < file:
            ahead.next_file()
        ahead.row = row
        if ahead.describe() != saved["place"]:
            return None
        writer = DocumentWriter(folder, limit, counts)
    except (OSError, ValueError, KeyError, TypeError, OverflowError, RecursionError):
        return None
    place.file, place.row, place.digest = ahead.file, ahead.row, ahead.digest
    print(f"reading goes on after {counts.documents:,} documents", file=sys.stderr, flush=True)
    return writer
