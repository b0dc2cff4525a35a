"""Files that are whole or not there: atomic writes, durable folders, digests."""

import hashlib
import json
import os
import secrets
from contextlib import suppress
from pathlib import Path
from typing import Any


def write_atomically(path: str | Path, content: bytes | str) -> None:
    """Write content, text as UTF-8, so that path holds either the old or the whole new content, also after a power cut.

    Raises:
        OSError: it could not be written; path is as it was.
    """
    path = Path(path)
    if isinstance(content, str):
        # Half a surrogate pair, as in a file name that is not UTF-8, becomes the escape by which JSON spells it.
        content = content.encode("utf-8", errors="backslashreplace")
    temporary = path.with_name(f".{path.name[:200]}.{secrets.token_hex(4)}.tmp")
    descriptor = os.open(temporary, os.O_WRONLY | os.O_CREAT | os.O_EXCL, 0o666)
    try:
        # Unbuffered: a buffer that could not be written to a full disk is tried again, and complains again, at exit.
        with open(descriptor, "wb", buffering=0) as file:
            view = memoryview(content)
            while view:
                view = view[file.write(view) :]
            os.fsync(descriptor)
        os.replace(temporary, path)
    except BaseException:
        with suppress(OSError):
            temporary.unlink()
        raise
    sync_path(path.parent)


def write_json_atomically(path: str | Path, value: Any) -> None:
    """Write value as deterministic JSON (sorted keys, one line per value); otherwise as write_atomically."""
    write_atomically(path, json.dumps(value, indent=1, sort_keys=True, ensure_ascii=False) + "\n")


def sync_path(path: str | Path) -> None:
    """Make a file's contents, or the renames in a folder, survive a power cut."""
    descriptor = os.open(path, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)


def sha256_of(path: str | Path) -> str:
    """Return the sha256 of a file, 64 hexadecimal digits."""
    with open(path, "rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()
