"""The exported folder: written whole under another name, then renamed, so that it is either complete or not there."""

import json
import os
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError
from torch import Tensor, nn

from cli.composition import ConfigError
from corpus.tokenizer import Tokenizer
from engine.checkpoint import CheckpointError
from engine.config_file import load_config
from engine.trained import open_trained_run
from lab.export.card import model_card
from lab.export.llama import llama_config, llama_weights
from lab.export.ngpt_layout import ngpt_config, ngpt_weights
from lab.export.tokenizer import write_tokenizer
from runfolder.files import sync_path

# The arms that can be exported, with the files of code that go along.
LAYOUTS: dict[str, tuple[Callable[..., Any], Callable[..., Any], tuple[str, ...]]] = {
    "gpt": (llama_config, llama_weights, ()),
    "ngpt": (ngpt_config, ngpt_weights, ("configuration_ngpt.py", "modeling_ngpt.py")),
}
LARGEST_SHARD = 5_000_000_000  # bytes, the hub's own convention


def export_run(run: Path, out: Path, step: int | None, dtype: torch.dtype) -> int:
    """Write a run's model of the newest checkpoint, or of a step, as the folder out; return the step.

    Raises:
        ConfigError: no such run, an arm that has no layout, out that is taken, a missing package.
        DataError: a tokenizer that is not the run's or cannot be expressed.
        CheckpointError: no sound checkpoint.
    """
    check_out(out)
    arm = load_config(run / "config.yaml").model["name"] if run.is_dir() else None
    if arm not in (*LAYOUTS, None):
        raise ConfigError(f"{run}: model={arm} cannot be exported; {' and '.join(LAYOUTS)} can")
    opened = open_trained_run(run, step)
    card = model_card(run, opened.step, opened.config, opened.model, opened.tokenizer, dtype)
    publish(out, lambda folder: write_files(folder, opened.arm, opened.model, opened.tokenizer, dtype, card))
    return opened.step


def check_out(out: Path) -> None:
    if os.path.lexists(out) and (not out.is_dir() or any(out.iterdir())):
        raise ConfigError(f"out={out}: exists already and is not an empty folder; nothing is overwritten")


def publish(out: Path, write: Callable[[Path], None]) -> None:
    """Let write fill a new folder beside out, make it durable, and rename it to out."""
    temporary = out.absolute().with_name(f".exporting-{out.absolute().name}")
    try:
        temporary.parent.mkdir(parents=True, exist_ok=True)
        shutil.rmtree(temporary, ignore_errors=True)  # left by an export that was killed
        temporary.mkdir()
        write(temporary)
        for path in (*temporary.iterdir(), temporary):
            sync_path(path)
        os.replace(temporary, out)  # takes the place of an empty folder, never of a full one
        sync_path(temporary.parent)
    except (OSError, SafetensorError) as error:
        raise ConfigError(f"out={out}: could not be written ({str(error).splitlines()[0]})") from None
    finally:
        shutil.rmtree(temporary, ignore_errors=True)


def write_files(folder: Path, arm: str, model: nn.Module, tokenizer: Tokenizer, dtype: torch.dtype, card: str) -> None:
    """Write all files of an export into an empty folder."""
    make_config, make_weights, code = LAYOUTS[arm]
    write_tokenizer(tokenizer, folder, model.config.sequence_length)
    eot, name = tokenizer.eot_token, str(dtype).removeprefix("torch.")
    with torch.no_grad():
        write_weights(make_weights(model, tokenizer.n_vocab), dtype, folder, LARGEST_SHARD)
    # transformers 5 reads dtype, older programs torch_dtype.
    config = make_config(model.config, tokenizer.n_vocab) | {"bos_token_id": eot, "eos_token_id": eot}
    write_json(folder / "config.json", config | {"dtype": name, "torch_dtype": name})
    write_json(folder / "generation_config.json", {"bos_token_id": eot, "eos_token_id": eot, "pad_token_id": eot})
    for file in code:
        shutil.copyfile(Path(__file__).with_name(file), folder / file)
    (folder / "README.md").write_text(card, encoding="utf-8")


def write_weights(weights: dict[str, Tensor], dtype: torch.dtype, folder: Path, largest_shard: int) -> None:
    """Write model.safetensors, or several shards with their index; scales stay in float32: they are few."""
    try:
        from huggingface_hub import save_torch_state_dict
    except ImportError:
        raise ConfigError("exporting needs the package huggingface_hub; run: pip install -r requirements.txt") from None
    for name, weight in weights.items():
        if not weight.isfinite().all():
            raise CheckpointError(f"{name}: has values that are not finite; this checkpoint is of no use")
        is_scale = name.endswith(("_alpha", ".sqk"))
        weights[name] = weight.detach().to(torch.float32 if is_scale else dtype)
    save_torch_state_dict(weights, folder, max_shard_size=largest_shard, metadata={"format": "pt"})
    for path in folder.glob("*.safetensors"):  # the library lets their owner alone read them
        path.chmod(folder.stat().st_mode & 0o666)


def write_json(path: Path, value: dict[str, Any]) -> None:
    path.write_text(json.dumps(value, indent=2) + "\n", encoding="utf-8")
