"""The code's shape: imports go one way, files and functions stay short.

`LAYERS` is the import order: a module may import from its own layer and from those before it.
"""

from __future__ import annotations

import ast
from collections.abc import Iterator
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[1] / "src" / "ropewalk"

LAYERS = (
    ("errors",),
    ("validation", "io", "rebind"),
    ("heads",),
    ("scaling",),
    ("encodings",),
    ("attention",),
    ("patching",),
    ("hub",),
    ("analysis",),
    ("data",),
    ("tasks",),
    ("evaluation",),
    ("training",),
    ("report",),
    ("cli",),
)
# `ropewalk/__init__.py`, the face: it may import everything, nothing inside may import it.
FACE = len(LAYERS)
MAX_FILE_LINES = 500
MAX_FUNCTION_LINES = 60


def rank(name: str) -> int | None:
    """The layer's number of a module or package directly under ropewalk; None if it has no layer."""
    if name in ("__init__", "__main__"):
        return FACE
    return next((number for number, names in enumerate(LAYERS) if name in names), None)


def imported(tree: ast.AST, package: list[str]) -> Iterator[tuple[int, str]]:
    """(line, name under ropewalk) of every import of ropewalk, also in functions; "__init__" for the face.

    `package` is the dotted path of the package that the file is in, from which relative imports start.
    """
    for node in ast.walk(tree):
        if isinstance(node, ast.Import):
            dotted = [alias.name.split(".") for alias in node.names]
        elif isinstance(node, ast.ImportFrom):
            base = package[: len(package) - node.level + 1] if node.level else []
            base = base + (node.module.split(".") if node.module else [])
            dotted = [[*base, alias.name] for alias in node.names]
        else:
            continue
        for path in dotted:
            if path[0] == "ropewalk":
                known = len(path) > 1 and rank(path[1]) is not None
                submodule = known or len(path) > 2
                yield node.lineno, path[1] if submodule else "__init__"


def import_violations(root: Path) -> list[str]:
    """Every import under `root` (the folder ropewalk) of a later layer or of a module without a layer."""
    found = []
    for file in sorted(root.rglob("*.py")):
        parts = file.relative_to(root).with_suffix("").parts
        here = rank(parts[0])
        if here is None:
            found.append(f"{file.relative_to(root)}: {parts[0]} has no place in LAYERS")
            continue
        for line, name in imported(ast.parse(file.read_text()), ["ropewalk", *parts[:-1]]):
            there = rank(name)
            if there is None or there > here:
                found.append(f"{file.relative_to(root)}:{line}: imports {name}")
    return found


def length_violations(root: Path) -> list[str]:
    """Every file and function under `root` that is too long."""
    found = []
    for file in sorted(root.rglob("*.py")):
        text = file.read_text()
        if (lines := len(text.splitlines())) > MAX_FILE_LINES:
            found.append(f"{file.relative_to(root)}: {lines} lines")
        for node in ast.walk(ast.parse(text)):
            if isinstance(node, (ast.FunctionDef, ast.AsyncFunctionDef)):
                lines = (node.end_lineno or node.lineno) - node.lineno + 1
                if lines > MAX_FUNCTION_LINES:
                    found.append(f"{file.relative_to(root)}:{node.lineno}: {node.name} has {lines} lines")
    return found


def test_imports_go_one_way() -> None:
    assert import_violations(ROOT) == []


def test_files_and_functions_are_short() -> None:
    assert length_violations(ROOT) == []


def _tree(root: Path, files: dict[str, str]) -> Path:
    for name, text in files.items():
        (root / name).parent.mkdir(parents=True, exist_ok=True)
        (root / name).write_text(text)
    return root


@pytest.mark.parametrize(
    ("file", "text"),
    [
        ("heads.py", "from ropewalk.cli import app"),
        ("heads.py", "import ropewalk.patching.install"),
        ("heads.py", "def f():\n    from ropewalk.evaluation.extend import extend"),
        ("heads.py", "from ropewalk import patching"),
        ("patching/install.py", "from ..analysis import scores"),
        ("patching/install.py", "from .. import tasks"),
        ("encodings/deep/rope.py", "from ...attention import attend"),
        ("cli/app.py", "from ropewalk import RoPE"),
        ("patching/install.py", "import ropewalk"),
        ("patching/install.py", "from ropewalk.unheard_of import x"),
        ("unheard_of.py", ""),
    ],
)
def test_a_wrong_import_is_found(tmp_path: Path, file: str, text: str) -> None:
    assert len(import_violations(_tree(tmp_path, {file: text}))) == 1


@pytest.mark.parametrize(
    ("file", "text"),
    [
        ("patching/install.py", "from .. import encodings\nfrom .step import x\nfrom ropewalk.patching import cache"),
        (
            "encodings/rope.py",
            "import torch\nfrom ropewalk.scaling import Linear\nimport ropewalk.errors",
        ),
        ("scaling/methods.py", "from ropewalk.scaling import rules"),
        ("__init__.py", "from ropewalk.cli import app\nfrom .evaluation import extend"),
    ],
)
def test_a_right_import_passes(tmp_path: Path, file: str, text: str) -> None:
    assert import_violations(_tree(tmp_path, {file: text})) == []


def test_long_files_and_functions_are_found(tmp_path: Path) -> None:
    body = "    x = 1\n"
    root = _tree(
        tmp_path,
        {
            "file_fits.py": "x = 1\n" * MAX_FILE_LINES,
            "file_long.py": "x = 1\n" * (MAX_FILE_LINES + 1),
            "function_fits.py": "def f():\n" + body * (MAX_FUNCTION_LINES - 1),
            "function_long.py": "class A:\n  def f():\n" + body * MAX_FUNCTION_LINES,
        },
    )
    assert [line.split(":")[0] for line in length_violations(root)] == ["file_long.py", "function_long.py"]
