"""Writers to kill, and a count of every fault that was injected."""

from __future__ import annotations

import json
import os
import time
from functools import partial
from pathlib import Path

import pytest
from nursery import Nursery

FIGURES = "ACTSCOPE_FIGURES"
"""The environment names a file; each kind of fault adds a line to it."""


class Injected:
    """Counts faults of one kind, and how many came out right: ``with injected: ...`` is one."""

    def __init__(self, fault, promises):
        self.fault, self.promises = fault, promises
        self.times = self.right = 0
        self._began = time.perf_counter()

    def __enter__(self):
        self.times += 1

    def __exit__(self, kind, value, trace):
        self.right += kind is None

    def add(self, times):
        """So many more, all of which came out right."""
        self.times += times
        self.right += times

    def line(self):
        figures = {key: getattr(self, key) for key in ("fault", "promises", "times", "right")}
        return {**figures, "seconds": round(time.perf_counter() - self._began, 3)}


@pytest.fixture
def injected():
    """``injected("SIGKILL at every fail point", "1, 3")`` counts faults of that kind."""
    kinds = []

    def kind(fault, promises):
        kinds.append(Injected(fault, promises))
        return kinds[-1]

    yield kind
    if FIGURES in os.environ:
        with Path(os.environ[FIGURES]).open("a", encoding="utf-8") as file:
            file.writelines(json.dumps(made.line()) + "\n" for made in kinds)


@pytest.fixture(scope="module")
def nursery(tmp_path_factory):
    made = Nursery(tmp_path_factory.mktemp("nursery"))
    yield made
    made.close()


@pytest.fixture(scope="module")
def start(nursery):
    """Starts a writer: store, folder, options, ``fail_at``."""
    return partial(nursery.start, "write")
