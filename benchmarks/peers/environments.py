"""A virtual environment for each peer, made once from its pinned requirements.

Environments lie in a cache folder outside the repository, named after a digest of the pins: peers
with the same pins share one, and changed pins make a new one. Whatever goes wrong is a reason to
skip the peer, never an end of the benchmark.
"""

from __future__ import annotations

import hashlib
import os
import platform
import shutil
import subprocess
import sys
from pathlib import Path

COMPLETE = ".complete"


class SkippedError(Exception):
    """Why a peer is left out."""


def default_folder() -> Path:
    """Where environments lie unless a folder is given."""
    cache = os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache"
    return Path(cache) / "actscope" / "peers"


def pins(requirements: Path) -> list[str]:
    """The requirements in a file, without its comments."""
    if not requirements.is_file():
        raise SkippedError(f"there is no {requirements.name}")
    lines = (line.partition("#")[0].strip() for line in requirements.read_text().splitlines())
    return [line for line in lines if line]


def prepare(requirements: Path, venvs: Path, options: tuple[str, ...] = ()) -> Path:
    """The Python of an environment in which the requirements are installed.

    Args:
        requirements: The pinned requirements. Its torch goes first and alone, so that no other
            package pulls another build.
        venvs: The folder of all environments.
        options: More options of ``pip install``, for all packages.

    Raises:
        SkippedError: They could not be installed, with pip's own last error.
    """
    wanted = pins(requirements)
    named = "\n".join([platform.python_version(), *wanted])
    folder = venvs / hashlib.sha256(named.encode()).hexdigest()[:16]
    python = folder / "bin" / "python"
    if (folder / COMPLETE).exists():
        return python
    shutil.rmtree(folder, ignore_errors=True)
    _run([sys.executable, "-m", "venv", "--without-pip", str(folder)], "venv")
    install = [sys.executable, "-m", "pip", "--python", str(python), "install", "--quiet"]
    install += ["--disable-pip-version-check", *options]
    torch = [pin for pin in wanted if pin.startswith("torch==")]
    index = os.environ.get("TORCH_INDEX")
    if torch:
        _run([*install, *(["--index-url", index] if index else []), *torch], "pip")
    _run([*install, "-r", str(requirements)], "pip")
    (folder / COMPLETE).write_text(named + "\n")
    return python


def _run(command: list[str], name: str) -> None:
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    if done.returncode:
        raise SkippedError(f"{name}: {last_error(done.stderr or done.stdout)}")


def last_error(text: str) -> str:
    """The line of a log that says what went wrong: the last one with an error in it."""
    lines = [line.strip() for line in text.splitlines() if line.strip()]
    told = [line for line in lines if "error" in line.lower()]
    return (told or lines or ["it said nothing"])[-1][:300]
