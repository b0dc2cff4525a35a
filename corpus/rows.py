"""Read rows of text out of one file: batches of documents, and what is wrong with a row or a file, each by its name."""

import json
from collections.abc import Iterator
from dataclasses import dataclass

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq

from corpus.documents import RECORD, DocumentIndex
from corpus.formats import DAMAGE, Format, damaged, open_stream
from corpus.manifest import DataError, first_line

BATCH_BYTES = 8_000_000  # of parquet
LINES_BYTES = 1_000_000  # of JSON's text
LARGEST_ARRAY = 2_000_000_000  # bytes of one JSON array, which is read as a whole


@dataclass
class Batch:
    """Consecutive documents: their bytes without gaps, each one's length, and the number of the row after the last."""

    text: bytes | bytearray | memoryview
    lengths: list[int]
    next_row: int
    repaired: int = 0  # documents whose invalid UTF-8 was replaced
    nulls: int = 0  # rows without a value: empty documents


@dataclass(frozen=True)
class BadRow:
    """A row that is no document; the rows after it can be read."""

    complaint: str
    next_row: int


def read_rows(path: str, form: Format, column: str, start: int) -> Iterator[Batch | BadRow]:
    """Yield what a file holds from row start on; a compressed text is one row.

    Raises:
        DataError: it is damaged, or has no such column of text.
    """
    try:
        if form.kind == "parquet":
            yield from column_batches(path, parquet_arrays(path, column), start)
        elif form.kind == "arrow":
            yield from column_batches(path, arrow_arrays(path, column), start)
        elif form.kind == "json":
            yield from json_batches(path, form.compression, column, start)
        elif start == 0:
            with open_stream(path, form.compression) as file:
                text = file.read()
            yield Batch(text, [len(text)], 1)
    except DAMAGE as error:
        if form.kind in ("parquet", "arrow") and not isinstance(error, DataError):
            raise DataError(f"{path}: not a sound {form.kind} file ({first_line(error)})") from None
        raise damaged(path, error) from None


def require_column(where: str, column: str, names: list[str]) -> None:
    """Raise DataError naming the columns there are unless column is one of them."""
    if column not in names:
        raise DataError(
            f"{where}: no column {column!r}; there are: {', '.join(map(str, names)) or 'none'} (data.text_column=NAME picks one)"
        )


def parquet_arrays(path: str, column: str) -> Iterator[pa.Array]:
    """Yield the column of a parquet file in pieces."""
    with pq.ParquetFile(path, buffer_size=1 << 20, pre_buffer=False) as file:
        require_column(path, column, file.schema_arrow.names)
        for group in range(file.num_row_groups):
            rows = file.metadata.row_group(group)
            # A row may hold a hundred bytes or fifty million: as many rows at a time as are few bytes on average.
            row_bytes = rows.total_byte_size // max(rows.num_rows, 1)
            batch_rows = max(1, min(8192, BATCH_BYTES // max(row_bytes, 1)))
            for batch in file.iter_batches(batch_size=batch_rows, row_groups=[group], columns=[column]):
                yield batch.column(0)


def arrow_arrays(path: str, column: str) -> Iterator[pa.Array]:
    """Yield the column of an Arrow file (also feather) or stream (datasets' save_to_disk)."""
    with pa.memory_map(path) as source:
        try:
            reader = pa.ipc.open_file(source)
            batches = map(reader.get_batch, range(reader.num_record_batches))
        except pa.ArrowInvalid:
            source.seek(0)
            reader = batches = pa.ipc.open_stream(source)
        require_column(path, column, reader.schema.names)
        for batch in batches:
            yield batch.column(column)


def column_batches(where: str, arrays: Iterator[pa.Array], start: int) -> Iterator[Batch]:
    """Yield Arrow string arrays as batches, null as an empty document, without making Python strings of them."""
    row = 0
    for array in arrays:
        row += len(array)
        if row > start:
            rest = array.slice(max(len(array) - (row - start), 0))
            data, starts, lengths = text_extents(where, rest)
            # Rows of an Arrow array lie without gaps, so their bytes are one slice.
            text = data[int(starts[0]) : int(starts[-1] + lengths[-1])] if len(lengths) else b""
            yield Batch(text, lengths.tolist(), row, nulls=rest.null_count)


def text_extents(where: str, array: pa.Array) -> tuple[memoryview, np.ndarray, np.ndarray]:
    """Return an Arrow string array's bytes and each row's start and length therein; a null has length 0.

    Raises:
        DataError: its type is no text, or a row reaches outside its data.
    """
    if pa.types.is_dictionary(array.type):
        array = array.dictionary_decode()  # not cast to strings: the values may be bytes that are no UTF-8
    if pa.types.is_string_view(array.type) or pa.types.is_null(array.type):
        array = array.cast(pa.large_string())
    elif pa.types.is_binary_view(array.type) or pa.types.is_fixed_size_binary(array.type):
        array = array.cast(pa.large_binary())
    wide = pa.types.is_large_string(array.type) or pa.types.is_large_binary(array.type)
    if not wide and not pa.types.is_string(array.type) and not pa.types.is_binary(array.type):
        raise DataError(f"{where}: the text column holds {array.type}, not text")
    _, offsets_buffer, data_buffer = array.buffers()
    if len(array) == 0:
        return memoryview(b""), np.zeros(0, np.int64), np.zeros(0, np.int64)
    width = np.dtype("<i8" if wide else "<i4")
    offsets = np.frombuffer(offsets_buffer, dtype=width, count=len(array) + 1, offset=array.offset * width.itemsize).astype(
        np.int64
    )
    lengths = np.diff(offsets)
    if lengths.min() < 0 or offsets[0] < 0 or offsets[-1] > (data_buffer.size if data_buffer else 0):
        raise DataError(f"{where}: damaged, a row reaches outside its data")
    if array.null_count and lengths[np.asarray(array.is_null())].any():
        # Allowed by the format though no writer does it: rebuild the array with nothing behind its nulls.
        return text_extents(where, pa.array(array.to_pylist(), type=array.type))
    return memoryview(data_buffer if data_buffer else b""), offsets[:-1], lengths


def index_arrow_files(paths: list[str], column: str, expected: int, limit: int | None) -> DocumentIndex | None:
    """Address the rows of a text column inside Arrow stream files, None if they cannot be (compressed, or reordered rows)."""
    pieces = []
    for number, path in enumerate(paths):
        with pa.memory_map(path) as source:
            base, size = source.read_buffer(), source.size()
        with pa.ipc.open_stream(pa.BufferReader(base)) as stream:
            for batch in stream:
                array = batch.column(column)
                if not (pa.types.is_string(array.type) or pa.types.is_large_string(array.type)):
                    return None
                _, starts, lengths = text_extents(path, array)
                data = array.buffers()[2]
                place = (data.address if data else base.address) - base.address
                if not 0 <= place <= size:
                    return None
                records = np.empty(len(array), dtype=RECORD)
                records["file"], records["offset"], records["length"] = number, place + starts, lengths
                pieces.append(records)
    records = np.concatenate(pieces) if pieces else np.empty(0, dtype=RECORD)
    return DocumentIndex(paths, records[:limit]) if len(records) == expected else None


def json_batches(path: str, compression: str | None, column: str, start: int) -> Iterator[Batch | BadRow]:
    """Yield the column of each row's object; invalid UTF-8 is replaced and counted, null is an empty document."""
    text = bytearray()
    batch = Batch(text, [], start)
    try:
        for number, line in json_rows(path, compression):
            if number <= start:
                continue
            row = json_text(f"{path}, line {number}", line, column)
            if isinstance(row, str):
                if batch.lengths:
                    yield batch
                yield BadRow(row, number)
                text = bytearray()
                batch = Batch(text, [], number)
                continue
            content, is_valid = row
            text += content or b""
            batch.lengths.append(len(content or b""))
            batch.next_row, batch.repaired, batch.nulls = number, batch.repaired + (not is_valid), batch.nulls + (content is None)
            if len(text) + 8 * len(batch.lengths) >= LINES_BYTES:
                yield batch
                text = bytearray()
                batch = Batch(text, [], number)
    except DAMAGE:
        if batch.lengths:
            yield batch
        raise
    if batch.lengths:
        yield batch


def json_rows(path: str, compression: str | None) -> Iterator[tuple[int, bytes | object]]:
    """Yield (number from 1 on, row) of JSON lines, blank ones left out, or of the one array that a .json file holds.

    Raises:
        DataError: the array is too large. Of damaged files, what the reader of their compression raises (DAMAGE).
    """
    with open_stream(path, compression) as file:
        first = file.readline().removeprefix(b"\xef\xbb\xbf")  # a byte order mark is no part of the text
        if first.lstrip()[:1] == b"[" and ".json" in path.lower() and ".jsonl" not in path.lower():
            content = first + file.read(LARGEST_ARRAY)
            if len(content) > LARGEST_ARRAY:
                raise DataError(f"{path}: one JSON array of more than {LARGEST_ARRAY:,} bytes; write it as lines: jq -c '.[]'")
            yield from enumerate(json.loads(content.decode("utf-8", "replace")), start=1)
            return
        if first.strip():
            yield 1, first
        for number, line in enumerate(file, start=2):
            if line.strip():
                yield number, line


def json_text(where: str, line: bytes | object, column: str) -> tuple[bytes | None, bool] | str:
    """Return one row's text as UTF-8 (None for null) and whether it was valid; a complaint if the row is no document."""
    row, is_valid = line, True
    if isinstance(line, bytes):
        try:
            decoded = line.decode("utf-8")
        except UnicodeDecodeError:
            decoded, is_valid = line.decode("utf-8", "replace"), False
        try:
            row = json.loads(decoded)
        except (ValueError, RecursionError) as error:
            return f"{where}: not JSON ({first_line(error)})"
    if not isinstance(row, dict):
        return f"{where}: not a JSON object"
    if column not in row:
        names = ", ".join(map(str, row)) or "none"
        return f"{where}: no column {column!r}; there are: {names[:500]} (data.text_column=NAME picks one)"
    value = row[column]
    if value is None:
        return None, is_valid
    if not isinstance(value, str):
        return f"{where}: {column} holds {type(value).__name__}, not text"
    try:
        return value.encode("utf-8"), is_valid
    except UnicodeEncodeError:  # half a surrogate pair, which JSON can spell and UTF-8 cannot: replaced as tiktoken does
        return value.encode("utf-16", "surrogatepass").decode("utf-16", "replace").encode("utf-8"), False
