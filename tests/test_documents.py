"""The documents against the code: quoted lines are there, commands compose, the page on extending works as it stands."""

import contextlib
import glob
import io
import os
import re
import shlex
import shutil
import subprocess
import sys
from pathlib import Path

import pytest
import yaml
from hydra import compose, initialize_config_dir
from test_scripts import PROGRAMS, program
from torch.distributed.run import get_args_parser
from training import composed, environment

from cli.arguments import parse
from cli.composition import CONFIG_DIR
from engine.dry_run import print_plan
from lab.sweeps.plan import read_sweep

ROOT = Path(__file__).parent.parent
PAGES = sorted(
    [
        ROOT / "README.md",
        ROOT / "CONTRIBUTING.md",
        *(ROOT / "docs").glob("*.md"),
        *(ROOT / "docs/results").rglob("*.md"),
    ]
)
# Beside train.py, prepare_owt.py and the programs of test_scripts.py.
OWN_KEYS = ("scripts/bench.py", "scripts/bench_prepare.py", "scripts/predict_gpu.py")
ELSEWHERE = (
    "vllm",
    "lm_eval",
    "diff",
    "echo",
    "ruff",
    "mypy",
    "pre-commit",
    "git",
    "sudo",
    "tensorboard",
    ".",
    "coverage",
    "export",
)
NOT_HERE = ("convert_hf_to_gguf.py",)  # llama.cpp's
MADE_BY_THE_PAGE = re.compile(r"gpt_relu2|relu2_tiny")  # docs/extending.md: run by its own test


def fences(text: str, language: str) -> list[str]:
    return re.findall(rf"^```{language}\n(.*?)^```$", text, flags=re.M | re.S)


# Options of torchrun that PyTorch 2.11 does not have, the oldest of requirements.txt: it refuses the whole command.
NEWER_OPTIONS = ("--shutdown-timeout", "--shutdown_timeout")  # 2.12


def split_command(line: str) -> list[list[str]]:
    """Return the words of each command of a shell line, comments and leading assignments left out."""
    lexer = shlex.shlex(line, posix=True, punctuation_chars="|;&")
    lexer.whitespace_split = True
    lexer.commenters = "#"
    parts: list[list[str]] = [[]]
    for word in lexer:
        if set(word) <= set("|;&"):
            parts.append([])
        else:
            parts[-1].append(word)
    return [words for words in map(without_assignments, parts) if words]


def without_assignments(words: list[str]) -> list[str]:
    start = next((i for i, word in enumerate(words) if not re.match(r"[A-Z_]+=", word)), len(words))
    return words[start:]


def commands() -> list[tuple[str, list[str]]]:
    """Return (page, words) of every command in a shell block of a document."""
    found = []
    for page in PAGES:
        for block in fences(page.read_text(), "sh"):
            if "python -c" in block:
                continue  # several lines in quotes: executed by a test of its own
            for line in block.replace("\\\n", " ").splitlines():
                found += [(str(page.relative_to(ROOT)), words) for words in split_command(line)]
    return found


def check_command(words: list[str]) -> None:
    """Fail unless the programs, files, options and keys of a command exist; placeholders (NAME, ...) may be anything."""
    program, rest = words[0], words[1:]
    if program in ELSEWHERE or MADE_BY_THE_PAGE.search(" ".join(words)):
        return
    if program == "bash" or program == "sbatch":
        script = next(word for word in rest if not word.startswith("-"))
        if "/arrays/" not in script:  # written by sweep.py --slurm
            assert (ROOT / script).is_file(), script
            if script.endswith("train.sbatch"):
                composed(*rest[rest.index(script) + 1 :])
    elif program == "pip":
        assert rest[0] == "install"
        for file in rest[2::2] if rest[1] == "-r" else []:
            assert (ROOT / file).is_file(), file
    elif program == "torchrun":
        node_free = [re.sub(r"\$\w+", "0", word) for word in rest]
        assert not [word for word in rest if word.startswith(NEWER_OPTIONS)], "the oldest PyTorch's torchrun refuses it"
        arguments = get_args_parser().parse_args(node_free)  # SystemExit for an option that torchrun does not have
        check_script(arguments.training_script, arguments.training_script_args)
    elif program == "python":
        if rest[:2] == ["-m", "pytest"]:
            assert all((ROOT / word).exists() for word in rest if word.startswith("tests/"))
        elif rest[0] != "-m":
            check_script(rest[0], rest[1:])
    else:
        raise AssertionError(f"unknown program {program}")


def check_script(script: str, arguments: list[str]) -> None:
    if script in NOT_HERE:
        return
    assert (ROOT / script).is_file(), script
    arguments = [
        word
        for word in arguments
        if word != "..." and not re.fullmatch(r"-h|--(help|hydra-help|cfg|info|resolve|sc)|-sc|job|defaults|install=\w+", word)
    ]
    arguments = [re.sub(r"=N$", "=1024", word) for word in arguments]
    if script == "train.py":
        composed(*arguments)
    elif script == "prepare_owt.py":
        with initialize_config_dir(CONFIG_DIR, version_base="1.3"):
            compose("prepare", [re.sub(r"=(.*[*].*)$", r"='\1'", word) for word in arguments])
    elif script in PROGRAMS:
        _, hints = parse(program(script).schema, arguments, program(script).positional)
        assert not hints, f"{script}: {hints}"
        for word in arguments:
            if word.startswith("sweeps/"):
                read_sweep(ROOT / word)
    else:
        assert script in OWN_KEYS, f"{script}: tell this test how its arguments are read"
        check_own_keys(script, arguments)


def check_own_keys(script: str, arguments: list[str]) -> None:
    """bench.py and predict_gpu.py take train.py's keys beside their own; the others list theirs in their docstring."""
    text = (ROOT / script).read_text()
    others = [word for word in arguments if not re.search(rf"^\W*(?:.*\s)?{re.escape(word.partition('=')[0])}\b", text, re.M)]
    if script == "scripts/bench.py":
        from lab.benchmark import cli

        own, overrides = cli.split_arguments(arguments, cli.OWN_KEYS)
        for arm in own["arms"].split(","):
            cli.compose_arm(arm, overrides)
    elif script == "scripts/predict_gpu.py":
        from lab.prediction.cli import read_arguments

        read_arguments(arguments)
    else:
        assert not others, f"{script}: {others}"


@pytest.mark.parametrize("page", [str(page.relative_to(ROOT)) for page in PAGES])
def test_commands_of_the_documents_compose(page, monkeypatch):
    monkeypatch.chdir(ROOT)
    for where, words in commands():
        if where == page:
            try:
                check_command(words)
            except (Exception, SystemExit) as error:
                raise AssertionError(f"{page}: {shlex.join(words)}: {error}") from error


def test_enough_commands_are_found():
    found = commands()
    assert len(found) > 60
    assert {"train.py", "prepare_owt.py", "sample.py", "scripts/sweep.py"} <= {words[1] for _, words in found if len(words) > 1}


@pytest.mark.parametrize(
    "bad",
    [
        "python train.py modle=gpt",
        "python train.py model=gtp",
        "python train.py size=tiny n_layers=2",
        "python trian.py",
        "python scripts/compare.py runs/A --outt x",
        "python scripts/sweep.py sweeps/none.yaml",
        "python sample.py run=A tmperature=1",
        "torchrun --no-such-option train.py",
        "torchrun --shutdown-timeout=120 train.py",
        "bash scripts/none.sh",
        "pip install -r requirements-none.txt",
        "nosuchprogram x",
        "python scripts/bench.py arms=nothing",
        "python scripts/inspect.py rum=runs/A",
        "python prepare_owt.py data=none",
    ],
)
def test_the_check_of_commands_finds_mistakes(bad):
    with pytest.raises((Exception, SystemExit)), contextlib.redirect_stderr(io.StringIO()):
        check_command(split_command(bad)[0])


def test_the_scripts_give_torchrun_what_the_oldest_pytorch_knows():
    kinds = ("*.sh", "*.sbatch", "*.py")
    files = [path for kind in kinds for folder in ("scripts", "lab") for path in (ROOT / folder).rglob(kind) if path.is_file()]
    found = [path for path in files if re.search(r"torchrun|torch\.distributed\.run", path.read_text())]
    assert ROOT / "scripts/slurm/train.sbatch" in found
    assert not [path for path in found if any(option in path.read_text() for option in NEWER_OPTIONS)]


def test_dry_runs_of_the_documents_print_a_plan(capsys):
    plans = [
        words[2:]
        for where, words in commands()
        if words[:2] == ["python", "train.py"] and "dry_run=true" in words and not MADE_BY_THE_PAGE.search(" ".join(words))
    ]
    assert plans
    for overrides in plans:
        print_plan(composed(*overrides))
        assert "parameters" in capsys.readouterr().out


def test_python_lines_of_the_documents_run():
    lines = [
        line
        for page in PAGES
        for block in fences(page.read_text(), "sh")
        for line in re.findall(r"^python -c \"(.*?)\"", block, re.M | re.S)
    ]
    assert lines
    for line in lines:
        done = subprocess.run(
            [sys.executable, "-c", line], cwd=ROOT, env=environment(), capture_output=True, text=True, timeout=120
        )
        assert done.returncode == 0 and done.stdout.strip(), done.stderr


@pytest.mark.parametrize("page", [str(page.relative_to(ROOT)) for page in PAGES])
def test_links_of_the_documents_lead_somewhere(page):
    text = re.sub(r"^```.*?^```$", "", (ROOT / page).read_text(), flags=re.M | re.S)
    targets = {t.partition("#")[0] for t in re.findall(r"\]\(([^)\s]+)\)", text) if "://" not in t} - {""}
    missing = [target for target in targets if not ((ROOT / page).parent / target).exists()]
    assert not missing, missing


def test_lines_that_the_models_page_quotes_are_in_the_files():
    quotes = re.findall(r"^`([\w/]+\.py)`[^\n]*:\n\n```python\n(.*?)^```$", (ROOT / "docs/models.md").read_text(), re.M | re.S)
    assert len(quotes) >= 10 and {file for file, _ in quotes} >= {
        "gpt/model.py",
        "ngpt/model.py",
        "ngpt/normalization.py",
    }
    for file, code in quotes:
        lines = {line.strip() for line in (ROOT / file).read_text().splitlines()}
        absent = [line for line in code.splitlines() if line.strip() and line.strip() not in lines]
        assert not absent, f"{file} has no line {absent}"


def test_numbers_of_the_models_page_are_those_of_the_models():
    from engine.accounting import count_parameters
    from engine.models import build_model

    text = (ROOT / "docs/models.md").read_text()
    for name in ("gpt", "ngpt"):
        for size, shape in (("0.5b", (24, 16, 1024)), ("1b", (36, 20, 1280))):
            node = dict(zip(("n_layer", "n_head", "n_embd"), shape, strict=True)) | {"name": name, "vocab_size": 32000}
            assert f"{count_parameters(build_model(node, device='meta'))['total']:,}" in text, (name, size)


def test_files_and_tests_that_the_features_name_exist():
    rows = [
        line.split("|")[1:-1] for line in (ROOT / "docs/features.md").read_text().splitlines() if re.match(r"\| *\d+ *\|", line)
    ]
    assert [int(row[0]) for row in rows] == list(range(1, 61))
    for _, feature, have, evidence in rows:
        assert have.strip()[0] in "YP-" or have.strip().isdigit(), feature
        if have.strip().startswith(("Y", "P")):
            assert "`" in evidence, f"{feature.strip()}: yes, but nothing shows it"
        if have.strip().isdigit():
            found = sum(len(re.findall(r"^def test_", path.read_text(), re.M)) for path in (ROOT / "tests").glob("test_*.py"))
            assert int(have) <= found, found
        for path in re.findall(r"`((?:[\w.]+/)+[\w.-]+|[\w-]+\.(?:py|md|txt|yaml))`", evidence):
            assert (ROOT / path).exists(), path


def follow(clone: Path, page: str) -> None:
    """Write the files and insert the lines that a page shows."""
    for name, text in re.findall(r"^`([\w/.]+)`:\n\n```\w+\n(.*?)^```$", page, flags=re.M | re.S):
        assert not (clone / name).exists(), name
        (clone / name).write_text(text)
    target = clone / "engine/models.py"
    for block in fences(page, "diff"):
        before = "".join(line[1:] + "\n" for line in block.splitlines() if not line.startswith("+"))
        after = "".join(line[1:] + "\n" for line in block.splitlines())
        assert target.read_text().count(before) == 1, before
        target.write_text(target.read_text().replace(before, after))


def shrink(clone: Path) -> None:
    """Make the page's sweep one of seconds: one layer, few steps, one rate, one seed, not compiled."""
    path = clone / "sweeps/relu2_tiny.yaml"
    sweep = yaml.safe_load(path.read_text())
    sweep["overrides"] = [
        "experiment=quickstart",
        "compile=false",
        "eval_windows=8",
        "device=cpu",
        "model.n_layer=1",
        "global_batch_size=2",
        "micro_batch_size=2",
    ]
    path.write_text(yaml.safe_dump(sweep | {"learning_rate": [3e-3], "max_steps": [5], "seed": [1]}))


@pytest.mark.slow
def test_the_extending_page_works_as_it_stands(docs, tmp_path):
    clone = tmp_path / "clone"
    shutil.copytree(
        ROOT,
        clone,
        ignore=lambda folder, names: (
            names
            if Path(folder).name == "__pycache__"
            else [n for n in names if Path(folder) == ROOT and (n.startswith(".") or n in ("data", "runs", "report"))]
        ),
    )
    shutil.copytree(docs, clone / "data/docs")
    page = (clone / "docs/extending.md").read_text()
    follow(clone, page)
    shrink(clone)
    done = ""
    for line in "".join(fences(page, "sh")).splitlines():
        if "prepare_owt" in line or "max_steps=20" in line:  # prepared; trained by the sweep
            continue
        words = shlex.split(line.replace("python ", f"{sys.executable} ", 1), comments=True)
        result = subprocess.run(
            [found for word in words for found in (sorted(glob.glob(word, root_dir=clone)) if "*" in word else [word])],
            cwd=clone,
            capture_output=True,
            text=True,
            env=environment(MPLCONFIGDIR=os.environ.get("MPLCONFIGDIR", str(tmp_path))),
            timeout=240,
        )
        assert result.returncode == 0, f"{line}\n{result.stdout[-2000:]}\n{result.stderr[-2000:]}"
        done = result.stdout
    assert "gpt_relu2" in done and (clone / "report/relu2_tiny/report.html").is_file()


def test_the_versions_for_ci_satisfy_the_loose_requirements():
    from packaging.requirements import Requirement
    from packaging.utils import canonicalize_name

    def read(name: str) -> list[Requirement]:
        lines = (line.partition("#")[0].strip() for line in (ROOT / name).read_text().splitlines())
        return [Requirement(line) for line in lines if line]

    exact = {canonicalize_name(r.name): str(r.specifier) for r in read("requirements-ci.txt")}
    assert all(pin.startswith("==") and "+" not in pin for pin in exact.values())
    for file in sorted(path.name for path in ROOT.glob("requirements*.txt")):
        for wanted in read(file):
            pin = exact.get(canonicalize_name(wanted.name))
            assert pin and wanted.specifier.contains(pin.removeprefix("==")), f"{file}: {wanted}, requirements-ci.txt {pin}"


def test_the_citation_the_package_and_the_changelog_name_one_version():
    import tomllib

    citation = yaml.safe_load((ROOT / "CITATION.cff").read_text())
    version = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]["version"]
    assert citation["version"] == version and f"({version})" in (ROOT / "CHANGELOG.md").read_text()
    assert "2410.01131" in citation["references"][0]["url"]
