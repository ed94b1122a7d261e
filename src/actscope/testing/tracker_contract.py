"""What every tracker promises, as a test suite for those of this package and of others.

class TestMyTracker(TrackerContract):
    @pytest.fixture
    def place(self, tmp_path):
        return str(tmp_path / "somewhere")
    def make(self, place): return MyTracker(place)
    def read(self, place): ...  # [(name, parameters, figures, state)] of the runs logged there
"""

# ruff: noqa: D102 - the name of a test says what it promises
from __future__ import annotations

import math
from collections.abc import Mapping

from actscope.core.protocols import Tracker

__all__ = ["Logged", "TrackerContract"]

Logged = tuple[str, Mapping[str, str], Mapping[str, float], str]

PARAMETERS = {
    "fingerprint": "sha256:1",
    "model.name": "a/b",
    "sites": "blocks.3.resid_post",
    "e": "",
}
ODD = {"fingerprint": "sha256:2", "prompt": "it's \u05e9 \U0001f600 \n", "long": "x" * 20_000}


class TrackerContract:
    """Subclass it and give it ``place``, ``make`` and ``read``."""

    def make(self, place: str) -> Tracker:
        raise NotImplementedError

    def read(self, place: str) -> list[Logged]:
        raise NotImplementedError

    def test_what_is_logged_can_be_read(self, place: str) -> None:
        made = self.make(place)
        assert isinstance(made, Tracker)
        made.started("first", PARAMETERS)
        made.figures({"examples": 3.0, "blocks.3.resid_post/norm": 0.1 + 0.2})
        made.finished("complete")
        ((name, parameters, figures, state),) = self.read(place)
        assert (name, state) == ("first", "complete")
        assert dict(parameters) == PARAMETERS
        assert dict(figures) == {"examples": 3.0, "blocks.3.resid_post/norm": 0.1 + 0.2}

    def test_two_runs_are_two(self, place: str) -> None:
        for name in ("first", "second"):
            made = self.make(place)
            made.started(name, {**PARAMETERS, "fingerprint": name})
            made.finished("complete")
        assert sorted(logged[0] for logged in self.read(place)) == ["first", "second"]

    def test_odd_texts_and_numbers_do_no_harm(self, place: str) -> None:
        made = self.make(place)
        made.started("it's an \u05e9 run", ODD)
        values = {
            "nan": math.nan,
            "inf": math.inf,
            "zero": -0.0,
            "some (odd) = key": 1.0,
        }
        made.figures(values)
        made.finished("complete")
        ((name, parameters, figures, _),) = self.read(place)
        assert name == "it's an \u05e9 run"
        assert parameters["prompt"] == ODD["prompt"]
        assert parameters["long"].startswith("x" * 1000)
        assert figures["zero"] == 0 and figures["inf"] == math.inf

    def test_every_end_is_told_apart(self, place: str) -> None:
        states = ("complete", "interrupted", "failed")
        for state in states:
            made = self.make(place)
            made.started(state, {"fingerprint": state})
            made.finished(state)
        assert {name: state for name, _, _, state in self.read(place)} == {s: s for s in states}
