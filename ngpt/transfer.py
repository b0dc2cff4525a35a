"""How nGPT's rates and scales follow its width, depth and number of steps: nuGPT's rules (arXiv 2604.27077, table 1).

They suppose a head size that is kept, no warmup and no weight decay. Every weight is normalized, so its init needs no rule.
"""

from gpt.transfer import Transfer


def transfer(config: dict, width: float, depth: float, steps: float, base_width: int) -> Transfer:
    """Return the rules for an nGPT that is `width` times as wide, `depth` times as deep and trained `steps` times as long.

    The rate of all parameters ~ steps^(-1/3); beside it embedding ~ width^(-1/2), matrices ~ width^(-3/4), output half of that.
    alpha starts at 1/depth of the base's, s_z at sqrt(width) of it; what is stored at 1/sqrt(n_embd) is stored at the base's.
    """
    budget = steps ** (-1 / 3)
    stored = {key: base_width**-0.5 for key in ("alpha_scale", "sqk_scale", "sz_scale") if config.get(key) is None}
    return Transfer(
        rate={
            "embedding": budget * width**-0.5,
            "matrices": budget * width**-0.75,
            "output": budget * 0.5 * width**-0.75,
            "scales": budget,
        },
        model={"alpha_init": config["alpha_init"] / depth, "sz_init": config["sz_init"] * width**0.5, **stored},
    )
