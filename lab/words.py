"""Write numbers, names and tables the same way everywhere in the laboratory."""

import textwrap

DISPLAY_NAMES = {"gpt": "GPT", "ngpt": "nGPT", "gpt_qknorm": "GPT+QK-norm", "angpt": "anGPT"}
RULES = {"update=muon": "+Muon", "update=adamh": "+AdamH"}
WIDTH = 100  # columns of a terminal that every text output fits


def display_arm(arm: str) -> str:
    """Return an arm's name as the literature writes it."""
    model, *rest = arm.split(" ")
    name = DISPLAY_NAMES.get(model, model) + "".join(RULES.get(part, "") for part in rest)
    return " ".join([name, *(part for part in rest if part not in RULES)])


def format_tokens(tokens: float) -> str:
    """Return a token count in two to three digits: 3.28M, 52.4B."""
    for size, unit in ((1e12, "T"), (1e9, "B"), (1e6, "M"), (1e3, "k")):
        if tokens >= 0.9995 * size:
            return f"{tokens / size:.3g}{unit}"
    return f"{tokens:.0f}"


def format_rate(rate: float) -> str:
    """Return a learning rate: 0.003 as 3e-3."""
    mantissa, exponent = f"{rate:.3e}".split("e")
    return f"{float(mantissa):g}e{int(exponent)}" if rate else "0"


def format_seconds(seconds: float | None) -> str:
    """Return a duration with its unit, `-` for None."""
    if seconds is None:
        return "-"
    for size, unit in ((86400, "d"), (3600, "h"), (60, "min")):
        if seconds >= 2 * size:
            return f"{seconds / size:.3g} {unit}"
    return f"{seconds:.3g} s"


def format_context(context: int) -> str:
    """Return a context length: 4096 as 4k."""
    return f"{context // 1024}k" if context and context % 1024 == 0 else str(context)


def format_optional(value: float | None, form: str = ".4f") -> str:
    """Return a number in a format, `-` for None."""
    return "-" if value is None else format(value, form)


def shorten(value: object, length: int = 80) -> str:
    """Return a value as one short line, `none` for None."""
    text = "none" if value is None else str(value)
    return text if len(text) <= length else text[: length - 3] + "..."


def printable(text: str) -> str:
    """Return one line of text without the control characters that a run's files could carry into a terminal."""
    return "".join(char if char.isprintable() else "?" for char in text)


def wrap(line: str) -> str:
    """Return a line folded to the width of a terminal."""
    return textwrap.fill(line, WIDTH, subsequent_indent="  ", break_on_hyphens=False)


def align(header: list[str], rows: list[list[str]], left: tuple[int, ...] = (0,), width: int | None = None) -> str:
    """Return a table as text whose columns numbered in `left` are left-aligned; the last is cut to fit a width."""
    widths = [max(len(row[index]) for row in [header, *rows]) for index in range(len(header))]
    if width:
        widths[-1] = min(widths[-1], width - sum(widths[:-1]) - 2 * (len(widths) - 1))
    lines = [
        "  ".join(
            shorten(cell, size).ljust(size) if index in left else cell.rjust(size)
            for index, (cell, size) in enumerate(zip(row, widths, strict=True))
        ).rstrip()
        for row in [header, *rows]
    ]
    return "\n".join([lines[0], "  ".join("-" * size for size in widths), *lines[1:]])


def markdown_table(header: list[str], rows: list[list[str]]) -> str:
    """Return a table as Markdown; bars inside cells are escaped."""
    lines = [header, ["---"] * len(header), *rows]
    return "\n".join(f"| {' | '.join(cell.replace('|', chr(92) + '|') for cell in line)} |" for line in lines)
