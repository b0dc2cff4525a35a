"""The real training step, evaluation, snapshot and sampling on an accelerator that is not there.

    python tests/on_a_card.py gpt|ngpt [update=muon ...] [left=table]

Tensors are fake: they have shapes, types and a device, and no numbers (torch's FakeTensorMode). The device is one that torch
lets Python declare, since its CPU build knows no "cuda". An operator whose tensors lie on different devices fails, as it
would on a GPU, but for single numbers (tensors without dimensions), which fake tensors let pass. `left=NAME` leaves the
buffers and parameters of that name on the CPU: the fault that must be found.
Writes one JSON line: what a step asked of the host, and where the results lie.
"""

import json
import sys
import tempfile
import types
from collections import Counter
from pathlib import Path
from typing import cast

if __name__ == "__main__":
    sys.path[:0] = [str(Path(__file__).resolve().parents[1]), str(Path(__file__).resolve().parent)]

import numpy as np
import torch
from torch import Tensor, nn
from torch._subclasses.fake_tensor import FakeTensor, FakeTensorMode
from torch.utils.backend_registration import _DummyBackendModule, _setup_privateuseone_for_python_backend
from training import composed

import engine.parallel
from corpus.manifest import Manifest
from corpus.token_file import TokenFile
from engine.checkpoint import take_snapshot
from engine.config import Config
from engine.distributed import Ranks
from engine.evaluate import ValidationSet, evaluate
from engine.generate import Sampling, generate
from engine.interruption import Interruption
from engine.models import build_model
from engine.run_data import RunData
from engine.stability import max_norm_deviation, scale_means
from engine.trainer import Trainer

NAME = "card"
ASKED: Counter[str] = Counter()  # how often the host waited for numbers of a tensor on the card, by method


class OnACard(FakeTensorMode):
    """Fake tensors of a device that computes nothing, not even with Python's numbers."""

    avoid_device_init = True


class Card(_DummyBackendModule):
    """What torch asks of a device's module."""

    def get_amp_supported_dtype(self):
        return [torch.bfloat16]


def numbers(name, of_shape):
    """Return a method that notes its call and gives ones: a fake tensor has no numbers to give."""

    def method(self):
        ASKED[name] += self.device.type == NAME
        return of_shape(True if self.dtype == torch.bool else 1.0 if self.dtype.is_floating_point else 1, tuple(self.shape))

    return method


def nested(one, shape):
    return [nested(one, shape[1:]) for _ in range(shape[0])] if shape else one


def give_numbers() -> None:
    for kind in (Tensor, FakeTensor):
        kind.item = numbers("item", lambda one, _: one)
        kind.tolist = numbers("tolist", nested)
        kind.__float__ = numbers("float", lambda one, _: float(one))
        kind.__bool__ = numbers("bool", lambda *_: False)


def place_on_the_card(model: nn.Module, left: str) -> nn.Module:
    """Move a module as Module.to would; that changes a parameter's data, which a fake tensor does not let happen."""
    for module in model.modules():
        for name, parameter in module._parameters.items():
            if parameter is not None and name != left:
                module._parameters[name] = nn.Parameter(parameter.detach().to(NAME))
        for name, buffer in module._buffers.items():
            if buffer is not None and name != left:
                module._buffers[name] = buffer.to(NAME)
    return model


def tokens_in(folder: Path) -> TokenFile:
    path = folder / "tokens.bin"
    np.random.default_rng(0).integers(0, 256, 20_000).astype("<u2").tofile(path)
    return TokenFile(path, np.dtype("<u2"), 20_000)


def main(arm: str, *overrides: str) -> dict:
    left = next((word.partition("=")[2] for word in overrides if word.startswith("left=")), "")
    own = [word for word in overrides if not word.startswith("left=")]
    settings = ["size=tiny", "precision=fp32", "model.n_layer=2", "model.sequence_length=64", "compile=false"]
    config = composed(f"model={arm}", *settings, "global_batch_size=8", "micro_batch_size=4", *own)
    _setup_privateuseone_for_python_backend(NAME, backend_module=Card())
    give_numbers()
    nn.Module.to = lambda self, *_, **__: self
    engine.parallel.build_model = lambda *given, **named: place_on_the_card(build_model(*given, **named), left)
    with tempfile.TemporaryDirectory() as folder:
        config.out_dir, config.run_name = folder, "run"
        tokens = tokens_in(Path(folder))
        validation = ValidationSet(tokens, np.ones(config.model["vocab_size"], dtype=np.int64), 64, 8)
        with OnACard(allow_non_fake_inputs=True):  # what is read from files becomes fake with its first operator
            return use(config, tokens, validation)


def use(config: Config, tokens: TokenFile, validation: ValidationSet) -> dict:
    ranks = Ranks(0, 0, 1, torch.device(NAME, 0))
    trainer = Trainer(config, ranks, RunData(cast(Manifest, None), tokens, validation), checkpoint=None)
    ASKED.clear()
    trainer.train_step(cast(Interruption, types.SimpleNamespace(received=None)))
    asked = dict(ASKED)
    model = trainer.raw_model
    evaluate(trainer.model_with_loss, validation, 4, ranks, trainer.autocast)
    max_norm_deviation(model), scale_means(model)
    snapshot = take_snapshot(model, trainer.optimizer, trainer.state)
    assert snapshot
    drawn = []
    for rows, sampling in ((1, Sampling(temperature=0.0)), (3, Sampling(0.8, 50, 0.9, 0.1, 1.2))):
        prompt = torch.zeros((rows, 62), dtype=torch.long, device=NAME)  # so that the window moves on
        drawn += generate(model.eval(), prompt, 5, n_tokens=256, sampling=sampling, end_token=255)
    with torch.no_grad():
        longer = model(torch.zeros((1, 100), dtype=torch.long, device=NAME))  # beyond the trained length
    return {
        "asked": asked,
        "parameters": sorted({str(parameter.device) for parameter in model.parameters()}),
        "snapshot": sorted({str(tensor.device) for tensor in (*snapshot.model.values(), *snapshot.optimizer.values())}),
        "drawn": sorted({str(tensor.device) for tensor in [*drawn, longer]}),
    }


if __name__ == "__main__":
    print(json.dumps(main(*sys.argv[1:])))
