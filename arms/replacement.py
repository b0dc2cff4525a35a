"""Put another module in the place of a model's own."""

from torch import nn


def replace_module(parent: nn.Module, name: str, module: nn.Module) -> None:
    """Put module in the place of parent's submodule `name`, with its weights where both have them.

    So a variant starts, at equal seeds, from the very weights that its base starts from.
    """
    module.load_state_dict(getattr(parent, name).state_dict(), strict=False)
    setattr(parent, name, module)
