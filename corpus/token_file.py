"""Read token bins; numpy and the standard library only, so that the engine starts quickly."""

import hashlib
import os
import random
from collections.abc import Sequence
from pathlib import Path

import numpy as np

from corpus.manifest import (
    BLOCK_BYTES,
    DTYPES,
    SPLITS,
    TOKEN_BYTES_NAME,
    TOKENIZER_NAME,
    DataError,
    Manifest,
    read_manifest,
    remedy,
)
from runfolder.files import sha256_of, sync_path, write_json_atomically

__all__ = [
    "DataError",
    "Manifest",
    "TokenFile",
    "open_token_file",
    "read_manifest",
    "sync_path",
    "token_byte_lengths",
    "verify_token_files",
    "write_json_atomically",
]

SAMPLED_BLOCKS = 8  # of BLOCK_BYTES each: a tenth of a second, whatever the size of the corpus


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
        view, offset = window.data.cast("B"), start * self.dtype.itemsize
        while view:
            count = os.preadv(self.descriptor, [view], offset)
            if count == 0:
                raise DataError(
                    f"{self.path}: ends at byte {offset}, expected {self.length * self.dtype.itemsize}; it "
                    "was truncated after the job opened it"
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


def verify_token_files(directory: str | Path, manifest: Manifest, full: bool = False) -> None:
    """Compare the files of a data folder with its manifest; raise DataError naming the first that differs.

    Fast: every size, the tokenizer and its byte table in full, and SAMPLED_BLOCKS blocks of each bin, the first, the last
    and others drawn anew each time. Full: every byte.
    """
    folder, tokenizer = Path(directory), manifest.tokenizer
    splits = [manifest.splits[name] for name in SPLITS]
    for info in splits:
        check_size(folder / info.file, info.tokens * manifest.itemsize)
    check_size(folder / TOKEN_BYTES_NAME, tokenizer.vocab_size * 2)
    expected = {TOKENIZER_NAME: tokenizer.digest, TOKEN_BYTES_NAME: tokenizer.token_bytes_sha256}
    if full:
        expected |= {info.file: info.sha256 for info in splits}
    for name, digest in expected.items():
        if digest:
            check_digest(folder / name, digest)
    if not full:
        for info in splits:
            check_blocks(folder / info.file, info.block_sha256)


def check_digest(path: Path, expected: str) -> None:
    """Raise DataError unless path is a file with that sha256."""
    if not path.is_file():
        raise DataError(f"{path}: missing; {remedy(path.parent)} overwrite=true")
    actual = sha256_of(path)
    if actual != expected:
        raise DataError(
            f"{path}: its contents have changed (sha256 {actual}, the manifest says {expected}); "
            f"{remedy(path.parent)} overwrite=true"
        )


def check_blocks(path: Path, block_sha256: str) -> None:
    """Raise DataError unless a sample of the file's blocks has the recorded digests; without any there is nothing to do."""
    count = len(block_sha256) // 64
    sample: Sequence[int] = range(count)
    if count > SAMPLED_BLOCKS:
        sample = sorted({0, count - 1, *random.SystemRandom().sample(sample, SAMPLED_BLOCKS - 2)})
    with open(path, "rb") as file:
        for block in sample:
            file.seek(block * BLOCK_BYTES)
            if hashlib.sha256(file.read(BLOCK_BYTES)).hexdigest() != block_sha256[64 * block : 64 * (block + 1)]:
                raise DataError(
                    f"{path}: its contents have changed between bytes {block * BLOCK_BYTES:,} and "
                    f"{(block + 1) * BLOCK_BYTES:,}; {remedy(path.parent)} overwrite=true"
                )


def check_size(path: Path, expected: int) -> None:
    """Raise DataError unless path is a file of exactly that many bytes."""
    if not path.is_file():
        raise DataError(f"{path}: missing; {remedy(path.parent)} overwrite=true")
    actual = path.stat().st_size
    if actual != expected:
        raise DataError(f"{path}: {actual:,} bytes, expected {expected:,} from the manifest; {remedy(path.parent)} overwrite=true")
