"""The programs in scripts/ and sample.py: stubs over a room's cli.py, help at once, one line for a mistake."""

import ast
import importlib
import shutil
import subprocess
import sys
from dataclasses import fields
from pathlib import Path

import pytest
from training import ROOT, command, environment

from cli.arguments import Program

PROGRAMS = {
    "sample.py": ("sampling.cli", "PROGRAM"),
    "scripts/ablations.py": ("lab.ablations.cli", "PROGRAM"),
    "scripts/compare.py": ("lab.speedup.cli", "PROGRAM"),
    "scripts/downstream.py": ("lab.evaluation.cli", "DOWNSTREAM"),
    "scripts/evaluate.py": ("lab.evaluation.cli", "EVALUATE"),
    "scripts/export_hf.py": ("lab.export.cli", "PROGRAM"),
    "scripts/extrapolate.py": ("lab.evaluation.cli", "EXTRAPOLATE"),
    "scripts/inspect_weights.py": ("lab.inspection.cli", "PROGRAM"),
    "scripts/runs.py": ("lab.list_runs", "PROGRAM"),
    "scripts/soak.py": ("lab.soak.cli", "PROGRAM"),
    "scripts/sweep.py": ("lab.sweeps.cli", "PROGRAM"),
    "scripts/transfer.py": ("lab.transfer.cli", "PROGRAM"),
}
OTHERS = {"bench.py", "bench_prepare.py", "inspect.py", "predict_gpu.py"}


def program(script: str) -> Program:
    module, name = PROGRAMS[script]
    return getattr(importlib.import_module(module), name)


@pytest.mark.parametrize("script", PROGRAMS)
def test_the_help_lists_every_key_with_its_default(script):
    page = program(script).page
    for field in fields(program(script).schema):
        assert f"\n    {field.name}=" in page, field.name
        if isinstance(field.default, int | float | str) and not isinstance(field.default, bool):
            assert f"{field.name}={field.default}" in page, field.name


@pytest.mark.parametrize("script", PROGRAMS)
def test_a_script_is_a_stub_that_replaces_its_folder_on_the_path(script):
    text = (ROOT / script).read_text()
    module, name = PROGRAMS[script]
    assert text.count("\n") <= 12 and f"from {module} import {name}\n" in text and "noqa" not in text
    assert script == "sample.py" or "sys.path[0] = " in text


def test_every_script_is_known_here():
    assert {path.name for path in (ROOT / "scripts").glob("*.py")} == {Path(script).name for script in PROGRAMS} - {
        "sample.py"
    } | OTHERS


def test_help_and_refusals_do_not_wait_for_torch():
    imports = "; ".join(f"import {module}" for module, _ in PROGRAMS.values())
    code = f"import sys; {imports}; sys.exit(' '.join({{'torch', 'matplotlib', 'scipy'}} & set(sys.modules)) or 0)"
    done = subprocess.run([sys.executable, "-c", code], cwd=ROOT, env=environment(), capture_output=True, text=True)
    assert done.returncode == 0, done.stderr


def test_nothing_in_scripts_hides_the_standard_library(tmp_path):
    """Not even the folder that keeps the former name of inspect_weights.py alive."""
    done = subprocess.run(
        [sys.executable, "-c", "import inspect; print(inspect.__file__)"],
        cwd=ROOT / "scripts",
        env=environment(PYTHONPATH=str(ROOT / "scripts")),
        capture_output=True,
        text=True,
    )
    assert done.stdout.strip() == str(Path(ast.__file__).with_name("inspect.py")), done.stderr


def test_the_command_line_answers(tmp_path):
    """Through the real files: help, a mistake in one line, the former name."""

    def answer(script: str, *arguments: str) -> subprocess.CompletedProcess:
        done = subprocess.run(command(script, *arguments), cwd=tmp_path, env=environment(), capture_output=True, text=True)
        assert "Traceback" not in done.stderr
        return done

    done = answer("scripts/sweep.py", "--help")
    assert done.returncode == 0 and done.stdout == program("scripts/sweep.py").page.strip() + "\n" and not done.stderr
    done = answer("scripts/inspect_weights.py", "runs/A", "otu=x")
    assert (done.returncode, done.stderr) == (2, "error: unknown key 'otu': did you mean 'out'? (--help lists the keys)\n")
    done = answer("scripts/inspect.py", "--help")
    assert done.returncode == 0 and "is now scripts/inspect_weights.py" in done.stderr and "inspect_weights" in done.stdout


@pytest.mark.parametrize("script", sorted(path.name for path in (ROOT / "scripts").glob("*.sh") if path.name != "environment.sh"))
@pytest.mark.parametrize("flag", ["--help", "-h"])
def test_help_of_a_shell_script_starts_nothing(script, flag, tmp_path):
    shutil.copytree(ROOT / "scripts", tmp_path / "scripts", ignore=shutil.ignore_patterns("__pycache__"))
    before = sorted(tmp_path.rglob("*"))
    done = subprocess.run(["bash", f"scripts/{script}", flag], cwd=tmp_path, capture_output=True, text=True, timeout=60)
    assert (done.returncode, done.stderr) == (0, "") and len(done.stdout.splitlines()) > 1
    assert sorted(tmp_path.rglob("*")) == before
