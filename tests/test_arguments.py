"""The command-line dialect: key=value as it is written, run folders in any place, old spellings for one release."""

from dataclasses import dataclass, field
from typing import Optional

import pytest
from hydra import compose, initialize_config_dir

from cli.arguments import parse
from cli.composition import CONFIG_DIR, ConfigError
from cli.entry import quoted

PATHS = ["a b", "é=(x, &)", "a'b", "a\\'b", "tail\\", "x${oc.env:HOME}", "y\\${z}", "{a:b}", "~/runs", "#x", "a:b", "$HOME", " "]


@dataclass
class Settings:
    runs: list[str]
    out: str = "report"
    steps: int = 1
    rate: Optional[float] = None
    quick: bool = False
    prompt: Optional[str] = field(default=None, metadata={"may_be_empty": True})
    multiples: list[int] = field(default_factory=lambda: [1, 2])


def parsed(*arguments):
    return parse(Settings, arguments, ("runs",))


def test_hydra_reads_a_literal_key_as_it_is_written():
    """Each path in a key of its own, so that one composition reads them all."""
    keys = tuple(f"+x{number}" for number in range(len(PATHS)))
    overrides = [quoted(f"{key}={path}", tuple(key[1:] for key in keys)) for key, path in zip(keys, PATHS, strict=True)]
    with initialize_config_dir(CONFIG_DIR, version_base="1.3"):
        config = compose("prepare", overrides)
    assert [config[key[1:]] for key in keys] == PATHS


def test_what_is_quoted_already_and_lists_stay_hydras(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    for argument in ("out_dir='a b'", 'out_dir="a, b"', "out_dir=null", "out_dir=[a,b]", "out_dir=", "seed=1,2", "out_dir"):
        assert quoted(argument, ("out_dir",)) == argument
    (tmp_path / "[a,b]").mkdir()
    assert quoted("out_dir=[a,b]", ("out_dir",)) == "out_dir='[a,b]'"


@pytest.mark.parametrize("path", PATHS)
def test_a_program_reads_a_value_as_it_is_written(path):
    settings, hints = parsed("runs/A", f"out={path}")
    assert settings.out == path and not hints


def test_run_folders_stand_anywhere():
    settings, hints = parsed("runs/A", "steps=3", "runs/lr=0.1", "multiples=[1,4]", "rate=1e-3", "quick=true", "prompt=")
    assert settings == Settings(["runs/A", "runs/lr=0.1"], "report", 3, 1e-3, True, "", [1, 4]) and not hints
    assert parsed("runs=A,B")[0].runs == ["A", "B"] and parsed("run=A") == (Settings(["A"]), [])
    assert parsed("runs=A", "B")[0].runs == ["A", "B"]
    assert parsed("a", "rate=null")[0].rate is None


def test_a_folder_with_a_comma_or_an_equals_sign_in_its_name_is_one(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    for name in ("a,b", "lr=0.1"):
        (tmp_path / name).mkdir()
    assert parsed("run=a,b")[0].runs == ["a,b"] and parsed("lr=0.1")[0].runs == ["lr=0.1"]


def test_old_spellings_work_with_a_hint():
    settings, hints = parsed("--out", "x", "A", "--quick", "--multiples", "1", "--multiples=4", "B")
    assert settings == Settings(["A", "B"], "x", quick=True, multiples=[1, 4])
    assert [hint.split(";")[0] for hint in hints] == [
        "--out is now written out=x",
        "--quick is now written quick=true",
        "--multiples is now written multiples=1",
        "--multiples is now written multiples=4",
    ]
    settings, (hint,) = parsed("run=A,B")
    assert settings.runs == ["A", "B"] and "now written A B" in hint


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        ([], "no run folder is given"),
        (["A", "stps=3"], "unknown key 'stps': did you mean 'steps'"),
        (["A", "steps=1", "steps=2"], "steps= is given twice"),
        (["runs=A", "runs=B"], "several: runs=A,B"),
        (["A", "steps=1.5"], "steps: Value '1.5'"),
        (["A", "quick=ja"], "quick=ja: must be true or false"),
        (["A", "out="], "out= has no value"),
        (["A", "--nothing", "3"], "--nothing: settings have no dashes: nothing=VALUE"),
        (["A", "-o", "x"], "settings have no dashes"),
        (["A", "--out"], "out= has no value"),
    ],
)
def test_mistakes_are_answered_in_one_line(arguments, words):
    with pytest.raises(ConfigError) as error:
        parsed(*arguments)
    assert words in str(error.value) and "\n" not in str(error.value)
