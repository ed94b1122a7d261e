"""Passes that run out of memory half way leave every other batch as it was."""

import numpy as np
import pytest
import torch
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from actscope import ActivationExtractor, wrap_model
from actscope.capture import CaptureOptions
from actscope.capture.dataset import as_dataset
from actscope.capture.progress import Silent
from actscope.capture.units import UnitWorker
from actscope.core.activations import Batch
from actscope.core.errors import BadInputError
from actscope.core.protocols import AHEAD
from actscope.core.spec import UnitPlan
from actscope.testing.tiny_models import tiny_model

LENGTHS = (9, 3, 7, 5, 12, 4, 8, 6, 11, 10, 2, 13)
TEXTS = [[5 + 3 * i + t for t in range(n)] for i, n in enumerate(LENGTHS)]


@pytest.fixture(scope="module")
def model():
    return wrap_model(tiny_model("llama"), None)


def failing_passes(model, failing, most):
    """Run out of memory before block 1, when block 0 has left its rows.

    Passes of more than ``most`` texts never fit; of several texts, the ``failing`` ones do not.
    """
    passes = 0

    def hook(module, args):
        nonlocal passes
        passes += 1
        rows = args[0].shape[0]
        if rows > most or (rows > 1 and passes in failing):
            raise torch.OutOfMemoryError("CUDA out of memory")

    return model.hf.model.layers[1].register_forward_pre_hook(hook)


@settings(
    deadline=None, max_examples=40, suppress_health_check=[HealthCheck.function_scoped_fixture]
)
@given(
    failing=st.sets(st.integers(1, 30), max_size=12),
    most=st.integers(1, 8),
    size=st.integers(1, 6),
    strategy=st.sampled_from([None, "mean", "last"]),
)
def test_every_row_is_that_of_its_text(model, failing, most, size, strategy):
    extractor = ActivationExtractor(model, "all", strategy)
    plan = UnitPlan(0, len(TEXTS), len(TEXTS), batch_size=size)
    worker = UnitWorker(extractor, as_dataset(TEXTS), CaptureOptions(), plan, Silent())
    handle = failing_passes(model, failing, most)
    try:
        found = worker.capture(0, len(TEXTS)).batch
    finally:
        handle.remove()
    assert not found.failures
    for place, text in enumerate(TEXTS):
        alone = extractor.extract([text])
        for layer in range(model.n_layers):
            got, want = found["resid_post", layer], alone["resid_post", layer]
            np.testing.assert_allclose(got[place], want[0], rtol=1e-4, atol=1e-5)


def test_more_passes_than_there_is_memory_for_are_refused(model):
    extractor = ActivationExtractor(model, [0])
    with extractor.opened():
        begun = [extractor.begin(Batch.from_ids([TEXTS[i]])) for i in range(AHEAD)]
        with pytest.raises(BadInputError, match="under way"):
            extractor.begin(Batch.from_ids([TEXTS[AHEAD]]))
        rows = [started()["resid_post", 0][0].clone() for started in begun]
        again = extractor.begin(Batch.from_ids([TEXTS[AHEAD]]))()
    for text, got in zip(TEXTS, [*rows, again["resid_post", 0][0]], strict=False):
        np.testing.assert_allclose(got, extractor.extract([text])["resid_post", 0][0], atol=1e-5)
