"""An optimizer's state as named tensors: "<kind>/<parameter name>", whatever the order of the parameters or their sharding."""

import torch
from torch import Tensor

from engine.distributed import shard_as


def flatten_optimizer(model: torch.nn.Module, optimizer: torch.optim.Optimizer) -> dict[str, Tensor]:
    """Return the optimizer's tensors under "<kind>/<parameter name>"."""
    names = parameter_names(model, optimizer)
    return {
        f"{key}/{names[index]}": value for index, entry in optimizer.state_dict()["state"].items() for key, value in entry.items()
    }


def restore_optimizer(flat: dict[str, Tensor], model: torch.nn.Module, optimizer: torch.optim.Optimizer) -> None:
    """Put named tensors into optimizer, in place; raise ValueError if they are not those of the model's parameters."""
    state: dict[int, dict[str, Tensor]] = {}
    parameters = dict(model.named_parameters())
    for index, name in enumerate(parameter_names(model, optimizer)):
        shape = parameters[name].shape
        expected = {"exp_avg": shape, "exp_avg_sq": shape, "step": torch.Size()}
        found = {key: flat[f"{key}/{name}"] for key in expected if f"{key}/{name}" in flat}
        if {key: tensor.shape for key, tensor in found.items()} != expected:
            raise ValueError(f"nothing for {name}, or not of its shape")
        state[index] = {key: shard_as(value, parameters[name]) if value.dim() else value for key, value in found.items()}
    optimizer.load_state_dict({"state": state, "param_groups": optimizer.state_dict()["param_groups"]})


def parameter_names(model: torch.nn.Module, optimizer: torch.optim.Optimizer) -> list[str]:
    """Return the parameters' names in the optimizer's own order."""
    name_of = {id(p): name for name, p in model.named_parameters()}
    return [name_of[id(p)] for group in optimizer.param_groups for p in group["params"]]
