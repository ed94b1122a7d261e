"""Passes of a collection that run out of memory: the same values, and little tried in vain."""

import numpy as np
import pytest
import torch

import actscope
from actscope.capture.batches import batches_of
from actscope.capture.oom import Limits, LimitsByKind
from actscope.core.errors import RunError
from actscope.core.protocols import Selection
from actscope.strategies import as_strategy
from actscope.studies.introspection.collect import forward_passes
from actscope.studies.introspection.job import resolve
from actscope.studies.introspection.params import CollectParams

N = 12


@pytest.fixture(scope="module")
def model():
    return actscope.load_model("demo")


def passes(model, job, limits, share):
    rows = [one.row for one in job.of_unit(0, N)]
    batches = batches_of(rows, job.plan, job.groups(len(rows)) if share else None)
    halved = []
    selection = Selection(model.expand("resid_post", [1, 5]), as_strategy(None))
    with model.open(selection) as session:
        told = lambda prompts, tokens: None  # noqa: E731
        batch = forward_passes(session, rows, batches, told, halved, None, limits)
    return batch, halved


@pytest.mark.parametrize("way", ["auto", "off"])
def test_values_stay_and_the_next_unit_is_cut_beforehand(model, tmp_path, way):
    params = CollectParams(
        tmp_path, num_questions=N, share_prefix=way, batch_tokens=300, unit_size=N
    )
    job = resolve(model, params)
    want, halved = passes(model, job, LimitsByKind(Limits), way == "auto")
    assert not halved
    failed = []

    def hook(module, args):
        if args[0].shape[0] > 1:
            failed.append(args[0].shape)
            raise torch.OutOfMemoryError("CUDA out of memory")

    limits = LimitsByKind(Limits)
    deep = model.expand("resid_post", [5])[0]
    handle = model.hf.get_submodule(model.taps(Selection((deep,), as_strategy(None)))[deep].path)
    handle = handle.register_forward_pre_hook(hook)
    try:
        got, halved = passes(model, job, limits, way == "auto")
        first = len(failed)
        passes(model, job, limits, way == "auto")
    finally:
        handle.remove()
    assert halved and first
    assert len(failed) - first < first
    for site in want.sites:
        assert np.isfinite(want.arrays[site]).all()
        scale = np.abs(want.arrays[site]).max(axis=1, keepdims=True)
        assert (np.abs(got.arrays[site] - want.arrays[site]) / scale).max() < 1e-3


def test_a_prompt_that_fits_nowhere_is_named(model, tmp_path):
    job = resolve(model, CollectParams(tmp_path, num_questions=N, share_prefix="off"))

    def hook(module, args, kwargs):
        raise torch.OutOfMemoryError("CUDA out of memory")

    handle = model.hf.register_forward_pre_hook(hook, with_kwargs=True)
    try:
        with pytest.raises(RunError, match="does not fit memory even alone"):
            passes(model, job, None, False)
    finally:
        handle.remove()
