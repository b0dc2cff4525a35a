"""The diff of gpt/model.py and ngpt/model.py is the paper: same skeleton, few changed lines, a citation per hunk."""

import ast
import difflib
import re
from pathlib import Path

ROOT = Path(__file__).parent.parent
TWINS = [ROOT / "gpt/model.py", ROOT / "ngpt/model.py"]
MOST_CHANGED_LINES = 60


def skeleton(path):
    """Classes in order, each with its methods in order and their arguments."""
    tree = ast.parse(path.read_text())
    return [
        (node.name, [(f.name, ast.unparse(f.args)) for f in node.body if isinstance(f, ast.FunctionDef)])
        for node in tree.body
        if isinstance(node, ast.ClassDef)
    ]


def hunks():
    a, b = (path.read_text().splitlines() for path in TWINS)
    text = "\n".join(difflib.unified_diff(a, b, lineterm="", n=3))
    return re.split(r"^@@.*@@$", text, flags=re.M)[1:]


def test_the_twins_have_the_same_classes_methods_and_arguments():
    assert skeleton(TWINS[0]) == skeleton(TWINS[1])


def test_few_lines_differ_and_each_hunk_cites_what_it_implements():
    changed = [line for hunk in hunks() for line in hunk.splitlines() if re.match(r"[+-]", line)]
    assert 30 < len(changed) <= MOST_CHANGED_LINES
    assert len(hunks()) <= 8
    for hunk in hunks():
        added = "\n".join(line for line in hunk.splitlines() if line.startswith("+"))
        assert re.search(r"eq\. \d|sections? [\dA]|arXiv", added), f"no equation or section cited in:{hunk}"


def test_parameters_that_both_have_bear_the_same_names():
    from engine.models import build_model

    names = [{n for n, _ in build_model({"name": m, "n_layer": 2}, device="meta").named_parameters()} for m in ("gpt", "ngpt")]
    assert {n for n in names[0] - names[1]} == {n for n in names[0] if "norm" in n}
    assert {n for n in names[1] - names[0]} == {n for n in names[1] if n.endswith(".stored")}
