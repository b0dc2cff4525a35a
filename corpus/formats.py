"""What a file holds, by its first bytes; its name decides only between kinds of text."""

import bz2
import gzip
import io
import lzma
import os
import zlib
from dataclasses import dataclass
from pathlib import Path
from typing import IO, cast

import pyarrow as pa

from corpus.files import COMPRESSIONS, TABLES, kind_by_name, without_compression
from corpus.manifest import DataError, first_line

READ = "parquet, arrow, JSON (a row a line, or one array), text, each also as .gz .zst .bz2 .xz"
DAMAGE = (OSError, EOFError, ValueError, RecursionError, zlib.error, lzma.LZMAError, pa.ArrowException)


@dataclass(frozen=True)
class Format:
    kind: str  # one of ENDINGS
    compression: str | None  # one of COMPRESSIONS


def detect(path: str) -> Format:
    """Return what a file holds.

    Raises:
        DataError: it cannot be opened, or is of a kind that is not read.
    """
    by_name, lowered = kind_by_name(path), path.lower()
    try:
        with open(path, "rb") as file:
            start = file.read(64)
        compression = next((name for name, (magics, _) in COMPRESSIONS.items() if start.startswith(magics)), None)
        if compression is None and lowered != without_compression(lowered) and start.lstrip()[:1] not in (b"{", b"["):
            raise DataError(f"{path}: not a sound file (its name says {os.path.splitext(path)[1]}, its content does not)")
        if compression is not None:
            with open_stream(path, compression) as file:
                start = file.read(64)
    except DAMAGE as error:
        raise damaged(path, error) from None
    if start.startswith((b"\xff\xfe", b"\xfe\xff")):  # a byte order mark, of what some programs call Unicode
        raise DataError(f"{path}: UTF-16, which is not read; write it anew: iconv -f UTF-16 -t UTF-8 {Path(path).name} > NEW")
    if start.startswith(b"PAR1") or by_name == "parquet":
        kind = "parquet"
    elif start.startswith((b"ARROW1", b"\xff\xff\xff\xff")) or by_name == "arrow":
        kind = "arrow"
    elif by_name is not None:
        kind = by_name
    elif without_compression(lowered).endswith(TABLES) or b"\x00" in start:
        raise DataError(f"{path}: this kind of file is not read; there are {READ}")
    else:
        kind = "json" if start.removeprefix(b"\xef\xbb\xbf").lstrip()[:1] == b"{" else "text"
    if compression and kind in ("parquet", "arrow"):
        raise DataError(f"{path}: {kind} inside {compression} is not read; decompress it first")
    return Format(kind, compression)


def open_stream(path: str, compression: str | None) -> IO[bytes]:
    """Open a file, decompressed; frames that were appended to each other are one stream."""
    if compression == "zstd":
        return io.BufferedReader(pa.input_stream(path, compression="zstd"), buffer_size=1 << 20)
    if compression == "gzip":
        return cast(IO[bytes], gzip.open(path, "rb"))
    if compression == "bz2":
        return bz2.open(path, "rb")
    return lzma.open(path, "rb") if compression == "xz" else open(path, "rb")


def damaged(path: str, error: BaseException) -> DataError:
    """Return the complaint about a file that cannot be read to its end."""
    if isinstance(error, DataError):
        return error
    reason = first_line(error)
    if "too much memory" in reason:  # a window above 128 MiB, which no reader here has room for
        return DataError(
            f"{path}: compressed with a long window, which is not read; write it anew: "
            f"zstd -dc --long=31 {Path(path).name} | zstd -o NEW.zst"
        )
    return DataError(f"{path}: not a sound file ({reason})")
