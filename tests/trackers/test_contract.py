"""The contract suite on every tracker of the room."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from actscope.core.protocols import Tracker
from actscope.testing.tracker_contract import Logged, TrackerContract
from actscope.trackers import TRACKERS
from actscope.trackers.jsonl import JsonlTracker
from actscope.trackers.mlflow import MlflowTracker


class TestJsonl(TrackerContract):
    @pytest.fixture
    def place(self, tmp_path: Path) -> str:
        return str(tmp_path / "log.jsonl")

    def make(self, place: str) -> Tracker:
        return JsonlTracker(place)

    def read(self, place: str) -> list[Logged]:
        found: dict[str, list] = {}
        for line in Path(place).read_text(encoding="utf-8").splitlines():
            event = json.loads(line)
            name = event["run"]
            found.setdefault(name, [name, {}, {}, ""])
            if event["event"] == "started":
                found[name][1] = event["parameters"]
            elif event["event"] == "figures":
                found[name][2] |= event["figures"]
            else:
                found[name][3] = event["state"]
        return [tuple(parts) for parts in found.values()]


@pytest.mark.filterwarnings("ignore:.*filesystem.*:FutureWarning")
class TestMlflow(TrackerContract):
    @pytest.fixture
    def place(self, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> str:
        monkeypatch.setenv("MLFLOW_ALLOW_FILE_STORE", "true")
        return (tmp_path / "mlruns").as_uri()

    def make(self, place: str) -> Tracker:
        return MlflowTracker(place)

    def read(self, place: str) -> list[Logged]:
        from mlflow.tracking import MlflowClient

        client = MlflowClient(tracking_uri=place)
        experiment = client.get_experiment_by_name("actscope")
        assert experiment is not None
        states = {"FINISHED": "complete", "KILLED": "interrupted", "FAILED": "failed"}
        return [
            (run.info.run_name, run.data.params, run.data.metrics, states[run.info.status])
            for run in client.search_runs([experiment.experiment_id])
        ]


def test_no_tracker_is_left_out() -> None:
    assert set(TRACKERS.names()) == {"jsonl", "mlflow"}
