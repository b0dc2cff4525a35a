"""Write one split's tokens so that a killed run can go on where it was."""

import hashlib
import os
from pathlib import Path

from corpus.documents import write_all
from corpus.encoding import Encoded
from corpus.manifest import BLOCK_BYTES, SplitInfo
from corpus.progress import Progress


class FileDigests:
    """The sha256 of a file and of each of its blocks, from its bytes as they come."""

    def __init__(self) -> None:
        self.whole, self.block, self.room = hashlib.sha256(), hashlib.sha256(), BLOCK_BYTES
        self.finished: list[str] = []

    def update(self, content: bytes) -> None:
        self.whole.update(content)
        view = memoryview(content)
        while view:
            part, view = view[: self.room], view[self.room :]
            self.block.update(part)
            self.room -= len(part)
            if self.room == 0:
                self.finished.append(self.block.hexdigest())
                self.block, self.room = hashlib.sha256(), BLOCK_BYTES

    def blocks(self) -> str:
        """Return the digests of all blocks in one string; the last block may be short."""
        return "".join([*self.finished, *([self.block.hexdigest()] if self.room < BLOCK_BYTES else [])])


class BinWriter:
    """Append encoded chunks to a file in the scratch folder."""

    def __init__(self, path: Path, itemsize: int, progress: Progress) -> None:
        """Open the file and cut it to the recorded progress, from the beginning if it is shorter than that."""
        self.path, self.itemsize = path, itemsize
        self.digests = FileDigests()
        recorded = progress.tokens * itemsize
        if not self.path.is_file() or self.path.stat().st_size < recorded:
            progress, recorded = Progress(), 0
        self.progress = progress
        self.file = open(self.path, "r+b" if recorded else "w+b", buffering=0)
        self.file.truncate(recorded)
        while block := self.file.read(1 << 22):
            self.digests.update(block)

    def append(self, chunk: Encoded) -> None:
        write_all(self.file, chunk.content)
        self.digests.update(chunk.content)
        done = self.progress
        self.progress = Progress(
            done.documents + chunk.documents,
            done.tokens + chunk.tokens,
            done.text_bytes + chunk.text_bytes,
            max(done.max_id, chunk.max_id),
            done.repaired + chunk.repaired,
            done.altered + chunk.altered,
        )

    def flush(self) -> Progress:
        """Bring everything to disk and return the progress that may now be recorded."""
        os.fsync(self.file.fileno())
        return self.progress

    def finish(self) -> SplitInfo:
        """Close the complete file and describe it."""
        self.flush()
        self.file.close()
        done = self.progress
        return SplitInfo(
            self.path.name,
            done.tokens,
            done.documents,
            done.text_bytes,
            done.max_id,
            self.digests.whole.hexdigest(),
            self.digests.blocks(),
        )
