"""One vector a layer: what steering tools exchange, and how a run becomes one."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

from actscope.core.activations import ActivationBatch, ExampleRecord
from actscope.core.errors import BadInputError
from actscope.core.sites import Site
from actscope.formats._import import refuse_other_import
from actscope.formats._job import choose_sites, refuse_partial
from actscope.stores import Run, ShardStorage

__all__ = ["Directions", "directions_of_run", "import_directions"]

Vector = npt.NDArray[np.float32]


@dataclass(frozen=True)
class Directions:
    """Vectors that are added to the residual stream, by layer.

    Attributes:
        vectors: ``[d]`` float32 by layer: what is added to the output of block L, counted from 0.
        model_type: The model family, such as ``llama``; empty where unknown.
    """

    vectors: Mapping[int, Vector]
    model_type: str = ""
    notes: Mapping[str, Any] = field(default_factory=dict[str, Any])

    def __post_init__(self) -> None:
        widths = {np.shape(vector) for vector in self.vectors.values()}
        if not self.vectors or len(widths) > 1 or len(next(iter(widths))) != 1:
            raise BadInputError(
                "directions are one vector a layer, all of one width",
                got=f"{len(self.vectors)} of shapes {sorted(map(str, widths))}",
            )
        for layer, vector in self.vectors.items():
            if layer < 0 or not np.isfinite(vector).all():
                raise BadInputError(f"the direction of layer {layer} is not finite, or no layer")


def directions_of_run(
    run: Run,
    *,
    minus: Run | None = None,
    layers: str | Sequence[int] | None = None,
) -> Directions:
    """The mean row of each layer's residual stream, or how it differs from another run's.

    Sums are taken in float64, one unit at a time. Every stored row counts as one: pool in the
    capture for means over examples.

    Args:
        run: A run with ``resid_post``.
        minus: The run whose mean is taken away, such as the one of the opposite prompts.
        layers: Which layers; None for all that were captured.

    Raises:
        BadInputError: no ``resid_post`` was captured, or no rows, or a run is not complete.
    """
    for each in (run, *([] if minus is None else [minus])):
        refuse_partial(each)
    sites = choose_sites(run, ["resid_post"], layers)
    vectors: dict[int, Vector] = {}
    for site in sites:
        mean = _mean(run, site)
        if minus is not None:
            other = _mean(minus, minus.site(site))
            if other.shape != mean.shape:
                raise BadInputError(
                    f"the two runs hold {site} in different widths",
                    got=[len(mean), len(other)],
                )
            mean = mean - other
        vectors[int(site.layer or 0)] = mean.astype(np.float32)
    model = (run.spec or {}).get("model")
    known = model.get("model_type", "") if isinstance(model, dict) else ""
    return Directions(vectors, str(known))


def _mean(run: Run, site: Site) -> npt.NDArray[np.float64]:
    total: npt.NDArray[np.float64] | None = None
    n = 0
    for unit in run.stored_units:
        rows = unit.read(str(site))
        added = rows.sum(axis=0, dtype=np.float64)
        total = added if total is None else total + added
        n += len(rows)
    if total is None or not n:
        raise BadInputError(f"{run.path} has no rows of {site}")
    return total / n


def import_directions(directions: Directions, name: str, out: Path) -> Path:
    """A native run of one example, whose pooled ``resid_post`` rows are the directions.

    Raises:
        OutputFolderError: there is another run at ``out``.
    """
    arrays = {
        Site("resid_post", layer): np.asarray(vector, np.float32)[None]
        for layer, vector in sorted(directions.vectors.items())
    }
    metadata = {"model_type": directions.model_type, **directions.notes}
    batch = ActivationBatch(
        arrays=dict(arrays),
        offsets=np.array([0, 1], np.int64),
        positions=np.zeros(0, np.int32),
        examples=(ExampleRecord(name, 0, 0, 0, metadata=metadata),),
        token_ids=np.zeros(0, np.int64),
        token_offsets=np.zeros(2, np.int64),
        phase=np.zeros(0, np.uint8),
        pooled=True,
    )
    with ShardStorage(out.parent).open_run(out.name) as writer:
        refuse_other_import(out, writer.committed(), "directions")
        writer.append("directions", batch, {})
    return out
