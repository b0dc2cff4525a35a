"""Read token bins; numpy and the standard library only, so that the engine starts quickly."""

import hashlib
import json
import os
from pathlib import Path
from typing import Any

import numpy as np

from corpus.manifest import DTYPES, SPLITS, TOKEN_BYTES_NAME, TOKENIZER_NAME, DataError, Manifest, read_manifest, remedy

__all__ = [
    "DataError",
    "Manifest",
    "TokenFile",
    "open_token_file",
    "read_manifest",
    "token_byte_lengths",
    "verify_digests",
    "write_json_atomically",
]


class TokenFile:
    """One open split: len(), read_window(), and tokens, a read-only memory map for whole-file scans."""

    def __init__(self, path: Path, dtype: np.dtype, length: int) -> None:
        self.path, self.dtype, self.length = path, dtype, length
        self.descriptor = os.open(path, os.O_RDONLY | getattr(os, "O_CLOEXEC", 0))
        self.tokens = np.memmap(path, dtype=dtype, mode="r", shape=(length,))

    def __len__(self) -> int:
        return self.length

    def read_window(self, start: int, length: int) -> np.ndarray:
        """Return tokens [start, start + length) in a fresh array; raise DataError if the file has shrunk.

        Not through the map: pages of a map count towards the resident memory of the job, and touching one beyond the end
        of a file that was truncated meanwhile kills the process with SIGBUS.
        """
        if start < 0 or length < 0 or start + length > self.length:
            raise IndexError(f"window [{start}, {start + length}) of {self.path}, which has {self.length} tokens")
        window = np.empty(length, dtype=self.dtype)
        view, offset = memoryview(window).cast("B"), start * self.dtype.itemsize
        while view:
            count = os.preadv(self.descriptor, [view], offset)
            if count == 0:
                raise DataError(
                    f"{self.path}: ends at byte {offset}, expected {self.length * self.dtype.itemsize}; it was truncated after the job opened it"
                )
            view, offset = view[count:], offset + count
        return window

    def close(self) -> None:
        if self.descriptor >= 0:
            os.close(self.descriptor)
            self.descriptor = -1

    def __del__(self) -> None:
        if hasattr(self, "descriptor"):
            self.close()


def open_token_file(directory: str | Path, split: str, manifest: Manifest) -> TokenFile:
    """Open one split after checking its size; raise DataError naming the file and both sizes."""
    info = manifest.splits[split]
    path = Path(directory) / info.file
    check_size(path, info.tokens * manifest.itemsize)
    return TokenFile(path, DTYPES[manifest.dtype], info.tokens)


def token_byte_lengths(directory: str | Path, manifest: Manifest) -> np.ndarray:
    """Return the UTF-8 bytes of each token, (vocab_size,) uint16, 0 for EOT: what bits per byte divides by."""
    path = Path(directory) / TOKEN_BYTES_NAME
    check_size(path, manifest.tokenizer.vocab_size * 2)
    return np.fromfile(path, dtype="<u2")


def verify_digests(directory: str | Path, manifest: Manifest) -> None:
    """Read every file in full and compare with the manifest; raise DataError naming the first that differs."""
    expected = {manifest.splits[name].file: manifest.splits[name].sha256 for name in SPLITS}
    expected[TOKENIZER_NAME] = manifest.tokenizer.digest
    for name, digest in expected.items():
        path = Path(directory) / name
        if not path.is_file():
            raise DataError(f"{path}: missing; {remedy(directory)} overwrite=true")
        with open(path, "rb") as file:
            actual = hashlib.file_digest(file, "sha256").hexdigest()
        if actual != digest:
            raise DataError(f"{path}: sha256 {actual}, the manifest says {digest}; {remedy(directory)} overwrite=true")


def check_size(path: Path, expected: int) -> None:
    """Raise DataError unless path is a file of exactly that many bytes."""
    if not path.is_file():
        raise DataError(f"{path}: missing; {remedy(path.parent)} overwrite=true")
    actual = path.stat().st_size
    if actual != expected:
        raise DataError(
            f"{path}: {actual:,} bytes, expected {expected:,} from the manifest; {remedy(path.parent)} overwrite=true"
        )


def write_json_atomically(path: str | Path, value: Any) -> None:
    """Write value as deterministic JSON so that path holds either the old or the whole new content."""
    path = Path(path)
    temporary = path.with_name(f"{path.name}.{os.getpid()}.tmp")
    try:
        with open(temporary, "w", encoding="utf-8") as file:
            file.write(json.dumps(value, indent=1, sort_keys=True, ensure_ascii=False) + "\n")
            file.flush()
            os.fsync(file.fileno())
        os.replace(temporary, path)
    except BaseException:
        temporary.unlink(missing_ok=True)
        raise
    sync_path(path.parent)


def sync_path(path: Path) -> None:
    """Make a file's contents, or the renames in a folder, survive a power cut."""
    descriptor = os.open(path, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)
