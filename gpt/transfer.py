"""How the baseline's rates and first weights follow its width: muP's rules for Adam (arXiv 2203.03466, table 3).

The head size is kept, so the softmax scale 1/sqrt(d_k) needs no change and the forward pass is the ordinary one. muP says
nothing of depth or of the number of steps.
"""

from dataclasses import dataclass, field


@dataclass(frozen=True)
class Transfer:
    """What a model takes over from a smaller base that was tuned: factors, by kind of parameter where they differ.

    Attributes:
        rate: kind of parameter -> factor of the learning rate.
        init: kind of parameter -> factor of the initial weights.
        model: key of the model's Config -> its value.
    """

    rate: dict[str, float]
    init: dict[str, float] = field(default_factory=dict)
    model: dict[str, float] = field(default_factory=dict)


def transfer(config: dict, width: float, depth: float, steps: float, base_width: int) -> Transfer:
    """Return the rules for a GPT that is `width` times as wide as its base; config is its `model` node.

    Matrices: rate and variance of the init ~ 1/width. Output: rate and std of the init ~ 1/width. Embedding, gains: as the base.
    """
    return Transfer(
        rate={"embedding": 1.0, "matrices": 1 / width, "output": 1 / width, "scales": 1.0},
        init={"embedding": 1.0, "matrices": width**-0.5, "output": 1 / width},
    )
