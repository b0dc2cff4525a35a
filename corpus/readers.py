"""Read documents out of parquet, JSON lines, plain text and Arrow files, naming the file in every complaint."""

import gzip
import io
import json
import zlib
from collections.abc import Iterator
from typing import BinaryIO

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq

from corpus.documents import RECORD, Documents, DocumentStore
from corpus.manifest import DataError, first_line

BATCH_BYTES = 8_000_000
ENDINGS = (".parquet", ".jsonl", ".jsonl.gz", ".jsonl.zst", ".txt")


def add_files(store: DocumentStore, paths: list[str], column: str) -> None:
    """Append the documents of all files in order."""
    for path in paths:
        ending = next((ending for ending in ENDINGS if path.lower().endswith(ending)), None)
        if ending is None:
            raise DataError(f"{path}: this kind of file is not read; there are {', '.join(ENDINGS)}")
        if ending == ".txt":
            store.add_file(path)
        elif ending == ".parquet":
            add_parquet(store, path, column)
        else:
            add_json_lines(store, path, column)


def require_column(where: str, column: str, names: list[str]) -> None:
    """Raise DataError naming the columns there are unless column is one of them."""
    if column not in names:
        raise DataError(
            f"{where}: no column {column!r}; there are: {', '.join(map(str, names)) or 'none'} (data.text_column=NAME picks one)"
        )


def add_parquet(store: DocumentStore, path: str, column: str) -> None:
    """Append the column of one parquet file, a few rows at a time."""
    for array in parquet_arrays(path, column):
        if store.is_full:
            return
        add_column(store, path, array)


def parquet_arrays(path: str, column: str) -> Iterator[pa.Array]:
    """Yield the column of a parquet file in pieces; raise DataError naming the file if it is damaged."""
    try:
        with pq.ParquetFile(path, buffer_size=1 << 20, pre_buffer=False) as file:
            require_column(path, column, file.schema_arrow.names)
            for group in range(file.num_row_groups):
                rows = file.metadata.row_group(group)
                # A row may hold a hundred bytes or fifty million: as many rows at a time as are few bytes on average.
                row_bytes = rows.total_byte_size // max(rows.num_rows, 1)
                batch_rows = max(1, min(8192, BATCH_BYTES // max(row_bytes, 1)))
                for batch in file.iter_batches(batch_size=batch_rows, row_groups=[group], columns=[column]):
                    yield batch.column(0)
    except (pa.ArrowException, OSError, EOFError) as error:
        raise DataError(f"{path}: not a sound parquet file ({first_line(error)})") from None


def add_column(store: DocumentStore, where: str, array: pa.Array) -> None:
    """Append the rows of one Arrow string array, null as an empty document, without making Python strings of them."""
    data, starts, lengths = text_extents(where, array)
    # Rows of an Arrow array lie without gaps, so their bytes are one slice.
    store.add_many(data[int(starts[0]) : int(starts[-1] + lengths[-1])] if len(lengths) else b"", lengths.tolist())


def text_extents(where: str, array: pa.Array) -> tuple[memoryview, np.ndarray, np.ndarray]:
    """Return an Arrow string array's bytes and each row's start and length therein; a null has length 0."""
    if pa.types.is_dictionary(array.type) or pa.types.is_string_view(array.type) or pa.types.is_null(array.type):
        array = array.cast(pa.large_string())
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
        return text_extents(where, pa.array(array.fill_null("").to_pylist(), type=pa.large_string()))
    return memoryview(data_buffer if data_buffer else b""), offsets[:-1], lengths


def index_arrow_files(paths: list[str], column: str, expected: int, limit: int | None) -> Documents | None:
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
    return Documents(paths, records[:limit]) if len(records) == expected else None


def add_json_lines(store: DocumentStore, path: str, column: str) -> None:
    """Append the column of each line's object; invalid UTF-8 is replaced and counted, null is an empty document."""
    for number, line in enumerate(open_lines(path), start=1):
        if store.is_full:
            return
        if line.strip():
            content, is_valid = json_text(f"{path}, line {number}", line, column)
            store.repaired += not is_valid
            store.add(content)


def json_text(where: str, line: bytes, column: str) -> tuple[bytes, bool]:
    """Return one line's text as UTF-8 and whether it was valid as it stood."""
    try:
        decoded, is_valid = line.decode("utf-8"), True
    except UnicodeDecodeError:
        decoded, is_valid = line.decode("utf-8", "replace"), False
    try:
        row = json.loads(decoded)
    except (ValueError, RecursionError) as error:
        raise DataError(f"{where}: not JSON ({first_line(error)})") from None
    if not isinstance(row, dict):
        raise DataError(f"{where}: not a JSON object")
    require_column(where, column, list(row))
    value = "" if row[column] is None else row[column]
    if not isinstance(value, str):
        raise DataError(f"{where}: {column} holds {type(value).__name__}, not text")
    try:
        return value.encode("utf-8"), is_valid
    except UnicodeEncodeError:  # half a surrogate pair, which JSON can spell and UTF-8 cannot: replaced as tiktoken does
        return value.encode("utf-16", "surrogatepass").decode("utf-16", "replace").encode("utf-8"), False


def open_lines(path: str) -> Iterator[bytes]:
    """Yield the lines of a plain, gzip or zstd file; raise DataError naming it where it is damaged or cut short."""
    try:
        source: BinaryIO | io.BufferedReader | gzip.GzipFile
        if path.lower().endswith(".gz"):
            source = gzip.open(path, "rb")
        elif path.lower().endswith(".zst"):
            source = io.BufferedReader(pa.input_stream(path, compression="zstd"), buffer_size=1 << 20)
        else:
            source = open(path, "rb")
        with source:
            first = source.readline()
            yield first.removeprefix(b"\xef\xbb\xbf")  # a byte order mark is no part of the text
            yield from source
    except (OSError, EOFError, zlib.error, pa.ArrowException) as error:
        raise DataError(f"{path}: not a sound file ({first_line(error)})") from None
