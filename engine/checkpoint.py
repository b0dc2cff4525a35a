"""Checkpoints: folders of safetensors and JSON, published by a rename and checked by digest. No pickle, ever.

    checkpoints/step-00001000/{model.safetensors, optimizer.safetensors, trainer.json, manifest.json}

The run draws no random numbers after the initialization (no dropout; the data order is a function of the step), so
weights, optimizer state and the step are all that an exact continuation needs.
"""

import json
import os
import shutil
from collections.abc import Collection
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError, safe_open
from safetensors.torch import load_file, save_file
from torch import Tensor

from cli.composition import to_dataclass
from engine.distributed import full_tensor, shard_as
from engine.models import build_model
from engine.optimizer_state import flatten_optimizer, restore_optimizer
from engine.updates import Optimizer
from runfolder.files import sha256_of, sync_path
from runfolder.layout import checkpoint_name, checkpoint_step, list_checkpoints

FORMAT = 1


class CheckpointError(RuntimeError):
    exit_code = 4


@dataclass
class TrainerState:
    """All that the loop knows beside weights and optimizer."""

    step: int  # optimizer steps done
    train_seconds: float  # spent in them, over all sessions
    wandb_id: str | None
    evaluation_pending: bool = False  # a signal cut this step's validation short
    nonfinite_events: int = 0  # steps skipped or rolled back from
    skipped_batches: int = 0  # by rollbacks: step s trains on global batch s + skipped_batches
    losses_seen: int = 0  # for the detection of spikes: the training loss's running mean and variance
    loss_mean: float | None = None
    loss_variance: float = 0.0


@dataclass
class Snapshot:
    """A run's state at one step, copied, so that training can go on while it is written."""

    state: dict[str, Any]
    model: dict[str, Tensor]
    optimizer: dict[str, Tensor]

    @property
    def bytes(self) -> int:
        return sum(t.numel() * t.element_size() for part in (self.model, self.optimizer) for t in part.values())


def take_snapshot(model: torch.nn.Module, optimizer: Optimizer, state: TrainerState, is_kept: bool = True) -> Snapshot | None:
    """Copy weights, optimizer and state to the CPU's memory; None where it is not kept.

    Sharded tensors are gathered one at a time, so of such a model every rank must take it, and one keeps it.
    """
    weights = copy_tensors(model.state_dict(), is_kept)
    moments = copy_tensors(flatten_optimizer(model, optimizer), is_kept)
    return Snapshot(asdict(state), weights, moments) if is_kept else None


def write_checkpoint(folder: Path, snapshot: Snapshot, keep: int, keep_every: int | None, keep_steps: Collection[int] = ()) -> Path:
    """Write a checkpoint under a temporary name, make it durable, publish it by renaming, delete what is not to be kept.

    The newest `keep` are kept, and those of steps divisible by keep_every or named in keep_steps.

    Raises:
        CheckpointError: it could not be written; the earlier checkpoints are untouched.
    """
    final = folder / checkpoint_name(snapshot.state["step"])
    temporary = folder / f".writing-{final.name}"
    try:
        folder.mkdir(parents=True, exist_ok=True)
        for leftover in folder.glob(".writing-*"):
            shutil.rmtree(leftover)
        check_free_space(folder, snapshot.bytes)
        temporary.mkdir()
        save_file(snapshot.model, temporary / "model.safetensors")
        save_file(snapshot.optimizer, temporary / "optimizer.safetensors")
        (temporary / "trainer.json").write_text(json.dumps(snapshot.state))
        files = {path.name: {"bytes": path.stat().st_size, "sha256": sha256_of(path)} for path in sorted(temporary.iterdir())}
        (temporary / "manifest.json").write_text(json.dumps({"format": FORMAT, "files": files}, indent=1))
        for path in (*temporary.iterdir(), temporary):
            sync_path(path)
        if final.exists():  # left by a session whose later part was thrown away
            final.rename(folder / f".writing-replaced-{final.name}")
        os.replace(temporary, final)
        sync_path(folder)
        for old in list_checkpoints(folder)[keep:]:
            step = checkpoint_step(old)
            if not (keep_every and step % keep_every == 0 or step in keep_steps):
                shutil.rmtree(old)
    except (OSError, SafetensorError) as error:
        shutil.rmtree(temporary, ignore_errors=True)
        raise CheckpointError(f"{final}: could not be written ({error}); earlier checkpoints are untouched") from error
    return final


def check_free_space(folder: Path, needed: int) -> None:
    """Raise CheckpointError unless the disk of folder has room for `needed` bytes and 5 % more."""
    free = shutil.disk_usage(folder).free
    if free < needed * 1.05:
        raise CheckpointError(f"{folder}: a checkpoint needs {needed / 1e6:,.1f} MB and the disk has {free / 1e6:,.1f} MB free")


def verify_checkpoint(path: Path) -> None:
    """Raise CheckpointError unless every file has the size and sha256 that the manifest states."""
    try:
        manifest = json.loads((path / "manifest.json").read_text())
        if manifest["format"] != FORMAT:
            raise CheckpointError(f"{path}: format {manifest['format']}; this version reads format {FORMAT}")
        files = {name: (int(entry["bytes"]), str(entry["sha256"])) for name, entry in manifest["files"].items()}
    except (OSError, ValueError, KeyError, TypeError, AttributeError, OverflowError, RecursionError) as error:
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
            f"{folder}: no intact checkpoint "
            f"({problems[0] if problems else 'all were set aside as *.corrupt-N'}); resume=never starts anew"
        )
    return None


def load_trainer_state(path: Path) -> TrainerState:
    """Return a checkpoint's trainer.json; raise CheckpointError if it is unreadable or of another step."""
    try:
        node = json.loads((path / "trainer.json").read_text())
        if not isinstance(node, dict) or node.get("step") != checkpoint_step(path):
            raise ValueError(f"not the state of step {checkpoint_step(path)}")
        return to_dataclass(node, TrainerState)
    except (OSError, ValueError, RecursionError) as error:  # a ConfigError is a ValueError
        raise CheckpointError(f"{path}/trainer.json: unreadable ({error})") from None


def check_shapes(path: Path, model: dict[str, Any]) -> None:
    """Raise CheckpointError unless the weights have the shapes of a `model` node; nothing of that size is allocated."""
    try:
        with safe_open(path / "model.safetensors", "pt") as file:
            found = {name: tuple(file.get_slice(name).get_shape()) for name in file.keys()}  # noqa: SIM118
    except (OSError, SafetensorError) as error:
        raise CheckpointError(f"{path}/model.safetensors: unreadable ({error})") from None
    if model["n_layer"] <= len(found):
        skeleton = build_model(model, device="meta")
        if {name: tuple(p.shape) for name, p in skeleton.state_dict().items()} == found:
            return
    raise CheckpointError(f"{path}/model.safetensors: its tensors are not those of the model in config.yaml")


def load_model(path: Path, model: torch.nn.Module) -> None:
    """Load model.safetensors into model, in place; of a sharded model each rank takes its part.

    Raises:
        CheckpointError: unreadable, or names and shapes are not the model's.
    """
    try:
        own = model.state_dict()
        weights = load_file(path / "model.safetensors")
        model.load_state_dict({name: shard_as(tensor, own.get(name)) for name, tensor in weights.items()})
    except (OSError, SafetensorError, RuntimeError) as error:
        raise CheckpointError(f"{path}/model.safetensors does not fit the configuration ({str(error).splitlines()[0]})") from None


def load_optimizer(path: Path, model: torch.nn.Module, optimizer: Optimizer) -> None:
    """Load optimizer.safetensors into optimizer, in place, by the parameters' names.

    Raises:
        CheckpointError: it is unreadable, or holds nothing of the right shape for a parameter.
    """
    try:
        restore_optimizer(load_file(path / "optimizer.safetensors"), model, optimizer)
    except (OSError, SafetensorError) as error:
        raise CheckpointError(f"{path}/optimizer.safetensors: unreadable ({error})") from None
    except ValueError as error:
        raise CheckpointError(f"{path}/optimizer.safetensors: {error}") from None


def copy_tensors(tensors: dict[str, Tensor], is_kept: bool) -> dict[str, Tensor]:
    """Gather each tensor and copy it to the CPU where it is kept."""
    copies = {}
    for name, tensor in tensors.items():
        whole = full_tensor(tensor.detach())
        if is_kept:
            copies[name] = whole.to("cpu", copy=True, memory_format=torch.contiguous_format)
    return copies
