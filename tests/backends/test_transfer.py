"""Passes that are begun ahead into reused memory give what single passes give."""

import numpy as np
import pytest
import torch

from actscope import wrap_model
from actscope.backends.hf.transfer import Transfer
from actscope.core.activations import Batch
from actscope.core.errors import BadInputError
from actscope.core.protocols import AHEAD, Selection
from actscope.strategies import as_strategy
from actscope.testing.tiny_models import tiny_model

BATCHES = [
    Batch.from_ids([[5, 6, 7, 8, 9], [10, 11]]),
    Batch.from_ids([[12, 13, 14]]),
    Batch.from_ids([[15, 16, 17, 18, 19, 20, 21], [22, 23, 24], [25]]),
    Batch.from_ids([[26, 27]]),
]


@pytest.fixture(scope="module")
def model():
    return wrap_model(tiny_model("llama"), None)


@pytest.mark.parametrize("staged", [False, True])
@pytest.mark.parametrize("strategy", [None, "mean", "last"])
def test_begun_passes_are_run_passes(model, strategy, staged, monkeypatch):
    sites = model.expand(["resid_post", "q", "mlp_out", "pattern"] if strategy is None
                         else ["resid_post", "mlp_out"])  # fmt: skip
    selection = Selection(sites, as_strategy(strategy))
    with model.open(selection) as session:
        want = [session.run(batch) for batch in BATCHES]
        session._transfer = Transfer(model.device, staged=staged)
        waiting, got = [], []
        for batch in BATCHES:
            if len(waiting) == AHEAD:
                got.append(copied(waiting.pop(0)()))
            waiting.append(session.begin(batch))
        got += [copied(started()) for started in waiting]
        moved = session._transfer.bytes_copied
    for a, b in zip(want, got, strict=True):
        assert list(a.arrays) == list(b.keys())
        for site, array in a.arrays.items():
            np.testing.assert_array_equal(array, b[site])
    buffered = sum(
        array.nbytes for one in want for site, array in one.arrays.items()
        if site.layout != "blocks"
    )  # fmt: skip
    assert moved == (buffered if staged else 0)  # the selected bytes, each once


def copied(batch):
    return {site: array.copy() for site, array in batch.arrays.items()}


def test_memory_is_used_again():
    transfer = Transfer(torch.device("cpu"))
    sets = []
    for _ in range(AHEAD + 1):
        sets.append(transfer.next())
        transfer.to_host([])()
    assert sets[0] is sets[AHEAD] and len({id(one) for one in sets}) == AHEAD
    first = sets[0].buffer(0, (2, 10, 4), torch.float32)
    again = sets[0].buffer(0, (2, 7, 4), torch.float32)
    other = sets[0].buffer(1, (2, 7, 4), torch.float32)
    assert again.data_ptr() == first.data_ptr() != other.data_ptr()


def test_a_failed_pass_keeps_its_turn():
    transfer = Transfer(torch.device("cpu"))
    transfer.next()
    waiting = transfer.to_host([])
    failed = transfer.next()
    assert transfer.next() is failed
    transfer.to_host([])
    with pytest.raises(BadInputError, match="under way"):
        transfer.next()
    waiting()
    assert transfer.next() is not failed


def test_a_closed_session_begins_nothing(model):
    with model.open(Selection(model.expand("resid_post"), as_strategy(None))) as session:
        pass
    with pytest.raises(BadInputError, match="closed"):
        session.begin(BATCHES[0])
