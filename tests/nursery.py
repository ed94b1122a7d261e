"""Forks programs that are to be killed from one process that has its libraries loaded already."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path


class Nursery:
    """A process that forks others; ``program`` is a Python file that understands ``serve``."""

    def __init__(self, folder, program=Path(__file__).parent / "writer_process.py"):
        self.folder = folder
        self.count = 0
        self.process = subprocess.Popen(
            [sys.executable, str(program), "serve"],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            text=True,
            bufsize=1,
        )

    def ask(self, request):
        self.process.stdin.write(json.dumps(request) + "\n")
        return int(self.process.stdout.readline())

    def close(self):
        self.process.stdin.close()
        self.process.stdout.close()
        self.process.wait()

    def start(self, *argv, fail_at=""):
        """Fork a program."""
        return Forked(self, argv, fail_at)


class Forked:
    """One forked program."""

    def __init__(self, nursery, argv, fail_at):
        nursery.count += 1
        self.out = nursery.folder / f"{nursery.count}.out"
        self.err = nursery.folder / f"{nursery.count}.err"
        self.nursery = nursery
        files = {"out": str(self.out), "err": str(self.err)}
        self.pid = nursery.ask({"argv": [str(a) for a in argv], "fail_at": fail_at, **files})

    def printed(self):
        return self.out.read_text().split() if self.out.exists() else []

    def finish(self):
        """(exit code, words it printed, what it said went wrong)."""
        code = self.nursery.ask({"wait": self.pid})
        return code, self.printed(), self.err.read_text() if self.err.exists() else ""
