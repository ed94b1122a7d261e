"""A small run on disk, without a model: twelve examples in three units, some with answers."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np

from actscope.core.activations import ActivationBatch, ExampleRecord
from actscope.core.sites import Site
from actscope.core.text import PROMPT, RESPONSE, THINK
from actscope.stores import Run, ShardStorage, open_run

SITE = Site("resid_post", 1)
PHASES = [PROMPT, PROMPT, PROMPT, THINK, RESPONSE, RESPONSE]


def record(index: int, **metadata: Any) -> ExampleRecord:
    length = 3 + index % 4
    return ExampleRecord(
        f"e{index}", index, length, min(length, 3), f"text {index}", None, metadata
    )


def batch_of(records: list[ExampleRecord], seed: int, *, pooled: bool = False) -> ActivationBatch:
    lengths = [r.n_tokens for r in records]
    counts = [1] * len(records) if pooled else lengths
    offsets = np.concatenate([[0], np.cumsum(counts)]).astype(np.int64)
    token_offsets = np.concatenate([[0], np.cumsum(lengths)]).astype(np.int64)
    rng = np.random.default_rng([seed, records[0].index])
    phase = np.concatenate([np.array(PHASES[:n], np.uint8) for n in lengths])
    places = [np.arange(n, dtype=np.int32) for n in lengths]
    return ActivationBatch(
        arrays={SITE: rng.standard_normal((int(offsets[-1]), 4)).astype(np.float32)},
        offsets=offsets,
        positions=np.zeros(0, np.int32) if pooled else np.concatenate(places),
        examples=tuple(records),
        token_ids=np.arange(int(token_offsets[-1]), dtype=np.int64),
        token_offsets=token_offsets,
        phase=phase,
        pooled=pooled,
    )


def run_of(folder: Path, seed: int = 0, *, pooled: bool = False) -> Run:
    writer = ShardStorage(folder).open_run("run", None, None)
    kinds = ["refusal", "plain", "refusal", "odd"]
    for unit in range(3):
        records = [
            record(i, category=kinds[i % 4], score=i / 10, deep={"a b": i}, tags=["x"] * (i % 2))
            for i in range(4 * unit, 4 * unit + 4)
        ]
        writer.append(f"u{unit}", batch_of(records, seed, pooled=pooled), {})
    writer.close()
    return open_run(folder / "run")
