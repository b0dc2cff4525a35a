"""Know what others published, and draw the line between results that agree with these runs and those that do not."""

import re
from dataclasses import dataclass
from functools import cache
from pathlib import Path

import yaml

from lab.runs import Run, lookup, to_number

PUBLISHED = Path(__file__).with_name("published.yaml")
# Vocabularies of published losses: the name their tokenizer must have, and the sizes a model may give them.
VOCABULARIES = {
    "gpt2": (re.compile(r"gpt-?2", re.IGNORECASE), (50257, 50304)),
    "llama2": (re.compile(r"(.*[-_/ ])?llama-?_?2(?!\d).*", re.IGNORECASE), (32000,)),
}

OPENWEBTEXT = ("openwebtext", "openwebtext_llama2")  # configs/data: the same documents in two tokenizers' units


@dataclass(frozen=True)
class PublishedSetting:
    """What two results must share before their losses may be seen in one picture; `shape` is (n_layer, n_embd, n_head)."""

    vocabulary: str
    context: int
    shape: tuple[int, int, int]
    data: str


@dataclass(frozen=True)
class PublishedSeries:
    """One published series: (tokens, nats/token), of ends of separate runs or along one run (`is_curve`)."""

    source: str
    arm: str
    weights: str | None
    points: tuple[tuple[float, float], ...]
    is_curve: bool
    digitized: bool
    setting: PublishedSetting | None
    size: str = ""


@cache
def read_published() -> dict:
    """Return published.yaml as it stands."""
    return yaml.safe_load(PUBLISHED.read_text(encoding="utf-8"))


@cache
def list_series() -> tuple[PublishedSeries, ...]:
    """Return every published series of sound code, with the best of its learning rates at each budget."""
    published = read_published()
    entries = [(entry, False) for entry in published["ladders"]] + [(entry, True) for entry in published["curves"]]
    return tuple(
        PublishedSeries(
            entry["source"],
            entry["arm"],
            entry["weights"],
            tuple((tokens, min(loss) if isinstance(loss, list) else loss) for tokens, loss in entry["points"]),
            is_curve,
            entry["digitized"],
            _read_setting(entry),
            entry.get("size", ""),
        )
        for entry, is_curve in entries
        if "defect" not in entry
    )


def _read_setting(entry: dict) -> PublishedSetting | None:
    shape = entry["shape"]
    return PublishedSetting(entry["vocabulary"], entry["context"], tuple(shape), entry["data"]) if shape else None


def read_whole(run: Run, key: str) -> int | None:
    """Return a whole number of a run's configuration, None where there is none."""
    number = to_number(lookup(run.config, key))
    return int(number) if number is not None and number.is_integer() else None


def read_shape(run: Run) -> tuple[int | None, int | None, int | None]:
    """Return (n_layer, n_embd, n_head) of a run."""
    n_layer, n_embd, n_head = (read_whole(run, f"model.{key}") for key in ("n_layer", "n_embd", "n_head"))
    return n_layer, n_embd, n_head


def describe_setting(run: Run) -> PublishedSetting | None:
    """Return the setting of a run, None unless every part of it is certain.

    The vocabulary is known by the recorded name of the tokenizer together with the model's vocabulary size, the data by
    the name that both the configuration and the environment record.
    """
    name, size = lookup(run.environment, "data.tokenizer.name"), read_whole(run, "model.vocab_size")
    vocabulary = next((key for key, (form, sizes) in VOCABULARIES.items() if form.fullmatch(str(name)) and size in sizes), None)
    shape, context = read_shape(run), read_whole(run, "model.sequence_length")
    data = lookup(run.config, "data.name")
    if vocabulary is None or context is None or data != lookup(run.environment, "data.name") or not isinstance(data, str):
        return None
    data = "openwebtext" if data in OPENWEBTEXT else data
    n_layer, n_embd, n_head = shape
    if n_layer is None or n_embd is None or n_head is None:
        return None
    return PublishedSetting(vocabulary, context, (n_layer, n_embd, n_head), data)


def find_series(runs) -> tuple[PublishedSeries, ...]:
    """Return the published series whose vocabulary, context, shape and data are those of all these runs."""
    settings = {describe_setting(run) for run in runs}
    if len(settings) != 1 or None in settings:
        return ()
    return tuple(series for series in list_series() if series.setting in settings)


def find_claim(shape: tuple, context: int, data: str) -> dict | None:
    """Return the claim for a model shape, context and data set, None where nothing was published for it."""
    claims = [claim for claim in read_published()["claims"] if claim["shape"] and data in OPENWEBTEXT]
    return next((claim for claim in claims if tuple(claim["shape"]) == tuple(shape) and claim["context"] == context), None)
