"""Runs of heads, neurons and patterns: on disk what the model gives, and as large as foretold."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
import torch

from actscope import (
    ActivationExtractor,
    DatasetRunner,
    HDF5Storage,
    NPZStorage,
    ShardStorage,
    Site,
)
from actscope.capture import CaptureOptions
from actscope.core.errors import NumericRangeError
from actscope.core.protocols import GenerationParams

LENGTHS = [5, 12, 1, 9, 3, 7, 2, 11]
SITES = "q.head[3], k, pattern, pattern.1.head[0,2], z, mlp_post.neuron[0:4,17], resid_post"


def made(
    model: Any, text_of: Any, storage: Any, sites: str = SITES, **options: Any
) -> tuple[Any, Any]:
    """(dry run, result) of a run over eight texts in units of three."""
    extractor = ActivationExtractor(model, [0, 1], None, sites=sites, span="1:")
    runner = DatasetRunner(
        text_of(*LENGTHS),
        None,
        extractor,
        storage,
        options=CaptureOptions(unit_size=3, batch_tokens=20, **options),
    )
    dry = runner.dry_run(run_id="r")
    return dry, runner.run(run_id="r")


@pytest.mark.parametrize("store", [ShardStorage, NPZStorage, HDF5Storage])
def test_a_run_gives_back_what_the_model_gives(
    model: Any, text_of: Any, tmp_path: Any, store: Any
) -> None:
    dry, result = made(model, text_of, store(tmp_path))
    run = result.open()
    assert run.verify().ok
    texts = text_of(*LENGTHS)
    assert {str(s) for s in run.sites} >= {
        "blocks.0.q.head[3]", "blocks.1.pattern.head[0,2]", "blocks.0.mlp_post.neuron[0:4,17]"
    }  # fmt: skip
    for i, text in enumerate(texts):
        alone = model.capture([text], sites=run.sites, span="1:")
        for site in run.sites:
            ours, theirs = run.get(site, example=i), alone[site][0]
            assert ours.shape == theirs.shape
            assert torch.allclose(ours, theirs, atol=1e-5), (site, i)
        tokens = run.examples[i].n_tokens
        assert run.get("pattern", 0, example=i).shape == (4, tokens - 1, tokens)
        assert run.get("k", 1, example=i).shape == (tokens - 1, 2, 8)
    summary = run.summary()
    assert {str(s): n for s, n in dry.bytes_by_site.items()} == {
        key: site.bytes for key, site in summary.sites.items()
    }
    tables = sum(
        int(np.prod(entry.shape)) * {"uint8": 1, "int32": 4, "int64": 8}[entry.dtype]
        for unit in run.stored_units
        for name, entry in unit.commit.tensors.items()
        if name not in summary.sites
    )
    assert dry.table_bytes == tables


@pytest.mark.parametrize("dtype", ["float16", "bfloat16"])
def test_other_storage_dtypes(model: Any, text_of: Any, tmp_path: Any, dtype: str) -> None:
    dry, result = made(model, text_of, ShardStorage(tmp_path), storage_dtype=dtype)
    run = result.open()
    sizes = {key: site.bytes for key, site in run.summary().sites.items()}
    assert {str(s): n for s, n in dry.bytes_by_site.items()} == sizes
    pairs = sum(n * (n + 1) for n in LENGTHS)  # with BOS n + 1 tokens, of which n are kept
    assert sizes["blocks.0.pattern"] == 2 * 4 * pairs
    sums = run.get("pattern", 0, example=1).float().sum(-1)
    assert torch.allclose(sums, torch.ones_like(sums), atol=0.02)


def test_answers_are_queries_too(model: Any, text_of: Any, tmp_path: Any) -> None:
    _, result = made(
        model, text_of, ShardStorage(tmp_path), "pattern", generation=GenerationParams(4, 0.0)
    )
    run = result.open()
    for i in range(len(run)):
        tokens = run.examples[i].n_tokens
        assert run.get("pattern", 0, example=i).shape == (4, tokens - 1, tokens)


def test_a_unit_without_examples(model: Any, text_of: Any, tmp_path: Any) -> None:
    extractor = ActivationExtractor(model, sites="pattern,z.head[1]", layers=[0], span="40:")
    runner = DatasetRunner(text_of(3, 4), None, extractor, ShardStorage(tmp_path))
    run = runner.run(run_id="r").open()
    assert run.complete and len(run) == 0 and len(run.failures) == 2
    assert run.verify().ok


def test_a_value_that_does_not_fit_names_its_example(tmp_path: Any) -> None:
    from dataclasses import replace

    from actscope.testing.store_contract import sample_batch

    site = Site("pattern", 0)
    batch = sample_batch(0, 4)
    flat = np.zeros(2 * int(batch.block_offsets[-1]), np.float32)
    flat[int(batch.block_offsets[2]) * 2] = 1e6  # the first entry of the third example
    batch = replace(batch, arrays={site: flat}, heads={site: 2})
    writer = ShardStorage(tmp_path).open_run("r", {"storage_dtype": "float16"})
    with pytest.raises(NumericRangeError, match="'ex-2'"):
        writer.append("u", batch, {})
