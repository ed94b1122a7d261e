"""Events as lines of a JSON file: for scripts, and for trackers that read one."""

from __future__ import annotations

import json
import os
import time
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from actscope.core.errors import OutputFolderError

__all__ = ["TRACKER", "JsonlTracker"]


class JsonlTracker:
    """Appends one line for each event, in one write, so that several processes may share a file.

    Args:
        path: The file; its folder must exist.

    Raises:
        OutputFolderError: nothing can be written there.
    """

    def __init__(self, path: str | Path) -> None:
        self._path = Path(path)
        self._name = ""
        self._write(b"")

    def started(self, name: str, parameters: Mapping[str, str]) -> None:
        """One line with all parameters."""
        self._name = name
        self._event("started", {"parameters": dict(parameters)})

    def figures(self, values: Mapping[str, float], step: int = 0) -> None:
        """One line with all figures."""
        self._event("figures", {"step": step, "figures": dict(values)})

    def finished(self, state: str) -> None:
        """One line with the state."""
        self._event("finished", {"state": state})

    def _event(self, event: str, body: Mapping[str, Any]) -> None:
        line = {"time": round(time.time(), 3), "run": self._name, "event": event, **body}
        self._write(json.dumps(line, allow_nan=True).encode("ascii") + b"\n")

    def _write(self, line: bytes) -> None:
        try:
            handle = os.open(self._path, os.O_WRONLY | os.O_CREAT | os.O_APPEND, 0o644)
            try:
                os.write(handle, line)
            finally:
                os.close(handle)
        except OSError as error:
            raise OutputFolderError(
                f"the tracker cannot write to {self._path}",
                got=str(error),
                next_step="make its folder, or choose another file",
            ) from error


TRACKER = JsonlTracker
