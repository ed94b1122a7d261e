"""Trackers: MLflow's own client reads back what a run logged, and no tracker can harm a run."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from click.testing import CliRunner

from actscope import (
    ActivationExtractor,
    DatasetRunner,
    ShardStorage,
    load_model,
    open_run,
)
from actscope.capture.tracking import figures_of, flat
from actscope.cli.main import main
from actscope.core.errors import BadInputError, OutputFolderError, UnknownNameError
from actscope.core.protocols import Tracker
from actscope.trackers import TRACKERS, tracker
from actscope.trackers.jsonl import JsonlTracker

TEXTS = ["The ferry leaves at noon.", "A cat.", "Where is the spoon?"]


def captured(
    folder: Path, tracker: Tracker | None, texts: list[str] = TEXTS, **options: Any
) -> Any:
    model = load_model("demo", "cpu")
    extractor = ActivationExtractor(model, layers=[1, 3])
    storage = ShardStorage(folder)
    return DatasetRunner(texts, None, extractor, storage, tracker=tracker, **options).run(
        run_id="run"
    )


@pytest.fixture
def mlflow_folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> str:
    monkeypatch.setenv("MLFLOW_ALLOW_FILE_STORE", "true")
    return (tmp_path / "mlruns").as_uri()


def runs_of(uri: str, name: str) -> list[Any]:
    from mlflow.tracking import MlflowClient

    client = MlflowClient(tracking_uri=uri)
    experiment = client.get_experiment_by_name(name)
    assert experiment is not None
    return client.search_runs([experiment.experiment_id])


@pytest.mark.filterwarnings("ignore:.*filesystem.*:FutureWarning")
def test_mlflow_has_the_runs_own_figures(mlflow_folder: str, tmp_path: Path) -> None:
    result = captured(tmp_path / "runs", tracker(f"mlflow:{mlflow_folder}#reading"))
    (logged,) = runs_of(mlflow_folder, "reading")
    data, run = logged.data, open_run(result.path)
    assert logged.info.status == "FINISHED" and logged.info.run_name == "run"
    assert data.params["model.name"] == "demo"
    assert data.params["fingerprint"] == run.fingerprint == data.tags["actscope.fingerprint"]
    assert data.metrics["examples"] == 3
    assert data.metrics["tokens"] == sum(len(run.tokens(i)) for i in range(3))
    rows = run.numpy("resid_post", 3).astype(np.float64)
    norm = np.linalg.norm(rows, axis=1).mean()
    assert data.metrics["blocks.3.resid_post/norm"] == pytest.approx(norm, rel=1e-6)
    assert data.metrics["blocks.3.resid_post/absmax"] == np.abs(rows).max()


@pytest.mark.filterwarnings("ignore:.*filesystem.*:FutureWarning")
def test_a_run_that_goes_on_goes_on_there(mlflow_folder: str, tmp_path: Path) -> None:
    for _ in range(2):
        captured(tmp_path / "runs", tracker(f"mlflow:{mlflow_folder}"))
    assert len(runs_of(mlflow_folder, "actscope")) == 1
    captured(tmp_path / "other", tracker(f"mlflow:{mlflow_folder}"), ["Another text."])
    assert len(runs_of(mlflow_folder, "actscope")) == 2


def test_the_command_writes_lines(tmp_path: Path) -> None:
    log = tmp_path / "runs.jsonl"
    arguments = ["capture", "--prompt", "A cat.", "--layers", "2", "--track", f"jsonl:{log}"]
    done = CliRunner().invoke(main, [*arguments, "--out", str(tmp_path / "run")])
    assert done.exit_code == 0, done.output
    started, figures, finished = map(json.loads, log.read_text().splitlines())
    with open_run(tmp_path / "run") as run:
        assert started["parameters"] == dict(
            flat({"fingerprint": run.fingerprint, "path": str(run.path),
                  "plan": run.plan.to_json(), **run.spec})
        )  # fmt: skip
        assert figures["figures"] == figures_of(run.summary())
    assert finished == {**finished, "event": "finished", "state": "complete", "run": "run"}


class _Broken:
    """A server that goes away."""

    def __init__(self, at: str) -> None:
        self.at = at
        self.calls: list[str] = []

    def _called(self, name: str) -> None:
        self.calls.append(name)
        if name == self.at:
            raise ConnectionError("the server is gone")

    def started(self, name: str, parameters: Any) -> None:
        self._called("started")

    def figures(self, values: Any, step: int = 0) -> None:
        self._called("figures")

    def finished(self, state: str) -> None:
        self._called("finished")


class _Notices:
    def __init__(self) -> None:
        self.said: list[str] = []

    def started(self, total: int, done: int) -> None: ...
    def advanced(self, examples: int, tokens: int) -> None: ...
    def notice(self, text: str) -> None:
        self.said.append(text)


@pytest.mark.parametrize("at", ["started", "figures", "finished"])
def test_a_tracker_that_fails_harms_nothing(at: str, tmp_path: Path) -> None:
    broken, notices = _Broken(at), _Notices()
    result = captured(tmp_path, broken, progress=notices)
    assert result.captured == 3 and open_run(result.path).verify().ok
    assert broken.calls[-1] == at
    assert [s for s in notices.said if "the server is gone" in s]


def test_an_interrupted_run_is_logged_as_one(tmp_path: Path) -> None:
    class Stops(_Notices):
        def advanced(self, examples: int, tokens: int) -> None:
            raise KeyboardInterrupt

    log = tmp_path / "log.jsonl"
    with pytest.raises(KeyboardInterrupt):
        captured(tmp_path / "runs", JsonlTracker(log), progress=Stops())
    assert json.loads(log.read_text().splitlines()[-1])["state"] == "interrupted"


def test_every_tracker_is_found_by_name() -> None:
    assert {"jsonl", "mlflow"} <= set(TRACKERS.names())


def test_bad_input(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    with pytest.raises(BadInputError, match="KIND:WHERE"):
        tracker("mlflow")
    with pytest.raises(UnknownNameError, match="tracker"):
        tracker("wandbb:x")
    with pytest.raises(OutputFolderError, match="cannot write"):
        tracker(f"jsonl:{tmp_path}/missing/log.jsonl")
    monkeypatch.delenv("MLFLOW_ALLOW_FILE_STORE", raising=False)
    with pytest.raises(BadInputError, match="does not take the tracking address") as caught:
        tracker(f"mlflow:{(tmp_path / 'm').as_uri()}")
    assert "MLFLOW_ALLOW_FILE_STORE" in caught.value.next_step
    done = CliRunner().invoke(main, ["capture", "--prompt", "a", "--track", "x", "--out", "y"])
    assert done.exit_code == 2 and "KIND:WHERE" in done.output
