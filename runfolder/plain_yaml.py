"""YAML from a folder that may be anybody's."""

from typing import Any

import yaml

LARGEST_TEXT = 200_000  # characters; a run's configuration has two thousand
MOST_BRACKETS = 200
# The same language in C, where PyYAML has it: a tenth of the time, which a report of a hundred runs would spend on them.
Loader = getattr(yaml, "CSafeLoader", yaml.SafeLoader)


def load_plain_yaml(text: str) -> Any:
    """Return yaml.safe_load(text); raise ValueError, in one line, for what no configuration of ours holds.

    Ten lines of aliases can describe more values than there is memory, and nested brackets take a time quadratic in their
    number.
    """
    if len(text) > LARGEST_TEXT or text.count("[") + text.count("{") > MOST_BRACKETS:
        raise ValueError(f"more than {LARGEST_TEXT:,} characters or {MOST_BRACKETS} brackets")
    try:
        if any(isinstance(event, yaml.AliasEvent) for event in yaml.parse(text, Loader)):
            raise ValueError("it has aliases")
        return yaml.load(text, Loader)
    except (yaml.YAMLError, TypeError, RecursionError) as error:
        raise ValueError((str(error).splitlines() or [type(error).__name__])[0]) from None
