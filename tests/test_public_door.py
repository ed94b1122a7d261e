"""The public door: its list of names, and that walking through it costs nothing."""

from __future__ import annotations

import subprocess
import sys

import pytest

import actscope


def test_every_exported_name_resolves_and_nothing_else_is_promised() -> None:
    for name in actscope.__all__:
        assert getattr(actscope, name) is not None
    assert sorted(actscope.__all__) == actscope.__all__
    assert len(actscope.__all__) <= 40
    with pytest.raises(AttributeError, match="no attribute"):
        _ = actscope.load_modle


def test_type_checkers_see_the_same_names() -> None:
    import ast
    from pathlib import Path

    tree = ast.parse(Path(actscope.__file__).read_text(encoding="utf-8"))
    block = next(n for n in tree.body if isinstance(n, ast.If))
    imports = [node for node in block.body if isinstance(node, ast.ImportFrom)]
    names = {alias.asname or alias.name for node in imports for alias in node.names}
    assert names == set(actscope.__all__) - {"__version__"}


@pytest.mark.parametrize("code", ["import actscope", "import actscope; dir(actscope)"])
def test_importing_never_imports_torch(code: str) -> None:
    script = f"{code}; import sys; print('torch' in sys.modules, 'transformers' in sys.modules)"
    done = subprocess.run(
        [sys.executable, "-c", script], capture_output=True, text=True, check=True, timeout=60
    )
    assert done.stdout.split() == ["False", "False"]


def test_the_version_is_the_packages() -> None:
    from importlib.metadata import version

    assert actscope.__version__ == version("actscope")
