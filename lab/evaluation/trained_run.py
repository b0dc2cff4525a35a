"""A finished run, opened for measurement: its model on the device, its tokenizer, its step."""

from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch

from corpus.manifest import TOKENIZER_NAME, DataError, Manifest, read_manifest
from corpus.tokenizer import Tokenizer, load_tokenizer
from engine.checkpoint import checkpoint_step, list_checkpoints, sha256_of
from engine.config import Config
from engine.data import check_split
from engine.distributed import Ranks
from engine.metrics import read_json
from engine.precision import autocast
from engine.run import load_trained_model
from lab.evaluation.settings import PRECISIONS


@dataclass(frozen=True)
class TrainedRun:
    """What is needed to measure a run; the model holds fp32 weights and computes its matrix products in `matmul`."""

    folder: Path
    step: int
    config: Config
    model: torch.nn.Module
    tokenizer: Tokenizer
    tokenizer_digest: str
    matmul: str
    device: torch.device

    @property
    def name(self) -> str:
        return self.folder.resolve().name

    @property
    def sequence_length(self) -> int:
        return self.config.model["sequence_length"]

    def autocast(self) -> torch.autocast:
        return autocast(self.device, self.matmul)

    def describe(self) -> dict[str, Any]:
        """Return what a result must carry to be understood without this folder."""
        return {
            "run": self.name,
            "arm": self.config.model["name"],
            "step": self.step,
            "matmul": self.matmul,
            "device": torch.cuda.get_device_name(self.device) if self.device.type == "cuda" else "cpu",
            "torch": torch.__version__,
        }


def open_run(folder: Path, checkpoint: int | None, precision: str | None, ranks: Ranks) -> TrainedRun:
    """Return a run's model from its newest checkpoint, or that of a step, on every rank.

    Args:
        precision: bf16 or fp32; None is what the run was trained with.

    Raises:
        ConfigError, DataError, CheckpointError: the same on every rank.
    """

    def newest() -> int | None:
        checkpoints = list_checkpoints(folder / "checkpoints")
        return checkpoint_step(checkpoints[0]) if checkpoints else None

    # Decided once: a run in progress may publish its next checkpoint between one rank's look and another's.
    step = ranks.on_main(newest) if checkpoint is None else checkpoint

    def load() -> TrainedRun:
        config, model = load_trained_model(folder, step)
        tokenizer, digest = open_tokenizer(folder)
        matmul = PRECISIONS[precision] if precision else config.precision.matmul
        matmul = "bfloat16" if matmul == "float8" else matmul  # a way to train; what was learned is measured without it
        return TrainedRun(folder, step, config, model.to(ranks.device), tokenizer, digest, matmul, ranks.device)

    return ranks.agree(load)


def open_tokenizer(folder: Path) -> tuple[Tokenizer, str]:
    """Return the tokenizer that a run saved and its digest; raise DataError if it is not the one it trained with."""
    path = folder / TOKENIZER_NAME
    tokenizer, digest = load_tokenizer(path), sha256_of(path)
    recorded: Any = read_json(folder / "environment.json")
    for key in ("data", "tokenizer", "digest"):
        recorded = recorded.get(key) if isinstance(recorded, dict) else None
    if recorded is not None and recorded != digest:
        raise DataError(f"{path}: not the tokenizer that the run was trained with (environment.json names another digest)")
    return tokenizer, digest


def open_bins(run: TrainedRun, folder: Path, split: str, sequence_length: int) -> Manifest:
    """Return a data folder's manifest once the split is sound and made with the run's own tokenizer.

    Raises:
        DataError: another tokenizer, a digest that differs, a split too short or with ids beyond the model's vocabulary.
    """
    manifest = read_manifest(folder)
    if manifest.tokenizer.digest != run.tokenizer_digest:
        raise DataError(
            f"{folder}: made with another tokenizer ({manifest.tokenizer.name}, {manifest.tokenizer.digest[:12]}) than "
            f"{run.folder} was trained with ({run.tokenizer.name}, {run.tokenizer_digest[:12]}); losses "
            "per token would not compare"
        )
    info = manifest.splits[split]
    check_split(folder, info, sequence_length, run.config.model["vocab_size"])
    path = folder / info.file
    if not path.is_file() or sha256_of(path) != info.sha256:
        raise DataError(f"{path}: missing, or not the tokens that the manifest describes; prepare again with overwrite=true")
    return manifest
