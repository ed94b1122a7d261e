"""actscope by its public classes, with everything on that a run has: resume, checksums, fsync."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np

import actscope
from peers.plain import load_model
from peers.tasks import Texts


class Actscope:
    """Every task is one run of a ``DatasetRunner`` into the native store."""

    last_is_normed = False

    def __init__(self, model: Any) -> None:
        self.model = actscope.wrap_model(model)
        self.n_layers = self.model.n_layers

    def all_layers(self, texts: Texts, out: Path) -> None:
        self._run(texts, out, layers="all")

    def last_token_all_layers(self, texts: Texts, out: Path) -> None:
        self._run(texts, out, layers="all", strategy="last")

    def last_token_layer(self, texts: Texts, layer: int, out: Path) -> None:
        self._run(texts, out, layers=[layer], strategy="last")

    def pattern(self, texts: Texts, layer: int, heads: tuple[int, ...], out: Path) -> None:
        chosen = ",".join(map(str, heads))
        self._run(texts, out, layers=[layer], sites=f"pattern.head[{chosen}]")

    def _run(self, texts: Texts, out: Path, **what: Any) -> None:
        extractor = actscope.ActivationExtractor(self.model, **what)
        storage = actscope.ShardStorage(out)
        actscope.DatasetRunner(texts, extractor=extractor, storage=storage).run(run_id="run")


def load(folder: Path) -> Actscope:
    return Actscope(load_model(folder))


def stored(out: Path, text: int, layer: int, kind: str) -> np.ndarray:
    """What a run holds of one text: ``[length, d]``, ``[d]``, or ``[heads, length, length]``."""
    run = actscope.open_run(out / "run")
    site = next(s for s in run.sites if s.kind == kind and s.layer == layer)
    return np.asarray(run.get(site, example=text))
