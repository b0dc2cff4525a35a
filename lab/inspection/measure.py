"""Measure a trained model's weights: embeddings, condition numbers, learned scales (arXiv 2410.01131, section 3.2).

Everything is found by the parameters' names (gpt/model.py), so that any arm can be measured: what it does not have is left out,
and a note says so. Linear algebra in float64.
"""

import math
from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor, nn

# Name in the report: path inside a block, dimension along which the paper normalizes, whether heads are measured singly.
MATRICES = {
    "q": ("attn.q_proj", 1, True),
    "k": ("attn.k_proj", 1, True),
    "v": ("attn.v_proj", 1, True),
    "up": ("mlp.up_proj", 1, False),
    "gate": ("mlp.gate_proj", 1, False),
    "down": ("mlp.down_proj", 0, False),
}
SCALES = ("attn_alpha", "mlp_alpha", "sqk", "su", "sv", "sz")
PAIR_LIMIT = 200_000  # pairs of embeddings whose dot product is taken; a smaller vocabulary gives all its pairs
PAIR_SEED = 0
UNIT_NORM_TOLERANCE = 1e-4  # fp32 weights kept at unit norm are within 1e-6
ROWS_AT_ONCE = 8192


class InspectionError(ValueError):
    """Weights that cannot be measured."""

    exit_code = 4


@dataclass(frozen=True)
class Embedding:
    """One embedding matrix (V, C): norms (V,) ascending, covariance eigenvalues (C,) descending, cosines ascending."""

    norms: np.ndarray
    eigenvalues: np.ndarray
    cosines: np.ndarray  # dot products of pairs of rows at unit norm
    dots: np.ndarray  # of the same pairs as they are
    all_pairs: bool

    @property
    def relative_eigenvalues(self) -> np.ndarray | None:
        """Return the eigenvalues over their median, None where the median is zero."""
        median = np.median(self.eigenvalues)
        return self.eigenvalues / median if median > 0 else None


@dataclass(frozen=True)
class Matrix:
    """One matrix of one layer; heads are the rows of the lists (one row where heads are not told apart)."""

    norms: np.ndarray  # of the vectors along n_embd, ascending
    singular_values: np.ndarray  # (heads, k), descending
    conditions: np.ndarray  # (heads,), inf where rank-deficient
    normalized_conditions: np.ndarray  # the same after bringing the vectors to unit norm
    is_unit_norm: bool


@dataclass(frozen=True)
class Scales:
    """One kind of learned scale: effective values, one array a layer."""

    layers: list[np.ndarray]
    init: float | None
    is_learned: bool

    @property
    def mean(self) -> float:
        """Return the mean |value| over all layers: what metrics.jsonl records as scale/<name>."""
        return float(np.mean([np.abs(values).mean() for values in self.layers]))


@dataclass(frozen=True)
class Measurement:
    """Everything that is measured of one model."""

    embeddings: dict[str, Embedding]  # input, output
    matrices: dict[str, list[Matrix]]  # one a layer, by those names of MATRICES that every layer has
    scales: dict[str, Scales]  # by the names of SCALES, those that the model has
    notes: list[str]


@torch.no_grad()
def measure_model(model: nn.Module) -> Measurement:
    """Measure a model's weights on the CPU.

    Raises:
        InspectionError: a weight is not finite.
    """
    parameters = dict(model.named_parameters())
    for name, parameter in parameters.items():
        if not torch.isfinite(parameter).all():
            raise InspectionError(f"{name} holds values that are not finite; there is nothing to measure")
    output = parameters.get("lm_head.weight", parameters["embedding.weight"])  # an arm may share one table
    embeddings = {"input": measure_embedding(parameters["embedding.weight"]), "output": measure_embedding(output)}
    matrices: dict[str, list[Matrix]] = {}
    notes = []
    for name, (path, dim, per_head) in MATRICES.items():
        weights = [parameters.get(f"blocks.{layer}.{path}.weight") for layer in range(model.config.n_layer)]
        found = [weight for weight in weights if weight is not None and weight.dim() == 2]
        if len(found) < len(weights):
            notes.append(f"{name}: this model has no {path}.weight in {'any' if not found else 'every'} layer; it is left out")
            continue
        matrices[name] = [measure_matrix(weight, dim, heads_of(weight, model.config.n_head if per_head else 1)) for weight in found]
    return Measurement(embeddings, matrices, find_scales(model), [*notes, *describe_singular(matrices)])


def heads_of(weight: Tensor, n_head: int) -> int:
    """Return the number of heads to cut a matrix into: one where it cannot be cut into n_head."""
    return n_head if len(weight) % n_head == 0 else 1


def measure_embedding(weight: Tensor) -> Embedding:
    """Measure an embedding matrix (V, C)."""
    norms = torch.linalg.vector_norm(weight, dim=1, dtype=torch.float64)
    first, second = choose_pairs(len(weight))
    dots = np.concatenate(
        [
            (weight[i].double() * weight[j].double()).sum(1).numpy()
            for i, j in zip(first.split(ROWS_AT_ONCE), second.split(ROWS_AT_ONCE), strict=True)
        ]
    )
    lengths = (norms[first] * norms[second]).numpy()
    cosines = np.divide(dots, lengths, out=np.zeros_like(dots), where=lengths > 0)
    return Embedding(
        norms=np.sort(norms.numpy()),
        eigenvalues=covariance_eigenvalues(weight),
        cosines=np.sort(cosines),
        dots=np.sort(dots),
        all_pairs=len(dots) == math.comb(len(weight), 2),
    )


def covariance_eigenvalues(weight: Tensor) -> np.ndarray:
    """Return the eigenvalues, descending, of the covariance (C, C) of the rows of weight (V, C) about their mean."""
    mean = weight.mean(0, dtype=torch.float64)
    total = torch.zeros(len(mean), len(mean), dtype=torch.float64)
    for rows in weight.split(ROWS_AT_ONCE):  # in parts: a float64 copy of the whole table can be half a gigabyte
        centred = rows.double() - mean
        total += centred.T @ centred
    return torch.linalg.eigvalsh(total / max(len(weight) - 1, 1)).clamp(min=0).flip(0).numpy()


def choose_pairs(count: int) -> tuple[Tensor, Tensor]:
    """Return the indices of all pairs of different rows, or of PAIR_LIMIT random ones (PAIR_SEED) if there are more."""
    if math.comb(count, 2) <= PAIR_LIMIT:
        first, second = np.triu_indices(count, k=1)
    else:
        random = np.random.default_rng(PAIR_SEED)
        first = random.integers(count, size=PAIR_LIMIT)
        second = (first + random.integers(1, count, size=PAIR_LIMIT)) % count
    return torch.from_numpy(first), torch.from_numpy(second)


def measure_matrix(weight: Tensor, dim: int, n_head: int) -> Matrix:
    """Measure a weight matrix (out, in) whose vectors lie along dim, cut along its rows into n_head equal heads."""
    weight = weight.double()
    norms = torch.linalg.vector_norm(weight, dim=dim, keepdim=True)
    is_unit_norm = bool((norms - 1).abs().max() <= UNIT_NORM_TOLERANCE)
    heads = (n_head, -1, weight.shape[1])
    values = torch.linalg.svdvals(weight.view(heads)).numpy()
    conditions = condition_numbers(values, max(heads[2], len(weight) // n_head))
    normalized = conditions
    if not is_unit_norm:  # a zero vector stays zero
        unit = (weight / norms.clamp(min=torch.finfo(torch.float64).tiny)).view(heads)
        normalized = condition_numbers(torch.linalg.svdvals(unit).numpy(), max(unit.shape[1:]))
    return Matrix(np.sort(norms.flatten().numpy()), values, conditions, normalized, is_unit_norm)


def condition_numbers(singular_values: np.ndarray, size: int) -> np.ndarray:
    """Return largest/smallest of each row (descending); inf below float64's resolution for a matrix of that size."""
    largest, smallest = singular_values[:, 0], singular_values[:, -1]
    has_full_rank = smallest > largest * size * np.finfo(np.float64).eps
    return np.divide(largest, smallest, out=np.full_like(largest, np.inf), where=has_full_rank)


def find_scales(model: nn.Module) -> dict[str, Scales]:
    """Return the effective values of each kind of scale that the model has, learned or fixed."""
    found: dict[str, list[nn.Module]] = {}
    for path, module in model.named_modules():
        name = path.rpartition(".")[2]
        if name in SCALES:
            found.setdefault(name, []).append(module)
    scales = {}
    for name in SCALES:
        if modules := found.get(name):
            init = getattr(modules[0], "init", None)
            scales[name] = Scales(
                layers=[torch.as_tensor(module()).detach().double().flatten().numpy() for module in modules],
                init=float(init) if isinstance(init, (int, float)) else None,
                is_learned=any(True for _ in modules[0].parameters()),
            )
    return scales


def describe_singular(matrices: dict[str, list[Matrix]]) -> list[str]:
    """Say which matrices are rank-deficient: their condition number is infinite."""
    notes = []
    for name, layers in matrices.items():
        counts = {
            index: int(np.isinf(layer.conditions).sum())
            for index, layer in enumerate(layers, start=1)
            if np.isinf(layer.conditions).any()
        }
        if counts:
            units = "heads" if MATRICES[name][2] else "matrices"
            places = ", ".join(f"layer {index}: {count}" for index, count in counts.items())
            notes.append(f"{name}: rank-deficient {units} ({places}); their condition number is infinite, null in JSON")
    return notes
