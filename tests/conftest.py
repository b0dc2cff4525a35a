import fcntl
import gc
import os
import resource
import shutil
import signal
import sys
import tempfile
import time
from collections.abc import Callable
from pathlib import Path
from unittest import mock

import pytest
import warm
from training import SMALL, run

# A shell that starts the tests in the background has them ignore SIGINT, and every process they start would as well.
signal.signal(signal.SIGINT, signal.default_int_handler)
signal.signal(signal.SIGHUP, signal.SIG_DFL)  # nohup has it ignored, and our programs respect that
warm.install()

CACHE = pytest.StashKey[str]()
QUICK = 5.0  # seconds that a test without the mark `slow` may take
# The machine may be slower, or busy: what counts is processor time, and of the clock only what no load explains.
SLACK = {"processor": 3.0, "clock": 6.0}


def pytest_configure(config):
    shares = bool(config.getoption("numprocesses", None)) and not hasattr(config, "workerinput")  # it lets others run the tests
    if not shares:
        gc.disable()  # while all is imported; on again in pytest_collection_finish
    # What torch.compile makes is kept for the whole session, by all its workers; it starts no processes, which would import torch.
    if "TORCHINDUCTOR_CACHE_DIR" not in os.environ:
        config.stash[CACHE] = os.environ["TORCHINDUCTOR_CACHE_DIR"] = tempfile.mkdtemp(prefix="inductor-")
    os.environ.setdefault("TORCHINDUCTOR_COMPILE_THREADS", "1")
    if shares or hasattr(config, "workerinput"):  # its workers are forked from the server, and have one of their own then
        warm.begin()
    if os.environ.get("CI") == "true" and not shares:
        import torch._dynamo  # noqa: F401  seconds, which are not those of the first test that trains


def pytest_unconfigure(config):
    if not hasattr(config, "workerinput") and config.stash.get(CACHE, None):
        shutil.rmtree(config.stash[CACHE], ignore_errors=True)


def pytest_collection_modifyitems(items):
    """Put the files with the most slow tests first: what takes long is not left to one worker at the end."""
    slow = {}
    for item in items:
        slow[item.path] = slow.get(item.path, 0) + (item.get_closest_marker("slow") is not None)
    items.sort(key=lambda item: -slow[item.path])


def pytest_collection_finish():
    """Leave what is loaded by now out of garbage collections: with torch there are a million objects to look at each time."""
    gc.collect()
    gc.freeze()
    gc.set_threshold(20_000, 50, 100)  # and looks at the rest less often: Python's 700 costs these tests a fifteenth of their time
    gc.enable()


@pytest.hookimpl(wrapper=True)
def pytest_runtest_call(item):
    """Where CI=true, fail a test that is slow and not marked so; what it shares with others (fixtures) does not count."""
    before = processor_seconds(), time.monotonic()
    outcome = yield
    took = {"processor": processor_seconds() - before[0], "clock": time.monotonic() - before[1]}
    if os.environ.get("CI") == "true" and not item.get_closest_marker("slow"):
        for of, seconds in took.items():
            assert seconds < QUICK * SLACK[of], f"{seconds:.1f} s by the {of}: mark it slow or make it quick"
    return outcome


def processor_seconds() -> float:
    """Return what this process and its ended children have used."""
    used = [resource.getrusage(who) for who in (resource.RUSAGE_SELF, resource.RUSAGE_CHILDREN)]
    return sum(usage.ru_utime + usage.ru_stime for usage in used)


@pytest.fixture(autouse=True)
def environment_is_restored():
    """Undo what a program that a test ran in this process has set, which the programs of later tests would inherit."""
    with mock.patch.dict(os.environ):
        yield


@pytest.fixture(autouse=True)
def no_hydra_is_left():
    """Forget what a program that a test ran in this process, and that was refused, has left of Hydra's one global object."""
    yield
    if "hydra.core.global_hydra" in sys.modules:
        sys.modules["hydra.core.global_hydra"].GlobalHydra.instance().clear()


def made_once(tmp_path_factory, name: str, make: Callable[[Path], None]) -> Path:
    """Return a folder which the first of the session's processes that asks for it has filled; the others wait for it."""
    base = tmp_path_factory.getbasetemp()
    if "PYTEST_XDIST_WORKER" in os.environ:
        base = base.parent
    folder, done = base / name, base / f"{name}.done"
    with open(base / f"{name}.lock", "w") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)
        if not done.exists():
            shutil.rmtree(folder, ignore_errors=True)
            folder.mkdir()
            make(folder)
            done.touch()
    return folder


@pytest.fixture
def undrawn(monkeypatch):
    """Let the pictures of a report be composed and not be painted, which is most of its time: for tests of what else it says."""
    import lab.figures

    monkeypatch.setattr(lab.figures.FigureCanvasAgg, "print_png", lambda self, file, **_: file.write(b"not painted"))
    monkeypatch.setattr(lab.figures, "draw_svg", lambda figure: '<svg width="1pt"></svg>')


@pytest.fixture(scope="session")
def docs(tmp_path_factory):
    """The embedded corpus, prepared once by the real command. To be read."""
    return made_once(tmp_path_factory, "docs", lambda folder: run("prepare_owt.py", "data=docs", f"data.dir={folder}"))


@pytest.fixture(scope="session")
def trained(docs, tmp_path_factory):
    """The runs gpt and ngpt in one folder: 12 steps, checkpoints at 6 and 12. To be read; a test that changes one copies it."""

    def train(folder: Path) -> None:
        for arm in ("gpt", "ngpt"):
            run("train.py", *SMALL, f"data.dir={docs}", f"out_dir={folder}", f"run_name={arm}", f"model={arm}")

    return made_once(tmp_path_factory, "trained", train)
