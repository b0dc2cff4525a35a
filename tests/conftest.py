import signal

import pytest
import warm
from training import SMALL, run

# A shell that starts the tests in the background has them ignore SIGINT, and every process they start would as well.
signal.signal(signal.SIGINT, signal.default_int_handler)
warm.install()


def pytest_configure(config):
    if hasattr(config, "workerinput"):  # one of several processes that share the suite: it needs its server in any case
        warm.begin()


@pytest.fixture(scope="session")
def docs(tmp_path_factory):
    """The embedded corpus, prepared once by the real command."""
    folder = tmp_path_factory.mktemp("data") / "docs"
    run("prepare_owt.py", "data=docs", f"data.dir={folder}")
    return folder


@pytest.fixture(scope="session")
def trained(docs, tmp_path_factory):
    """The runs gpt and ngpt in one folder: 12 steps, checkpoints at 6 and 12. To be read; a test that changes one copies it."""
    folder = tmp_path_factory.mktemp("trained")
    for arm in ("gpt", "ngpt"):
        run("train.py", *SMALL, f"data.dir={docs}", f"out_dir={folder}", f"run_name={arm}", f"model={arm}")
    return folder
