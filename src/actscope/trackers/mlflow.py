"""MLflow: a run there for each run here."""

from __future__ import annotations

import math
from collections.abc import Mapping
from typing import Any

from actscope.core.errors import BadInputError, RunError

__all__ = ["TRACKER", "MlflowTracker"]

_LONGEST_VALUE = 6000
_STATES = {"complete": "FINISHED", "interrupted": "KILLED"}


class MlflowTracker:
    """Logs to a tracking server or folder.

    A run here that goes on is found again there by its fingerprint and goes on too.

    Args:
        address: The tracking URI, then perhaps ``#`` and the experiment's name (``actscope``).

    Raises:
        BadInputError: mlflow is not installed, or the address cannot be used.
    """

    def __init__(self, address: str) -> None:
        try:
            from mlflow.exceptions import MlflowException
            from mlflow.tracking import MlflowClient
        except ImportError as error:
            raise BadInputError(
                "logging to MLflow needs mlflow", next_step="pip install 'actscope[mlflow]'"
            ) from error
        uri, _, experiment = address.partition("#")
        self._refused = MlflowException
        self._run = ""
        try:
            self._client: Any = MlflowClient(tracking_uri=uri)
            self._experiment = self._find_experiment(experiment or "actscope")
        except MlflowException as error:
            raise BadInputError(
                f"MLflow does not take the tracking address {uri}",
                got=str(error).splitlines()[0],
                next_step="give a server (mlflow:http://host:5000) or, with "
                "MLFLOW_ALLOW_FILE_STORE=true, a folder (mlflow:file:///data/mlruns)",
            ) from error

    def started(self, name: str, parameters: Mapping[str, str]) -> None:
        """The run there: made, or found by its name and fingerprint."""
        fingerprint = parameters.get("fingerprint", "")
        wanted = f"tags.`actscope.name` = '{_quoted(name)}'"
        wanted += f" and tags.`actscope.fingerprint` = '{_quoted(fingerprint)}'"
        before = self._call("search_runs", [self._experiment], wanted, max_results=1)
        if before:
            self._run = before[0].info.run_id
            self._call("update_run", self._run, status="RUNNING")
            return
        tags = {"actscope.name": name, "actscope.fingerprint": fingerprint}
        self._run = self._call("create_run", self._experiment, run_name=name, tags=tags).info.run_id
        for key, value in parameters.items():
            self._call("log_param", self._run, _key(key), value[:_LONGEST_VALUE])

    def figures(self, values: Mapping[str, float], step: int = 0) -> None:
        """Metrics there; values that are no numbers are left out."""
        for key, value in values.items():
            if not math.isnan(value):
                self._call("log_metric", self._run, _key(key), float(value), step=step)

    def finished(self, state: str) -> None:
        """The run's status there."""
        self._call("set_terminated", self._run, _STATES.get(state, "FAILED"))

    def _find_experiment(self, name: str) -> str:
        found = self._client.get_experiment_by_name(name)
        return found.experiment_id if found else self._client.create_experiment(name)

    def _call(self, method: str, *args: Any, **kwargs: Any) -> Any:
        try:
            return getattr(self._client, method)(*args, **kwargs)
        except self._refused as error:
            raise RunError(f"MLflow refused {method}", got=str(error).splitlines()[0]) from error


def _quoted(text: str) -> str:
    return text.replace("'", "\\'")


def _key(name: str) -> str:
    """MLflow keys know letters, digits, ``_ - . / :`` and blanks."""
    return "".join(c if c.isascii() and (c.isalnum() or c in "_-./: ") else "_" for c in name)


TRACKER = MlflowTracker
