"""Texts side by side in a terminal, where some characters take two columns and some none."""

import unicodedata

NARROWEST = 24  # columns; in less, text is hard to read
BETWEEN = " | "


def side_by_side(titles: list[str], texts: list[str], width: int) -> str | None:
    """Return the texts as columns under their titles, in lines of at most `width`; None where the columns would be too narrow."""
    each = (width - len(BETWEEN) * (len(texts) - 1)) // len(texts)
    if each < NARROWEST:
        return None
    heads, bodies = ([wrap(text, each) for text in column] for column in (titles, texts))
    rule = "-+-".join("-" * each for _ in texts)
    return "\n".join([*join_columns(heads, each), rule, *join_columns(bodies, each)])


def join_columns(columns: list[list[str]], width: int) -> list[str]:
    height = max(map(len, columns))
    filled = [[*column, *[""] * (height - len(column))] for column in columns]
    return [BETWEEN.join(pad(line, width) for line in row).rstrip() for row in zip(*filled, strict=True)]


def pad(line: str, width: int) -> str:
    return line + " " * (width - text_width(line))


def wrap(text: str, width: int) -> list[str]:
    """Return text as lines of at most `width` >= 2 columns, broken between words where there are any."""
    lines = []
    for line in printable(text).split("\n"):
        while (fits := count_fitting(line, width)) < len(line):
            space = line.rfind(" ", 0, fits + 1)
            if line[: max(space, 0)].strip():
                lines.append(line[:space])
                line = line[space:].lstrip(" ")
            else:  # a word longer than the line, or a script without spaces
                lines.append(line[:fits])
                line = line[fits:]
        lines.append(line)
    return lines


def count_fitting(line: str, width: int) -> int:
    """Return how many of the first characters fit into width."""
    used = 0
    for index, character in enumerate(line):
        used += character_width(character)
        if used > width:
            return index
    return len(line)


def text_width(text: str) -> int:
    """Return the columns that a line takes; wrong by little where a terminal draws several emoji as one."""
    return sum(map(character_width, text))


def character_width(character: str) -> int:
    if unicodedata.category(character) in ("Mn", "Me", "Cf"):  # accents and the like, drawn onto the one before
        return 0
    return 2 if unicodedata.east_asian_width(character) in "WF" else 1


def printable(text: str) -> str:
    """Return text without what would move the cursor: tabs become spaces, other controls the replacement character."""
    text = text.replace("\r\n", "\n").expandtabs(4)
    return "".join("\ufffd" if unicodedata.category(c) in ("Cc", "Zl", "Zp") and c != "\n" else c for c in text)
