"""Checkpoints: folders of safetensors and JSON, published by a rename and checked by digest. No pickle, ever.

    checkpoints/step-00001000/{model.safetensors, optimizer.safetensors, trainer.json, manifest.json}

The run draws no random numbers after the initialization (no dropout; the data order is a function of the step), so
weights, optimizer state and the step are all that an exact continuation needs.
"""

import hashlib
import json
import os
import re
import shutil
from dataclasses import asdict, dataclass
from pathlib import Path

import torch
from safetensors import SafetensorError
from safetensors.torch import load_file, save_file
from torch import Tensor

from corpus.token_file import sync_path

FORMAT = 1
NAME = re.compile(r"step-(\d{8,})")


class CheckpointError(RuntimeError):
    exit_code = 4


@dataclass
class TrainerState:
    """All that the loop knows beside weights and optimizer."""

    step: int  # optimizer steps done
    train_seconds: float  # spent in them, over all sessions
    wandb_id: str | None


def list_checkpoints(folder: Path) -> list[Path]:
    """Return the published checkpoints, newest first."""
    if not folder.is_dir():
        return []
    found = [path for path in folder.iterdir() if path.is_dir() and NAME.fullmatch(path.name)]
    return sorted(found, key=checkpoint_step, reverse=True)


def checkpoint_step(path: Path) -> int:
    return int(NAME.fullmatch(path.name)[1])


def save_checkpoint(
    folder: Path, model: torch.nn.Module, optimizer: torch.optim.Optimizer, state: TrainerState, keep: int
) -> Path:
    """Write a checkpoint under a temporary name, make it durable, publish it by renaming, delete all but the newest `keep`."""
    final = folder / f"step-{state.step:08d}"
    temporary = folder / f".writing-{final.name}"
    for leftover in folder.glob(".writing-*"):
        shutil.rmtree(leftover)
    temporary.mkdir(parents=True)
    try:
        save_file(
            {name: p.detach().cpu().contiguous() for name, p in model.state_dict().items()},
            temporary / "model.safetensors",
        )
        save_file(flatten_optimizer(model, optimizer), temporary / "optimizer.safetensors")
        (temporary / "trainer.json").write_text(json.dumps(asdict(state)))
        files = {
            path.name: {"bytes": path.stat().st_size, "sha256": sha256_of(path)} for path in sorted(temporary.iterdir())
        }
        (temporary / "manifest.json").write_text(json.dumps({"format": FORMAT, "files": files}, indent=1))
        for path in (*temporary.iterdir(), temporary):
            sync_path(path)
        if final.exists():  # left by a session whose later part was thrown away
            shutil.rmtree(final)
        os.replace(temporary, final)
        sync_path(folder)
    except (OSError, SafetensorError) as error:
        shutil.rmtree(temporary, ignore_errors=True)
        raise CheckpointError(f"{final}: could not be written ({error}); earlier checkpoints are untouched") from error
    for old in list_checkpoints(folder)[keep:]:
        shutil.rmtree(old)
    return final


def verify_checkpoint(path: Path) -> None:
    """Raise CheckpointError unless every file has the size and sha256 that the manifest states."""
    try:
        manifest = json.loads((path / "manifest.json").read_text())
        if manifest["format"] != FORMAT:
            raise CheckpointError(f"{path}: format {manifest['format']}; this version reads format {FORMAT}")
        files = {name: (int(entry["bytes"]), str(entry["sha256"])) for name, entry in manifest["files"].items()}
    except (OSError, ValueError, KeyError, TypeError, AttributeError) as error:
        raise CheckpointError(f"{path}/manifest.json: unreadable ({error})") from None
    if set(files) != {"model.safetensors", "optimizer.safetensors", "trainer.json"}:
        raise CheckpointError(f"{path}/manifest.json: lists {sorted(files)}")
    for name, (size, digest) in files.items():
        file = path / name
        if not file.is_file() or file.stat().st_size != size:
            raise CheckpointError(f"{file}: missing or not {size:,} bytes long")
        if sha256_of(file) != digest:
            raise CheckpointError(f"{file}: its contents have changed since it was written (sha256 differs)")


def find_checkpoint(folder: Path) -> Path | None:
    """Return the newest intact checkpoint, None if there never was one; set damaged ones aside as *.corrupt-N.

    Raises:
        CheckpointError: there are checkpoints and none is intact (training again from step 0 in silence would be worse).
    """
    problems = []
    for path in list_checkpoints(folder):
        try:
            verify_checkpoint(path)
        except CheckpointError as error:
            problems.append(str(error))
            number = next(n for n in range(1, 10_000) if not path.with_name(f"{path.name}.corrupt-{n}").exists())
            path.rename(path.with_name(f"{path.name}.corrupt-{number}"))
            continue
        for problem in problems:
            print(f"warning: {problem}; set aside, continuing from {path.name}", flush=True)
        return path
    if problems or any(folder.glob("*.corrupt-*")):
        raise CheckpointError(
            f"{folder}: no intact checkpoint ({problems[0] if problems else 'all were set aside as *.corrupt-N'}); resume=never starts anew"
        )
    return None


def load_trainer_state(path: Path) -> TrainerState:
    try:
        return TrainerState(**json.loads((path / "trainer.json").read_text()))
    except (OSError, ValueError, TypeError) as error:
        raise CheckpointError(f"{path}/trainer.json: unreadable ({error})") from None


def load_model(path: Path, model: torch.nn.Module) -> None:
    """Load model.safetensors into model, in place; shapes and names must agree."""
    try:
        model.load_state_dict(load_file(path / "model.safetensors"))
    except (OSError, SafetensorError, RuntimeError) as error:
        raise CheckpointError(
            f"{path}/model.safetensors does not fit the configuration ({str(error).splitlines()[0]})"
        ) from None


def load_optimizer(path: Path, model: torch.nn.Module, optimizer: torch.optim.Optimizer) -> None:
    """Load optimizer.safetensors into optimizer, in place, by the parameters' names."""
    try:
        flat = load_file(path / "optimizer.safetensors")
    except (OSError, SafetensorError) as error:
        raise CheckpointError(f"{path}/optimizer.safetensors: unreadable ({error})") from None
    state: dict[int, dict[str, Tensor]] = {}
    for index, name in enumerate(parameter_names(model, optimizer)):
        state[index] = {
            key: flat[f"{key}/{name}"] for key in ("exp_avg", "exp_avg_sq", "step") if f"{key}/{name}" in flat
        }
        if len(state[index]) != 3:
            raise CheckpointError(f"{path}/optimizer.safetensors: nothing for {name}")
    optimizer.load_state_dict({"state": state, "param_groups": optimizer.state_dict()["param_groups"]})


def flatten_optimizer(model: torch.nn.Module, optimizer: torch.optim.Optimizer) -> dict[str, Tensor]:
    """Return the optimizer's tensors under "<kind>/<parameter name>"."""
    names = parameter_names(model, optimizer)
    return {f"{key}/{names[index]}": value.detach().cpu().contiguous()
            for index, entry in optimizer.state_dict()["state"].items() for key, value in entry.items()}  # fmt: skip


def parameter_names(model: torch.nn.Module, optimizer: torch.optim.Optimizer) -> list[str]:
    """Return the parameters' names in the optimizer's own order."""
    name_of = {id(p): name for name, p in model.named_parameters()}
    return [name_of[id(p)] for group in optimizer.param_groups for p in group["params"]]


def sha256_of(path: Path) -> str:
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()
