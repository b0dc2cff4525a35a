"""What a program finds around it when it starts: a launcher's variables, closed streams, another locale, a home, no folder."""

import os
import socket
import subprocess
import sys
from dataclasses import dataclass, field

import pytest
from hydra import compose, initialize_config_dir
from training import ROOT

from cli.composition import CONFIG_DIR, ConfigError, to_dataclass
from cli.entry import ending_in_one_line
from cli.launcher import Launch, forget_launch, is_silent, planned_world_size, read_launch
from corpus.plan import PrepareConfig
from engine.distributed import NobodyCame, start_ranks

PLACE = {"MASTER_ADDR": "localhost", "MASTER_PORT": "29500"}
LEFT_OVER = {  # variables, what the one line must say
    ("RANK=1",): "RANK=1 without WORLD_SIZE, MASTER_ADDR, MASTER_PORT",
    ("WORLD_SIZE=4",): "WORLD_SIZE=4 without RANK, MASTER_ADDR, MASTER_PORT",
    ("LOCAL_RANK=3",): "`unset LOCAL_RANK`",
    ("RANK=0", "WORLD_SIZE=2"): "without MASTER_ADDR, MASTER_PORT: variables of a launcher that make no launch",
    ("RANK=0", "WORLD_SIZE=2", "MASTER_ADDR=localhost"): "without MASTER_PORT",
    ("RANK=x",): "RANK=x",
    ("RANK=", "WORLD_SIZE=2", "MASTER_ADDR=a", "MASTER_PORT=1"): "without RANK",
    ("RANK=2", "WORLD_SIZE=2", "MASTER_ADDR=a", "MASTER_PORT=1"): "`unset RANK WORLD_SIZE`",
    ("RANK=-1", "WORLD_SIZE=2", "MASTER_ADDR=a", "MASTER_PORT=1"): "RANK=-1",
}
CHILD = """
import os, sys
from cli.entry import ending_in_one_line
with ending_in_one_line():
    name = os.open("written", os.O_CREAT | os.O_WRONLY)
    print("out"); print("err", file=sys.stderr); sys.stdin.read(1)
    os.write(1, b"library"); os.write(2, b"library")
    sys.stdout.flush()
    print(ascii(open("text", encoding=None).read()), file=open("seen", "w"))
"""


def launcher(monkeypatch, *settings):
    for name in ("RANK", "LOCAL_RANK", "WORLD_SIZE", *PLACE):
        monkeypatch.delenv(name, raising=False)
    for setting in settings:
        monkeypatch.setenv(*setting.split("="))


@pytest.mark.parametrize("settings", LEFT_OVER, ids=" ".join)
def test_what_another_launcher_left_behind_is_named(settings, monkeypatch):
    launcher(monkeypatch, *settings)
    with pytest.raises(ConfigError) as refused:
        read_launch()
    assert LEFT_OVER[settings] in str(refused.value) and "\n" not in str(refused.value)
    assert not is_silent(), "the refusal itself must be read"


@pytest.mark.parametrize("settings", [(), ("RANK=0",), ("WORLD_SIZE=1", "RANK=0", "LOCAL_RANK=0"), ("MASTER_ADDR=somewhere",)])
def test_harmless_variables_are_a_single_process(settings, monkeypatch):
    launcher(monkeypatch, *settings)
    assert read_launch() == Launch(0, 0, 1) and not is_silent()


def test_a_launch_that_nobody_else_joins_says_so_at_once_and_ends(monkeypatch, capsys):
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    launcher(monkeypatch, "RANK=0", "WORLD_SIZE=2", "MASTER_ADDR=127.0.0.1", f"MASTER_PORT={port}")
    monkeypatch.delenv("TORCHELASTIC_RUN_ID", raising=False)
    with pytest.raises(NobodyCame, match="waited 1 s in vain") as ended, start_ranks("cpu", 1.0):
        pass
    assert "`unset RANK WORLD_SIZE`" in str(ended.value) and "\n" not in str(ended.value)
    assert capsys.readouterr().err.startswith(f"rank 0 of 2 waits for the others at 127.0.0.1:{port}; ")


def test_a_launch_is_read_and_forgotten(monkeypatch):
    launcher(monkeypatch, "RANK=3", "LOCAL_RANK=1", "WORLD_SIZE=4", "MASTER_ADDR=a", "MASTER_PORT=1", "TORCHELASTIC_RUN_ID=x")
    assert read_launch() == Launch(3, 1, 4) and is_silent() and planned_world_size() == 4
    forget_launch()
    assert read_launch() == Launch(0, 0, 1) and not is_silent() and "TORCHELASTIC_RUN_ID" not in os.environ


def test_a_plan_needs_the_number_of_processes_alone(monkeypatch):
    launcher(monkeypatch, "WORLD_SIZE=8")
    assert planned_world_size() == 8
    for wrong in ("0", "-1", "abc", "", "1" * 5000):
        monkeypatch.setenv("WORLD_SIZE", wrong)
        with pytest.raises(ConfigError):
            planned_world_size()


def test_a_program_that_is_never_a_rank_speaks_whatever_the_variables(monkeypatch, capsys):
    launcher(monkeypatch, "RANK=1", "WORLD_SIZE=2", "MASTER_ADDR=a", "MASTER_PORT=1")
    with pytest.raises(SystemExit), ending_in_one_line():
        raise ConfigError("said")
    assert capsys.readouterr().err == "error: said\n"


@pytest.mark.parametrize(
    "error", [PermissionError(13, "Permission denied", "/x/y"), IsADirectoryError(21, "Is a directory", "/x/y")]
)
def test_a_file_that_cannot_be_used_is_one_line(error, capsys):
    with pytest.raises(SystemExit) as stopped, ending_in_one_line():
        raise error
    assert stopped.value.code == 2 and capsys.readouterr().err == f"error: /x/y: {error.strerror}\n"


@dataclass
class Paths:
    out: str = field(metadata={"is_path": True})
    many: list[str] = field(metadata={"is_path": True})
    prompt: str
    count: int


def test_a_tilde_is_home_in_paths_and_a_power_of_ten_a_whole_number(monkeypatch):
    monkeypatch.setenv("HOME", "/home/me")
    paths = to_dataclass({"out": "~/runs", "many": ["~", "a~", "~/b c"], "prompt": "~/x", "count": 1e5}, Paths)
    assert paths == Paths("/home/me/runs", ["/home/me", "a~", "/home/me/b c"], "~/x", 100_000)
    with pytest.raises(ConfigError, match="count"):
        to_dataclass({"out": "", "many": [], "prompt": "", "count": 1.5}, Paths)


def test_prepares_path_keys_know_home(monkeypatch):
    monkeypatch.setenv("HOME", "/home/me")
    overrides = ["data=local", "data.dir='~/bins'", "data.files='~/*.txt'", "tokenizer.files='~/t.json'", "limit_documents=1e2"]
    with initialize_config_dir(CONFIG_DIR, version_base="1.3"):
        config = to_dataclass(compose("prepare", overrides), PrepareConfig)
    assert (config.data.dir, config.data.files, config.tokenizer.files) == ("/home/me/bins", "/home/me/*.txt", "/home/me/t.json")
    assert config.limit_documents == 100


def in_shell(line, cwd, **environment):
    return subprocess.run(
        ["bash", "-c", f'exec "$0" -c "$1" {line}', sys.executable, CHILD],
        cwd=cwd,
        env=os.environ | {"PYTHONPATH": str(ROOT)} | environment,
        capture_output=True,
        text=True,
    )


def test_closed_streams_are_the_null_device_and_no_file_takes_their_place(tmp_path):
    (tmp_path / "text").write_text("ü", encoding="utf-8")
    done = in_shell("<&- >&- 2>&-", tmp_path)
    assert done.returncode == 0 and (tmp_path / "written").read_text() == ""
    assert (tmp_path / "seen").read_text() == "'\\xfc'\n"


def test_an_ascii_locale_reads_and_writes_utf8(tmp_path):
    (tmp_path / "text").write_text("ü", encoding="utf-8")
    done = in_shell("", tmp_path, LC_ALL="C", PYTHONUTF8="0", PYTHONCOERCECLOCALE="0")
    assert done.returncode == 0, done.stderr
    assert (tmp_path / "seen").read_text() == "'\\xfc'\n" and "out" in done.stdout


def test_a_deleted_working_folder_is_one_line(tmp_path):
    gone = tmp_path / "gone"
    gone.mkdir()
    done = (
        in_shell("", gone, BASH_ENV=str(tmp_path / "delete"), **{}) if (tmp_path / "delete").write_text(f"rmdir {gone}") else None
    )
    assert (
        done.returncode == 2
        and done.stderr == "error: the working folder was deleted; change to one that exists (cd), then start again\n"
    )


def test_data_and_runs_on_another_disk_are_not_committed(tmp_path):
    (tmp_path / ".gitignore").write_text((ROOT / ".gitignore").read_text())
    names = ["data", "runs", "report"]
    for name in names:
        (tmp_path / name).symlink_to(tmp_path)
    subprocess.run(["git", "init", "-q"], cwd=tmp_path, check=True)
    seen = subprocess.run(["git", "check-ignore", *names], cwd=tmp_path, capture_output=True, text=True).stdout
    assert seen.split() == names
