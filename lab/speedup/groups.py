"""Compare runs of several sizes, contexts and corpora in one call: one section for each, and a table over all."""

from dataclasses import dataclass

from lab.runs import Run, lookup
from lab.speedup.comparable import IncomparableError, reason_left_out
from lab.speedup.decomposition import Decomposition, decompose, find_reference
from lab.speedup.published import find_claim, list_published_speedups, read_published, read_shape, read_whole
from lab.speedup.report import Analysis, analyze_runs
from lab.speedup.speedup import Comparison
from lab.words import format_context


@dataclass(frozen=True)
class Setting:
    """Hold what sets a group of runs apart: within a group all else that matters must be equal."""

    shape: tuple
    context: int
    data: str
    tokenizer: str


@dataclass(frozen=True)
class Section:
    """Hold one group of comparable runs; `size` is the name that its runs give their shape."""

    setting: Setting
    size: str
    analysis: Analysis
    decomposition: Decomposition | None = None

    @property
    def label(self) -> str:
        """Return the section's name: size, context, data and tokenizer."""
        tokens = "" if self.setting.tokenizer in ("", self.setting.data) else f", {self.setting.tokenizer} tokens"
        return f"{self.size} at context {format_context(self.setting.context)}, {self.setting.data}{tokens}"

    @property
    def comparison(self) -> Comparison | None:
        """Return the comparison of nGPT with the baseline, or the first there is."""
        comparisons = self.analysis.comparisons
        return next((item for item in comparisons if item.challenger.split(" ")[0] == "ngpt"), next(iter(comparisons), None))


@dataclass(frozen=True)
class Report:
    """Hold every section, and a line for each group that could not be one."""

    sections: tuple[Section, ...]
    notes: tuple[str, ...] = ()


def analyze_groups(
    runs: list[Run],
    baseline: str | None = None,
    across: tuple[str, ...] = (),
    with_parts: bool = False,
    untuned_rate: float | None = None,
) -> Report:
    """Return one section per (shape, context, data, tokenizer); raise IncomparableError for what cannot be compared.

    Runs of different groups are never compared. If that leaves no two arms together, the runs are refused as a whole,
    since that is hardly what was meant. `with_parts` splits arms by precision and takes the speedup apart.
    """
    across = tuple(dict.fromkeys((*across, "precision"))) if with_parts else across
    groups: dict[Setting, list[Run]] = {}
    for run in runs:
        groups.setdefault(find_setting(run), []).append(run)
    finished = {setting: {run.model for run in members if not reason_left_out(run)} for setting, members in groups.items()}
    if len(groups) > 1 and all(len(models) < 2 for models in finished.values()) and not across:
        groups = {find_setting(runs[0]): runs}
    sections, notes, names = [], [], name_sizes(groups)
    for setting, members in sorted(groups.items(), key=lambda item: _order(item[0])):
        size = names[setting]
        if len(groups) > 1 and not finished[setting]:
            reasons = [f"{run.name} ({reason_left_out(run)})" for run in members]
            notes.append(f"{size} at context {format_context(setting.context)}: no finished run: {', '.join(reasons)}")
            continue
        try:
            reference = baseline or (find_reference(members, across) if with_parts else None)
            analysis = analyze_runs(members, reference, across)
            parts = decompose(analysis, across, untuned_rate) if with_parts else None
        except IncomparableError as error:
            where = f"{size} at context {format_context(setting.context)}: " if len(groups) > 1 else ""
            raise IncomparableError(f"{where}{error}") from None
        sections.append(Section(setting, size, analysis, parts))
    if not sections:
        raise IncomparableError("no finished run to compare:\n" + "\n".join(f"  {note}" for note in notes))
    return Report(tuple(sections), tuple(notes))


def find_setting(run: Run) -> Setting:
    """Return the group that a run belongs to."""
    return Setting(
        read_shape(run),
        read_whole(run, "model.sequence_length") or 0,
        str(lookup(run.config, "data.name") or "unnamed data"),
        str(lookup(run.environment, "data.tokenizer.name") or ""),
    )


def name_sizes(groups: dict[Setting, list[Run]]) -> dict[Setting, str]:
    """Return each group's size as its runs call it, or its shape where the name would not tell shapes apart."""
    called = {setting: {str(lookup(run.config, "size") or "") for run in members} for setting, members in groups.items()}
    names = {}
    for setting, words in called.items():
        shapes = {other.shape for other, theirs in called.items() if theirs == words}
        layers, width, _ = setting.shape
        names[setting] = next(iter(words)) if len(words) == len(shapes) == 1 and words != {""} else (f"{layers} layers of {width}")
    return names


def _order(setting: Setting) -> tuple:
    return tuple(str(part).rjust(12) for part in (*setting.shape, setting.context, setting.data, setting.tokenizer))


def summarize(report: Report) -> list[dict]:
    """Return one row per section (this run) and per published setting without one, as plain values."""
    rows, shown = [], set()
    for section in report.sections:
        setting, item = section.setting, section.comparison
        claim = find_claim(setting.shape, setting.context, setting.data)
        shown.add((setting.shape, setting.context) if claim else None)
        rows.append(
            {
                "size": section.size,
                "context": setting.context,
                "data": setting.data,
                "tokenizer": setting.tokenizer,
                "paper": claim["paper"] if claim else None,
                "reported": claim["reported"] if claim else None,
                "from_published_points": _published(setting.shape, setting.context) if claim else [],
                "speedup": item.token_headline if item else None,
                "time_speedup": item.time_headline if item else None,
            }
        )
    for claim in read_published()["claims"]:
        shape = tuple(claim["shape"]) if claim["shape"] else None
        if (shape, claim["context"]) not in shown:
            rows.append(
                {
                    "size": claim["size"],
                    "context": claim["context"],
                    "data": "openwebtext",
                    "tokenizer": "",
                    "paper": claim["paper"],
                    "reported": claim["reported"],
                    "from_published_points": _published(shape, claim["context"]),
                    "speedup": None,
                    "time_speedup": None,
                }
            )
    return rows


def _published(shape, context: int) -> list:
    """Return the speedups between published points of a shape and context."""
    return [item for item in list_published_speedups() if item.setting.shape == shape and item.setting.context == context]
