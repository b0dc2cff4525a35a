import signal

import pytest
import warm
from training import run

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
