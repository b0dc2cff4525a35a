"""Rates and inits of a large model from a small one that was tuned (parametrization=transfer): config alone, no new forward."""

from cli.composition import ConfigError
from engine.config import Config, InitMultipliers, RateMultipliers
from engine.models import TRANSFERS


def apply_transfer(config: Config) -> None:
    """Fill in the multipliers and the model's keys that follow from config.base, once; base.applied remembers it.

    learning_rate and the model's initial scales are those that were tuned on the base.

    Raises:
        ConfigError: the base is not stated, the model has no rules, or a multiplier is set by hand as well.
    """
    if config.parametrization != "transfer" or config.base.applied:
        return
    base, model, name = config.base, config.model, config.model.get("name")
    missing = [f"base.{key}" for key in ("n_embd", "n_layer", "max_steps") if not (getattr(base, key) or 0) > 0]
    if missing:
        raise ConfigError(f"parametrization=transfer needs {', '.join(missing)}: the size and steps at which the rate was tuned")
    if name not in TRANSFERS:
        raise ConfigError(f"parametrization=transfer: there are rules for {', '.join(TRANSFERS)}, none for model={name}")
    if config.rate_multiplier != RateMultipliers() or config.init_multiplier != InitMultipliers():
        raise ConfigError("parametrization=transfer sets rate_multiplier and init_multiplier; leave them out")
    assert base.n_embd and base.n_layer and base.max_steps  # none is missing
    rules = TRANSFERS[name](
        model,
        width=model["n_embd"] / base.n_embd,
        depth=model["n_layer"] / base.n_layer,
        steps=config.max_steps / base.max_steps,
        base_width=base.n_embd,
    )
    config.rate_multiplier = RateMultipliers(**rules.rate)
    config.init_multiplier = InitMultipliers(**rules.init)
    config.model = {**model, **rules.model}
    base.applied = True
