"""The house: imports go down, rooms on one floor do not see each other, libraries stay at home."""

from __future__ import annotations

import ast
from pathlib import Path

import pytest

SOURCE = Path(__file__).parent.parent / "src"

FLOORS = {
    "core": 0,
    "families": 1, "strategies": 1, "selectors": 1, "interventions": 1, "stores": 1,
    "sources": 1, "trackers": 1, "analysis": 1, "plots": 1, "demo": 1,
    "backends": 2, "formats": 2,
    "capture": 3,
    "studies": 4,
    "cli": 5,
}  # fmt: skip
"""A room may import rooms of lower floors, itself, and nothing else of the house."""

TESTING_SEES = {"core", "testing"}
"""Contract suites know the words of the field and the suite, not what they test."""

HOMES: dict[str, set[str]] = {
    "transformers": {"backends", "testing"},
    "tokenizers": {"testing"},
    "peft": {"backends"},
    "torchao": {"backends"},
    "httpx2": {"backends"},
    "huggingface_hub": {"sources"},
    "h5py": {"stores", "formats"},
    "safetensors": set(),
    "pyarrow": {"sources", "formats"},
    "zarr": {"formats"},
    "datasets": {"formats"},
    "gguf": {"formats"},
    "matplotlib": {"plots"},
    "jinja2": {"plots"},
    "click": {"cli"},
    "rich": {"cli"},
    "xxhash": {"stores"},
    "zstandard": {"stores"},
    "torch": {
        "core",
        "strategies",
        "stores",
        "formats",
        "backends",
        "capture",
        "studies",
        "testing",
    },
    "pandas": {"stores"},
    "fsspec": {"stores"},
    "mlflow": {"trackers"},
    "pytest": {"testing"},
    "hypothesis": {"testing"},
    "sklearn": {"analysis"},
    "scipy": {"analysis"},
}
"""Third-party libraries and the rooms that may import them; a library not listed has no home."""

EVERYWHERE = {"numpy", "ml_dtypes"}
TORCH_ONLY_INSIDE_FUNCTIONS = {"core", "strategies", "stores", "formats", "capture", "studies"}
TORCH_DATASETS = "stores/_training.py"
"""Subclasses of torch's own classes; imported by the function that makes one."""


def imports_of(path: Path) -> list[tuple[str, bool]]:
    """(module, whether importing the file imports it) of every import that is not for types."""
    found: list[tuple[str, bool]] = []

    def visit(node: ast.AST, at_import: bool) -> None:
        if isinstance(node, ast.If) and "TYPE_CHECKING" in ast.unparse(node.test):
            return
        if isinstance(node, ast.Import):
            found.extend((alias.name, at_import) for alias in node.names)
        elif isinstance(node, ast.ImportFrom):
            assert node.level == 0, f"{path} uses a relative import"
            names = [str(node.module)]
            if node.module == "actscope":  # `from actscope import cli` imports the room
                names = [f"actscope.{alias.name}" for alias in node.names]
            elif names[0].startswith("actscope."):  # `from actscope.stores import _io` too
                names += [f"{names[0]}.{a.name}" for a in node.names if is_private(a.name)]
            found.extend((name, at_import) for name in names)
        inside = isinstance(node, (ast.FunctionDef, ast.AsyncFunctionDef, ast.Lambda))
        for child in ast.iter_child_nodes(node):
            visit(child, at_import and not inside)

    visit(ast.parse(path.read_text(encoding="utf-8")), True)
    return found


def is_private(name: str) -> bool:
    return name.startswith("_") and not name.startswith("__")


def owner_of(module: str) -> str | None:
    """The package that a private module belongs to; None for a public module."""
    parts = module.split(".")
    for place, part in enumerate(parts):
        if is_private(part):
            return ".".join(parts[:place])
    return None


def complaints(source: Path) -> list[str]:
    """Everything in a source tree that breaks the rules."""
    import sys

    problems: list[str] = []
    package = source / "actscope"
    for path in sorted(package.rglob("*.py")):
        parts = path.relative_to(package).parts
        room = parts[0] if len(parts) > 1 else "door"
        if room == "door":
            continue
        if room not in FLOORS and room != "testing":
            problems.append(f"{path}: the room {room!r} has no floor")
            continue
        here = ".".join(["actscope", *parts[:-1]])
        for module, at_import in imports_of(path):
            top, *rest = module.split(".")
            if top == "actscope":
                owner = owner_of(module)
                if owner and not f"{here}.".startswith(f"{owner}."):
                    problems.append(f"{path}: {module} is private to {owner}")
                other = rest[0] if rest else "door"
                if other == room or (room == "cli" and other == "door"):
                    continue
                allowed = (
                    other in TESTING_SEES
                    if room == "testing"
                    else FLOORS.get(other, 99) < FLOORS[room]
                )
                if not allowed:
                    problems.append(f"{path}: {room} must not import {module}")
            elif top not in sys.stdlib_module_names and top not in EVERYWHERE:
                if room not in HOMES.get(top, set()):
                    problems.append(f"{path}: {top} is not at home in {room}")
                elif str(path).endswith(TORCH_DATASETS):
                    continue
                elif top == "torch" and at_import and room in TORCH_ONLY_INSIDE_FUNCTIONS:
                    problems.append(f"{path}: {room} imports torch before it is used")
    return problems


def test_the_house_is_in_order() -> None:
    assert complaints(SOURCE) == []


@pytest.mark.parametrize(
    ("file", "line", "says"),
    [
        ("core/sites.py", "from actscope.stores import open_run", "core must not import"),
        ("stores/shards.py", "from actscope.sources import open_source", "stores must not"),
        ("strategies/mean.py", "import torch", "before it is used"),
        ("stores/shards.py", "import transformers", "transformers is not at home in stores"),
        ("analysis/similarity.py", "from actscope.backends.hf import load_model", "analysis must"),
        ("capture/runner.py", "from actscope import cli", "capture must not import actscope.cli"),
        ("utils/things.py", "import os", "'utils' has no floor"),
        (
            "formats/pt.py",
            "from actscope.stores._io import publish",
            "is private to actscope.stores",
        ),
        ("studies/a/b.py", "from actscope.stores import _io", "is private to actscope.stores"),
        ("studies/a/b.py", "import actscope.studies.c._d", "is private to actscope.studies.c"),
    ],
)
def test_a_planted_violation_is_caught(tmp_path: Path, file: str, line: str, says: str) -> None:
    path = tmp_path / "actscope" / file
    path.parent.mkdir(parents=True)
    path.write_text(f"{line}\n")
    problems = complaints(tmp_path)
    assert problems and all(says in p for p in problems[:1]), problems


def test_a_type_only_import_is_no_arrow(tmp_path: Path) -> None:
    path = tmp_path / "actscope" / "core" / "x.py"
    path.parent.mkdir(parents=True)
    path.write_text("from typing import TYPE_CHECKING\nif TYPE_CHECKING:\n    import torch\n")
    assert complaints(tmp_path) == []


def test_no_room_is_called_after_nothing() -> None:
    names = {p.stem for p in (SOURCE / "actscope").rglob("*")}
    assert not names & {"utils", "helpers", "common", "manager", "misc"}


def test_files_and_functions_stay_small() -> None:
    too_long: list[str] = []
    for path in (SOURCE / "actscope").rglob("*.py"):
        text = path.read_text(encoding="utf-8")
        if text.count("\n") > 450:
            too_long.append(f"{path.name}: {text.count(chr(10))} lines")
        for node in ast.walk(ast.parse(text)):
            if isinstance(node, (ast.FunctionDef, ast.AsyncFunctionDef)):
                length = (node.end_lineno or node.lineno) - node.lineno + 1
                if length > 60:
                    too_long.append(f"{path.name}:{node.name}: {length} lines")
    assert too_long == []
