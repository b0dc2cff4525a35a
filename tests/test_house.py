"""The rooms of the house: imports point down only, and names say what is inside."""

import ast
import re
from pathlib import Path

ROOT = Path(__file__).parent.parent
LAB = ("speedup", "inspection", "ablations", "evaluation", "sweeps", "export", "benchmark", "prediction", "soak", "transfer")
# What may be compared is decided once, and what an arm of a benchmark is.
LAB_MAY_IMPORT = {"ablations": {"speedup"}, "transfer": {"speedup"}, "prediction": {"benchmark"}}
ROOMS = ("gpt", "ngpt", "arms", "cli", "runfolder", "corpus", "engine", "lab", "sampling", "scripts")
MAY_IMPORT = {
    "gpt": set(),
    "ngpt": {"gpt"},
    "arms": {"gpt", "ngpt"},
    "cli": set(),
    "runfolder": set(),
    "corpus": {"cli", "runfolder"},
    "engine": {"gpt", "ngpt", "arms", "cli", "runfolder", "corpus"},
    "lab": {"engine", "cli", "runfolder", "corpus"},
    "sampling": {"engine", "cli", "runfolder", "corpus"},
    "scripts": {"lab", "corpus", "cli"},
}
REGISTRY = "engine/models.py"  # the one file of the engine that names the models


def sources(room):
    return sorted(path for path in (ROOT / room).rglob("*.py") if path.is_file())


def imported(path):
    for node in ast.walk(ast.parse(path.read_text())):
        if isinstance(node, ast.Import):
            yield from (alias.name for alias in node.names)
        elif isinstance(node, ast.ImportFrom):
            yield node.module or ""


def test_imports_point_down():
    for room in ROOMS:
        for path in sources(room):
            rooms = {name.split(".")[0] for name in imported(path)} & {
                *ROOMS,
                "train",
                "sample",
                "prepare_owt",
                "tests",
            }
            assert rooms - {room} <= MAY_IMPORT[room], f"{path.relative_to(ROOT)} imports {rooms}"


def test_rooms_of_the_laboratory_do_not_know_each_other():
    for room in LAB:
        for path in sources(f"lab/{room}"):
            others = {name.split(".")[1] for name in imported(path) if name.startswith("lab.")} & set(LAB) - {room}
            assert others <= LAB_MAY_IMPORT.get(room, set()), f"{path.relative_to(ROOT)} imports lab's {others}"


def test_the_map_is_that_of_the_house():
    page = (ROOT / "docs/architecture.md").read_text()
    rows = re.findall(r"^\| `([a-z]+)` \| .* \| (nothing|[`\w, ]+) \|$", page, re.MULTILINE)
    assert {room: set(re.findall(r"`(\w+)`", names)) for room, names in rows} == MAY_IMPORT
    assert set(re.findall(r"^\| `lab/(\w+)` \|", page, re.MULTILINE)) == set(LAB)
    for name in set(re.findall(r"`((?:\w+/)+\w+\.(?:py|yaml))`", page)):
        assert (ROOT / name).is_file(), f"docs/architecture.md names {name}"


def test_only_entrances_import_the_entry():
    for room in set(ROOMS) - {"cli", "scripts"}:
        for path in sources(room):
            if path.name != "cli.py":
                assert "cli.entry" not in set(imported(path)), path.relative_to(ROOT)


def test_the_engine_knows_the_models_in_one_file_alone():
    for path in sources("engine"):
        name = str(path.relative_to(ROOT))
        if name == REGISTRY:
            continue
        assert not {n for n in imported(path) if n.split(".")[0] in ("gpt", "ngpt", "arms")}, name
        code = "\n".join(line for line in path.read_text().splitlines())
        words = set(re.findall(r"\b(?:n?gpt|GPT|nGPT)\b(?!-vs)", code)) - {"GPT"}
        words -= {"ngpt"} if "NVIDIA/ngpt" in code or "gpt-vs-ngpt" in code else set()
        assert not words, f"{name} says {words}"


def test_of_the_corpus_the_engine_needs_no_tokenizer():
    for path in set(sources("engine")) - {ROOT / "engine/trained.py"}:  # which training does not import
        from_corpus = {n for n in imported(path) if n.startswith("corpus")}
        assert from_corpus <= {"corpus.manifest", "corpus.token_file", "corpus.settings"}, path.name


def test_no_drawers():
    tracked = [p for room in (*ROOMS, "configs", "tests") for p in (ROOT / room).rglob("*.*")]
    assert not [p for p in tracked if p.stem.strip("_") in ("utils", "util", "helpers", "helper", "misc", "common")]


def test_files_and_functions_stay_small():
    for room in ROOMS:
        for path in sources(room):
            text = path.read_text()
            assert text.count("\n") <= 260, (
                f"{path.relative_to(ROOT)} has {text.count(chr(10))} lines: do two things live together?"
            )
            for node in ast.walk(ast.parse(text)):
                if isinstance(node, ast.FunctionDef):
                    length = node.end_lineno - node.lineno + 1
                    assert length <= 70, f"{path.relative_to(ROOT)}: {node.name} has {length} lines"


def test_every_test_that_the_documents_name_exists():
    defined = {name for path in (ROOT / "tests").glob("test_*.py") for name in re.findall(r"def (test_\w+)", path.read_text())}
    for page in (ROOT / "docs").glob("*.md"):
        named = set(re.findall(r"\btest_\w{8,}(?!\.py)\b", page.read_text()))
        assert named <= defined, f"{page.name}: {sorted(named - defined)}"
