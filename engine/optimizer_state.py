"""An optimizer's state as named tensors: "<kind>/<parameter name>", whatever the order of the parameters or their sharding."""

import torch
from torch import Tensor

from engine.distributed import shard_as
from engine.updates import NUMBERS, STATE, Optimizer


def flatten_optimizer(model: torch.nn.Module, optimizer: Optimizer) -> dict[str, Tensor]:
    """Return the optimizer's tensors under "<kind>/<parameter name>"."""
    flat: dict[str, Tensor] = {}
    for part in optimizer.parts:
        names = parameter_names(model, part)
        for index, entry in part.state_dict()["state"].items():
            flat |= {f"{key}/{names[index]}": value for key, value in entry.items()}
    return flat


def restore_optimizer(flat: dict[str, Tensor], model: torch.nn.Module, optimizer: Optimizer) -> None:
    """Put named tensors into optimizer, in place; raise ValueError if they are not those of the model's parameters."""
    parameters = dict(model.named_parameters())
    for part in optimizer.parts:
        state: dict[int, dict[str, Tensor]] = {}
        for index, name in enumerate(parameter_names(model, part)):
            expected = {key: torch.Size() if key in NUMBERS else parameters[name].shape for key in STATE[type(part)]}
            found = {key: flat[f"{key}/{name}"] for key in expected if f"{key}/{name}" in flat}
            if {key: tensor.shape for key, tensor in found.items()} != expected:
                raise ValueError(f"nothing for {name}, or not of its shape")
            state[index] = {key: shard_as(value, parameters[name]) if value.dim() else value for key, value in found.items()}
        part.load_state_dict({"state": state, "param_groups": part.state_dict()["param_groups"]})


def parameter_names(model: torch.nn.Module, part: torch.optim.Optimizer) -> list[str]:
    """Return the parameters' names in the order of one of the optimizer's parts."""
    name_of = {id(p): name for name, p in model.named_parameters()}
    return [name_of[id(p)] for group in part.param_groups for p in group["params"]]
