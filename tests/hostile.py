"""Hostile files for the fuzz tests: valid ones mutated, wrong values in the right places, and a watch over what they cause."""

import json
import resource
import signal
from contextlib import contextmanager
from pathlib import Path

from hypothesis import HealthCheck, settings
from hypothesis import strategies as st

SECONDS = 20  # a machine may be busy; what is at stake is hours
MEMORY = 2 << 30  # bytes beyond what the process has already; what is at stake is more than the machine has

# Derandomized: a fuzz test that fails now and then teaches people to run it again. Raise max_examples to search on.
bounded = settings(derandomize=True, deadline=None, database=None, max_examples=30, suppress_health_check=list(HealthCheck))

TEXTS = [
    "",
    "\x00",
    "a\nb",
    "../../victim",
    "/etc/passwd",
    "..",
    "\ud800",
    "${oc.env:HOME}",
    "!!python/name:os.system",
    "é" * 200,
    "1e999",
    "-1",
    "nan",
    "<script>",
    "0" * 64,
]
NUMBERS = [
    0,
    -1,
    1,
    2**31,
    2**53 + 1,
    2**63,
    2**64,
    10**18,
    10**400,
    0.5,
    -0.0,
    1e308,
    1e-320,
    float("nan"),
    float("inf"),
    float("-inf"),
]
leaves = st.none() | st.booleans() | st.sampled_from(NUMBERS) | st.sampled_from(TEXTS) | st.text(max_size=5)
values = st.recursive(leaves, lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(max_size=5), inner, max_size=3))


@st.composite
def mutations(draw, content: bytes) -> bytes:
    """Return content cut, with flipped bits, with pieces replaced, repeated or put in, or nothing like it."""
    changed = bytearray(content)
    for _ in range(draw(st.integers(1, 3))):
        kind = draw(st.sampled_from(("cut", "flip", "replace", "repeat", "insert", "random")))
        start = draw(st.integers(0, max(len(changed) - 1, 0)))
        piece = draw(st.binary(min_size=1, max_size=8) | st.sampled_from([b"\x00" * 8, b"\xff" * 8, b"[" * 5000, b'":{']))
        if kind == "cut":
            del changed[start:]
        elif kind == "flip" and changed:
            changed[start] ^= 1 << draw(st.integers(0, 7))
        elif kind == "replace":
            changed[start : start + len(piece)] = piece
        elif kind == "repeat":
            changed[start:start] = changed[start : start + 200]
        elif kind == "insert":
            changed[start:start] = piece
        elif kind == "random":
            changed = bytearray(draw(st.binary(max_size=100)))
    return bytes(changed)


@st.composite
def edits(draw, valid) -> object:
    """Return a copy of a JSON value in which one to three places hold something else, nothing, or something more."""
    value = json.loads(json.dumps(valid))
    for _ in range(draw(st.integers(1, 3))):
        holder, key = {"top": value}, "top"
        while isinstance(holder[key], (dict, list)) and holder[key] and draw(st.integers(0, 5)):
            holder = holder[key]
            keys = sorted(holder) if isinstance(holder, dict) else range(min(len(holder), 50))
            key = draw(st.sampled_from(list(keys)))
        kind = draw(st.sampled_from(("set", "set", "set", "delete", "add")))
        if kind == "set" or "top" in holder:
            holder[key] = draw(values)
        elif kind == "delete":
            del holder[key]
        elif isinstance(holder, dict):
            holder[draw(st.text(max_size=8))] = draw(values)
        value = holder["top"] if "top" in holder and len(holder) == 1 else value
    return value


def hostile_json(valid):
    """Return a strategy for the bytes of a JSON file that should hold valid."""
    text = json.dumps(valid).encode()
    return edits(valid).map(lambda value: json.dumps(value).encode()) | mutations(text)


class Hung(BaseException):
    pass


@contextmanager
def watched(*documented: type[Exception]):
    """Pass for success and for an exception that an entry script reports in one line; fail for anything else."""

    def hang(*_) -> None:
        raise Hung(f"no end after {SECONDS} seconds")

    pages = int(Path("/proc/self/statm").read_text().split()[0])
    soft, hard = resource.getrlimit(resource.RLIMIT_AS)
    previous = signal.signal(signal.SIGALRM, hang)
    resource.setrlimit(resource.RLIMIT_AS, (pages * resource.getpagesize() + MEMORY, hard))
    signal.alarm(SECONDS)
    try:
        yield
    except Exception as error:
        if not hasattr(error, "exit_code") and not isinstance(error, documented):
            raise
        message = str(error)
        assert "\n" not in message and 0 < len(message) < 3000, message[:3000]
    finally:
        signal.alarm(0)
        signal.signal(signal.SIGALRM, previous)
        resource.setrlimit(resource.RLIMIT_AS, (soft, hard))


def snapshot(folder: Path) -> dict[str, bytes]:
    return {str(path.relative_to(folder)): path.read_bytes() for path in folder.rglob("*") if path.is_file()}
