import pytest
from training import run


@pytest.fixture(scope="session")
def docs(tmp_path_factory):
    """The embedded corpus, prepared once by the real command."""
    folder = tmp_path_factory.mktemp("data") / "docs"
    run("prepare_owt.py", "data=docs", f"data.dir={folder}")
    return folder
