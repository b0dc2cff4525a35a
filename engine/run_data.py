"""The token files of a run, opened and checked."""

from dataclasses import dataclass
from pathlib import Path
from typing import Any

from cli.composition import nearest
from corpus.manifest import MANIFEST_NAME, TOKENIZER_NAME, DataError, Manifest, SplitInfo, read_manifest
from corpus.token_file import TokenFile, open_token_file, token_byte_lengths
from engine.config import Config
from engine.data import count_windows
from engine.evaluate import ValidationSet
from runfolder.files import sha256_of


@dataclass
class RunData:
    """What a run trains on and is validated on."""

    manifest: Manifest
    train: TokenFile
    validation: ValidationSet

    def describe(self) -> dict[str, Any]:
        tokenizer = self.manifest.tokenizer
        return {
            "name": self.manifest.name,
            "digest": self.manifest.data_digest,
            "tokenizer": {"name": tokenizer.name, "digest": tokenizer.digest},
        }


def check_data_folder(config: Config) -> None:
    """Raise DataError if nothing is prepared in data.dir: with the command that would, and the folders beside it that are."""
    folder = Path(config.data.dir)
    if (folder / MANIFEST_NAME).exists():
        return
    command = f"python prepare_owt.py data={config.data.name}"
    if config.data.source == "files":
        command += " data.files='...'"
    if folder != Path("data") / config.data.name:
        command += f" data.dir={folder}"
    others = sorted(str(folder.parent / path.parent.name) for path in folder.parent.glob(f"*/{MANIFEST_NAME}"))
    hint = f"; prepared there: {', '.join(others)}{nearest(str(folder), others)}" if others else ""
    raise DataError(f"{folder / MANIFEST_NAME}: missing, no data prepared here; run: {command}{hint}")


def open_data(config: Config) -> RunData:
    """Open the bins in data.dir; raise DataError if they cannot feed this configuration."""
    folder, length = Path(config.data.dir), config.model["sequence_length"]
    manifest = read_manifest(folder)
    if manifest.tokenizer.name != config.data.tokenizer:
        raise DataError(
            f"{folder}: made with the tokenizer {manifest.tokenizer.name}, but "
            f"data.tokenizer={config.data.tokenizer}; prepare again or choose its data="
        )
    tokenizer_file = folder / TOKENIZER_NAME
    if not tokenizer_file.is_file() or sha256_of(tokenizer_file) != manifest.tokenizer.digest:
        raise DataError(f"{tokenizer_file}: missing or not the tokenizer that made the bins; prepare again with overwrite=true")
    for split in manifest.splits.values():
        check_split(folder, split, length, config.model["vocab_size"])
    train, val = (open_token_file(folder, split, manifest) for split in ("train", "val"))
    return RunData(manifest, train, ValidationSet(val, token_byte_lengths(folder, manifest), length, config.eval_windows))


def check_split(path: Path, split: SplitInfo, sequence_length: int, vocab_size: int) -> None:
    """Raise DataError unless the split holds a window and every id is below vocab_size."""
    if count_windows(split.tokens, sequence_length) < 1:
        raise DataError(
            f"{path / split.file}: {split.tokens:,} tokens, but one window of the context needs {sequence_length + 1:,}; "
            "choose a shorter context= or prepare more text"
        )
    if split.max_id >= vocab_size:
        raise DataError(
            f"{path / split.file}: holds token id {split.max_id}, but model.vocab_size={vocab_size}; it "
            "must be larger than every id"
        )
