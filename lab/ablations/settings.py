"""Read from a run's configuration what it changes about nGPT, and find the paper's row for a change."""

import json
import math
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from engine.models import MODELS
from lab.runs import Run, RunFolderError, lookup, to_number
from lab.speedup.comparable import CONTROLLED_KEYS, IDENTIFYING, ON_NONFINITE, read_recipe

PAPER = json.loads(Path(__file__).with_name("paper.json").read_text(encoding="utf-8"))
PLAIN, VARIANT = "ngpt", "ngpt_ablation"
# Of the recipe, what makes no row: what must be equal, what names a run inside its row, and what acts on faults alone.
NO_ROW = CONTROLLED_KEYS | IDENTIFYING | ON_NONFINITE
SIZE_KEYS = ("vocab_size", "sequence_length", "n_layer", "n_head", "n_embd")
TOLERANCE = 0.005  # relative: sqrt(128) is written 11.3 in a configuration

Setting = dict[str, Any]


@dataclass(frozen=True)
class PaperRow:
    """One row of the paper's tables; learned is the mean of the scale as printed there."""

    table: int
    row: str
    delta_percent: float
    learned: str | None


def read_setting(run: Run) -> Setting:
    """Return what a row may change, the model and all else that shapes the result; what is not written is the default."""
    model = {**plain_model(), **(lookup(run.config, "model") or {})}
    width = to_number(model["n_embd"])
    if width is None or not width > 0:
        raise RunFolderError(f"{run.path}/config.yaml: model.n_embd is {model['n_embd']!r}, not a number above 0")
    setting = {f"model.{key}": clean(width**-0.5 if value is None else value) for key, value in model.items() if key != "name"}
    return setting | {
        key: clean(value) for key, value in read_recipe(run).items() if key.partition(".")[0] not in {*NO_ROW, "model"}
    }


def plain_model() -> dict[str, Any]:
    return asdict(MODELS[VARIANT].Config())


def plain_setting(width: float) -> Setting:
    """Return what the paper's nGPT has at a width, sizes left aside."""
    model = {key: width**-0.5 if value is None else value for key, value in plain_model().items()}
    plain = {f"model.{key}": clean(value) for key, value in model.items() if key not in SIZE_KEYS}
    return plain | {"weight_decay": 0.0, "warmup_steps": 0.0}


def clean(value: object) -> object:
    """Return a value that compares: numbers as floats, lists as sorted tuples."""
    if isinstance(value, bool):
        return value
    if isinstance(value, list):
        return tuple(sorted(str(item) for item in value))
    number = to_number(value)
    return str(value) if number is None else number


def freeze(setting: Setting) -> tuple:
    """Return a setting as a key that equal settings share."""
    return tuple(sorted((key, f"{value:.3g}" if isinstance(value, float) else str(value)) for key, value in setting.items()))


def equal(a: object, b: object) -> bool:
    """Compare numbers by their relative distance, all else exactly."""
    if isinstance(a, float) and isinstance(b, float):
        return math.isclose(a, b, rel_tol=TOLERANCE)
    return a == b


def differing_keys(a: Setting, b: Setting) -> list[str]:
    """Return the keys on which two settings differ."""
    return sorted(key for key in a.keys() | b.keys() if not equal(a.get(key), b.get(key)))


def find_paper_row(setting: Setting, base: Setting) -> PaperRow | None:
    """Return the paper's row for a change, its percentage restated for the paper's row that this base is.

    So where the base already has one of the settings of table 4, the others are still compared with the right figure.
    """
    changed = set(differing_keys(base, setting))
    for family in PAPER["families"]:
        keys = [f"model.{key}" for key in family["keys"]]
        if not changed or not changed <= set(keys):
            continue
        row, reference = (_find_in_family(family, keys, which) for which in (setting, base))
        if row and reference:
            ratio = (1 + row["delta_percent"] / 100) / (1 + reference["delta_percent"] / 100)
            name = f"{family['scale']} {row['row']}".strip()
            return PaperRow(family["table"], name, round(100 * (ratio - 1), 2), row["learned"])
    return None


def paper_position(row: PaperRow) -> int:
    """Return where a row stands in the paper."""
    names = [
        (family["table"], f"{family['scale']} {item['row']}".strip()) for family in PAPER["families"] for item in family["rows"]
    ]
    return names.index((row.table, row.row))


def _find_in_family(family: dict, keys: list[str], setting: Setting) -> dict | None:
    width = setting["model.n_embd"]
    words = {"sqrt(d)": width**0.5, "1/sqrt(d)": width**-0.5}
    for row in family["rows"]:
        values = [clean(words[value] if isinstance(value, str) else value) for value in row["setting"]]
        if all(equal(setting.get(key), value) for key, value in zip(keys, values, strict=True)):
            return row
    return None


def word(value: object) -> str:
    """Return a value in few characters, as a configuration spells it."""
    if isinstance(value, bool):
        return str(value).lower()
    if isinstance(value, tuple):
        value = f"[{', '.join(value)}]"
    text = f"{value:.4g}" if isinstance(value, float) else str(value)
    return text if len(text) <= 40 else text[:37] + "..."
