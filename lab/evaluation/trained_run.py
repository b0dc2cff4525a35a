"""A finished run, opened for measurement: its model on the device, its tokenizer, its step."""

from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch

from corpus.manifest import MANIFEST_NAME, DataError, Manifest, read_manifest
from engine.distributed import Ranks
from engine.precision import autocast
from engine.run_data import check_split
from engine.trained import TrainedRun, open_trained_run
from lab.evaluation.settings import PRECISIONS
from runfolder.files import sha256_of


@dataclass(frozen=True)
class MeasuredRun(TrainedRun):
    """A trained run, the type in which its matrix products are computed when it is measured, and its name among the others."""

    matmul: str
    label: str = ""

    @property
    def name(self) -> str:
        return self.label or super().name

    def autocast(self) -> torch.autocast:
        return autocast(self.device, self.matmul)

    def describe(self) -> dict[str, Any]:
        """Return what a result must carry to be understood without this folder."""
        return {
            "run": self.name,
            "arm": self.arm,
            "step": self.step,
            "matmul": self.matmul,
            "device": torch.cuda.get_device_name(self.device) if self.device.type == "cuda" else "cpu",
            "torch": torch.__version__,
        }


def open_run(folder: Path, checkpoint: int | None, precision: str | None, ranks: Ranks) -> MeasuredRun:
    """Return a run's model from its newest checkpoint, or that of a step, on every rank.

    Args:
        precision: bf16 or fp32; None is what the run was trained with.

    Raises:
        ConfigError, DataError, CheckpointError: the same on every rank, as engine.trained.open_trained_run.
    """
    run = open_trained_run(folder, checkpoint, ranks=ranks)
    matmul = PRECISIONS[precision] if precision else run.config.precision.matmul
    matmul = "bfloat16" if matmul == "float8" else matmul  # a way to train; what was learned is measured without it
    return MeasuredRun(**vars(run), matmul=matmul)


def data_folder(run: MeasuredRun) -> Path:
    """Return the folder of the data that a run was trained on.

    A relative one was relative to the folder in which training was started: this one, or one of those around the run.

    Raises:
        DataError: it is in none of them.
    """
    relative = Path(run.config.data.dir)
    places = [place / relative for place in (Path(), *run.folder.resolve().parents)]
    found = next((place for place in places if (place / MANIFEST_NAME).is_file()), None)
    if found is None:
        raise DataError(f"{run.folder}: its data, {relative}, is neither here nor beside the run; data=DIR says where it is")
    return found


def open_bins(run: MeasuredRun, folder: Path, split: str, sequence_length: int) -> Manifest:
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
