"""How far each split is: recorded on disk for the next run, shown on stderr for the reader."""

import json
import sys
import time
from dataclasses import asdict, astuple, dataclass
from pathlib import Path

from tqdm import tqdm

from corpus.manifest import SPLITS
from runfolder.files import write_json_atomically

PROGRESS_NAME = "progress.json"
SECONDS_BETWEEN_LINES = 10.0


@dataclass(frozen=True)
class Progress:
    """What of a split is safely on disk.

    repaired counts documents with invalid UTF-8, altered those whose tokens do not spell the text byte for byte.
    """

    documents: int = 0
    tokens: int = 0
    text_bytes: int = 0
    max_id: int = 0
    repaired: int = 0
    altered: int = 0


def read_progress(path: Path, fingerprint: str) -> dict[str, Progress]:
    """Return what a killed run with the same settings left behind, nothing done if there was none."""
    try:
        recorded = json.loads(path.read_bytes())
        if recorded["fingerprint"] == fingerprint:
            splits = {name: Progress(**recorded["splits"][name]) for name in SPLITS}
            if all(type(value) is int and value >= 0 for done in splits.values() for value in astuple(done)):
                return splits
    except (OSError, ValueError, KeyError, TypeError, RecursionError):
        pass
    return {name: Progress() for name in SPLITS}


def record_progress(path: Path, fingerprint: str, splits: dict[str, Progress]) -> None:
    """Record progress whose tokens are on disk already."""
    write_json_atomically(path, {"fingerprint": fingerprint, "splits": {name: asdict(done) for name, done in splits.items()}})


class ProgressReport:
    """Report documents, tokens per second and the time left, on stderr."""

    def __init__(self, split: str, documents: int, done: int) -> None:
        self.split, self.total, self.done, self.first = split, documents, done, done
        self.tokens = 0  # of this run, so that a continued one does not claim the speed of the last
        self.started = self.last_line = time.monotonic()
        self.bar = (
            tqdm(total=documents, initial=done, desc=split, unit=" documents", mininterval=0.5) if sys.stderr.isatty() else None
        )

    def update(self, documents: int, tokens: int) -> None:
        self.done += documents
        self.tokens += tokens
        now = time.monotonic()
        rate = self.tokens / max(now - self.started, 1e-9)
        if self.bar is not None:
            self.bar.set_postfix_str(f"{rate / 1e6:.2f}M tokens/s", refresh=False)
            self.bar.update(documents)
        elif now - self.last_line >= SECONDS_BETWEEN_LINES:
            self.last_line = now
            left = (self.total - self.done) * (now - self.started) / max(self.done - self.first, 1)
            print(
                f"{self.split}: {self.done:,} of {self.total:,} documents, {self.tokens:,} tokens, {rate:,.0f} tokens/s, "
                f"{left / 60:.1f} minutes left",
                file=sys.stderr,
                flush=True,
            )

    def close(self) -> None:
        if self.bar is not None:
            self.bar.close()
