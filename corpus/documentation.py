"""The corpus that every machine has: the documentation inside CPython, about 2 MB of text."""

import ast
import inspect
from collections.abc import Iterator
from pathlib import Path

from corpus.documents import DocumentWriter

SKIPPED_FOLDERS = {"test", "tests", "idle_test", "site-packages", "dist-packages", "__pycache__"}


def add_documentation(writer: DocumentWriter, library: Path) -> None:
    """Append the help topics and the docstrings of each module under library, each text once, in a fixed order."""
    seen: set[str] = set()
    for document in (*topics(library), *module_documents(library, seen)):
        if document not in seen:
            seen.add(document)
            writer.add(document.encode("utf-8", "replace"))


def topics(library: Path) -> Iterator[str]:
    """Yield the texts behind Python's help(), which pydoc_data keeps in one dictionary, sorted by topic."""
    tree = parse(library / "pydoc_data" / "topics.py")
    for statement in tree.body if tree else ():
        if isinstance(statement, ast.Assign) and isinstance(statement.value, ast.Dict):
            table = ast.literal_eval(statement.value)
            yield from (table[name] for name in sorted(table))


def module_documents(library: Path, seen: set[str]) -> Iterator[str]:
    """Yield one document per module with docstrings: each under the name of what it describes."""
    for path in sorted(library.rglob("*.py")):
        parts = path.relative_to(library).with_suffix("").parts
        # The sources are parsed and never imported: some modules act when imported.
        if SKIPPED_FOLDERS.isdisjoint(parts) and (tree := parse(path)) is not None:
            name = ".".join(part for part in parts if part != "__init__")
            sections = []
            for label, docstring in docstrings(tree, name):
                if docstring not in seen:
                    seen.add(docstring)
                    sections.append(f"{label}\n\n{docstring}\n")
            if sections:
                yield "\n".join(sections)


def parse(path: Path) -> ast.Module | None:
    """Return the syntax tree of a source file, None if this Python cannot read it."""
    try:
        return ast.parse(path.read_bytes())
    except (OSError, SyntaxError, ValueError, RecursionError):
        return None


def docstrings(node: ast.Module | ast.ClassDef | ast.FunctionDef | ast.AsyncFunctionDef, name: str) -> Iterator[tuple[str, str]]:
    """Yield (signature or dotted name, cleaned docstring) of a module, class or function and of all inside it."""
    docstring = ast.get_docstring(node, clean=False)
    if docstring and docstring.strip():
        arguments = f"({ast.unparse(node.args)})" if isinstance(node, (ast.FunctionDef, ast.AsyncFunctionDef)) else ""
        yield name + arguments, inspect.cleandoc(docstring).strip()
    for child in node.body:
        if isinstance(child, (ast.ClassDef, ast.FunctionDef, ast.AsyncFunctionDef)):
            yield from docstrings(child, f"{name}.{child.name}")
