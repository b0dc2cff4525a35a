"""The token files of a run, opened and checked."""

from dataclasses import dataclass
from pathlib import Path
from shlex import quote
from typing import Any

from cli.composition import CONFIG_DIR, nearest
from corpus.manifest import MANIFEST_NAME, TOKENIZER_NAME, DataError, Manifest, SplitInfo, read_manifest
from corpus.settings import is_suitable, suitable_vocab_size
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
    is_known = (Path(CONFIG_DIR) / "data" / f"{config.data.name}.yaml").is_file()
    words = [f"data={config.data.name}"] if is_known else ["data=local", f"data.name={config.data.name}"]
    if folder != Path("data") / config.data.name:
        words.append(f"data.dir={folder}")
    has_bins = (folder / "train.bin").exists()
    if has_bins:
        words.append("adopt=true")  # takes bins from elsewhere as they are
    command = " ".join(map(quote, ["python", "prepare_owt.py", *words]))
    if config.data.source == "files" and not config.data.files and not has_bins:
        command += " data.files='...'"
    script = Path(CONFIG_DIR).parent / "scripts" / f"{config.data.name}.sh"
    if words == [f"data={config.data.name}"] and script.is_file():
        command = f"bash scripts/{script.name}"  # it fetches the text first
    others = sorted(str(folder.parent / path.parent.name) for path in folder.parent.glob(f"*/{MANIFEST_NAME}"))
    hint = f"; prepared there: {', '.join(others)}{nearest(str(folder), others)}" if others else ""
    raise DataError(f"{folder / MANIFEST_NAME}: missing, no data prepared here; run: {command}{hint}")


def open_data(config: Config) -> RunData:
    """Open the bins in data.dir.

    Raises:
        DataError: there are none, they are not what the configuration says, or they are too short.
    """
    folder, length = Path(config.data.dir), config.model["sequence_length"]
    manifest = read_manifest(folder)
    check_tokenizer(folder, manifest, config)
    outputs = config.model["vocab_size"]
    tokenizer_file = folder / TOKENIZER_NAME
    if not tokenizer_file.is_file() or sha256_of(tokenizer_file) != manifest.tokenizer.digest:
        raise DataError(f"{tokenizer_file}: missing or not the tokenizer that made the bins; prepare again with overwrite=true")
    for split in manifest.splits.values():
        check_split(folder, split, length, outputs)
    train, val = (open_token_file(folder, split, manifest) for split in ("train", "val"))
    return RunData(manifest, train, ValidationSet(val, token_byte_lengths(folder, manifest), length, config.eval_windows))


def check_tokenizer(folder: Path, manifest: Manifest, config: Config) -> None:
    """Compare the tokenizer that made the bins with the configuration's, and its tokens with the model's outputs.

    With too few outputs a model could never be sampled; a thousand too many are another corpus's setting.

    Raises:
        DataError: they do not fit; the message has the keys to add.
    """
    made, outputs = manifest.tokenizer, config.model["vocab_size"]
    is_other, fits = config.data.tokenizer != made.name, is_suitable(outputs, made.vocab_size)
    if not is_other and fits:
        return
    key = "data.vocab_size" if outputs == config.data.vocab_size else "model.vocab_size"
    remedies = [f"data.tokenizer={made.name}"] if is_other else []
    remedies += [] if fits else [f"{key}={suitable_vocab_size(made.vocab_size)}"]
    max_id = max(split.max_id for split in manifest.splits.values())
    if is_other:
        problem = f"made with the tokenizer {made.name}, but data.tokenizer={config.data.tokenizer}"
    elif max_id >= outputs:
        problem = f"holds token id {max_id}, but model.vocab_size={outputs}"
    else:
        problem = f"made with the tokenizer {made.name} of {made.vocab_size:,} tokens, but model.vocab_size={outputs}"
    raise DataError(f"{folder}: {problem}; add {' '.join(remedies)}")


def check_split(path: Path, split: SplitInfo, sequence_length: int, vocab_size: int) -> None:
    """Check that the split holds a window and that every id is below vocab_size.

    Raises:
        DataError: it does not, or one is not.
    """
    if count_windows(split.tokens, sequence_length) < 1:
        remedy = "prepare more text"
        if split.file.startswith("val"):
            remedy = "prepare again with a larger data.val_fraction and overwrite=true"
        raise DataError(
            f"{path / split.file}: {split.tokens:,} tokens, but one window of the context needs {sequence_length + 1:,}; "
            f"choose a shorter context= or {remedy}"
        )
    if split.max_id >= vocab_size:
        raise DataError(
            f"{path / split.file}: holds token id {split.max_id}, but model.vocab_size={vocab_size}; it must be larger than any id"
        )
