"""Where prompts come from: the command line, a file of many, or standard input."""

import json
import sys
from pathlib import Path

from corpus.manifest import DataError, first_line

LARGEST_FILE = 64_000_000  # bytes; a larger file is no list of prompts, but a corpus given by mistake


def read_prompts(prompt: str | None, prompt_file: str | None) -> list[str]:
    """Return the prompts: the one given, or those of the file, or all of standard input (nothing on a terminal)."""
    if prompt_file is not None:
        return read_prompt_file(Path(prompt_file))
    if prompt is None:
        prompt = "" if sys.stdin is None or sys.stdin.isatty() else sys.stdin.read()
    # A command line may hold bytes that are no UTF-8, which Python keeps as half surrogate pairs.
    return [prompt.encode("utf-16", "surrogatepass").decode("utf-16", "replace")]


def read_prompt_file(path: Path) -> list[str]:
    """Return the prompts of a file, one on each line that is not blank; raise DataError naming file and line.

    In a file whose name ends in .jsonl each line is a JSON object and its "prompt" the text, which so may have several
    lines; in any other the line itself is the prompt.
    """
    try:
        with path.open("rb") as file:
            content = file.read(LARGEST_FILE + 1)
    except OSError as error:
        raise DataError(f"prompt_file={path}: {error.strerror}") from None
    if len(content) > LARGEST_FILE:
        raise DataError(f"prompt_file={path}: more than {LARGEST_FILE:,} bytes are no list of prompts")
    try:
        text = content.decode("utf-8-sig")
    except UnicodeDecodeError as error:
        raise DataError(f"prompt_file={path}: not UTF-8 text (byte {error.start:,})") from None
    if "\0" in text:
        raise DataError(f"prompt_file={path}: not text, there are zero bytes in it")
    # Not splitlines(), which would also cut a prompt at form feeds and Unicode's own line separators.
    lines = [(number, line.removesuffix("\r")) for number, line in enumerate(text.split("\n"), 1) if line.strip()]
    if not lines:
        raise DataError(f"prompt_file={path}: there is no prompt in it")
    if path.suffix != ".jsonl":
        return [line for _, line in lines]
    return [prompt_of(line, f"prompt_file={path}, line {number}") for number, line in lines]


def prompt_of(line: str, where: str) -> str:
    try:
        record = json.loads(line)
    except (ValueError, RecursionError) as error:
        raise DataError(f"{where}: not JSON ({first_line(error)})") from None
    prompt = record.get("prompt") if isinstance(record, dict) else None
    if not isinstance(prompt, str):
        raise DataError(f'{where}: not a JSON object with a "prompt" that is text')
    return prompt.encode("utf-16", "surrogatepass").decode("utf-16", "replace")
