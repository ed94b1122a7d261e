"""Units whose passes run out of memory: the values stay, and little is tried in vain."""

import numpy as np
import pytest
import torch
from tight_memory import tight

from actscope import ActivationExtractor
from actscope.capture.dataset import as_dataset
from actscope.capture.options import CaptureOptions
from actscope.capture.progress import Silent
from actscope.capture.units import UnitWorker
from actscope.core.protocols import GenerationParams
from actscope.core.spec import UnitPlan

LENGTHS = [20, 5, 12, 9, 3, 12, 7, 2, 20, 4, 6, 11, 8, 13, 5, 10, 1, 9, 2, 6, 3, 14, 8, 4]


def worker(model, texts, strategy=None, options=None, unit_size=8, **plan):
    source = as_dataset(texts)
    extractor = ActivationExtractor(model, "all", strategy)
    plan = UnitPlan(0, len(texts), unit_size, **(plan or {"batch_tokens": 64}))
    return UnitWorker(extractor, source, options or CaptureOptions(), plan, Silent())


def plain(model, texts, strategy=None):
    extractor = ActivationExtractor(model, "all", strategy)
    return [extractor.extract([text]) for text in texts]


def same(batch, alone):
    assert len(batch) == len(alone) > 0
    for site in batch.sites:
        want = np.concatenate([one.arrays[site] for one in alone])
        np.testing.assert_allclose(batch.arrays[site], want, atol=1e-5, rtol=1e-4)


@pytest.mark.parametrize("strategy", [None, "mean"])
@pytest.mark.parametrize("most", [1, 2, 3])
def test_a_failed_pass_leaves_what_was_begun_before_it_alone(model, text_of, strategy, most):
    """Batches of short rows first fit, then not: what fitted has not been taken by then."""
    texts = text_of(*LENGTHS)
    alone = plain(model, texts, strategy)
    with tight(model, lambda rows, columns: rows > most and columns < 15) as seen:
        unit = worker(model, texts, strategy, batch_size=4).capture(0, len(texts))
    assert any(failed for _, _, failed in seen)
    same(unit.batch, alone)


def test_later_batches_of_the_run_are_cut_beforehand(model, text_of):
    texts = text_of(*LENGTHS)
    alone = plain(model, texts)
    with tight(model, lambda rows, columns: rows * columns > 40) as seen:
        work = worker(model, texts, unit_size=8, batch_tokens=64)
        units = [work.capture(start, start + 8) for start in (0, 8, 16)]
    failed = [rows * columns for rows, columns, wrong in seen if wrong]
    assert 1 <= len(failed) <= 2, seen
    assert not any(wrong for _, _, wrong in seen[len(seen) // 2 :])
    assert all(rows * columns > 8 for rows, columns, _ in seen)  # cut in halves, not to crumbs
    for start, unit in zip((0, 8, 16), units, strict=True):
        same(unit.batch, alone[start : start + 8])
    assert units[0].metadata["halved_batches"]


def test_one_long_example_does_not_make_the_short_ones_go_alone(model, text_of):
    """Attention grows with the square of the length: what it needs says nothing of short rows."""
    texts = text_of(*LENGTHS)
    with tight(model, lambda rows, columns: rows * columns**2 > 21 * 21) as seen:
        unit = worker(model, texts, batch_tokens=10_000).capture(0, len(texts))
    assert len(unit.batch) == len(texts)
    assert max(rows for rows, columns, wrong in seen if not wrong and columns <= 8) > 2
    poisoned = text_of(*LENGTHS, 40)
    with tight(model, lambda rows, columns: columns > 30) as seen:
        work = worker(model, poisoned, batch_size=4)
        unit = work.capture(0, len(poisoned))
    assert [(f.index, f.kind) for f in unit.batch.failures] == [(24, "out_of_memory")]
    assert [(rows, wrong) for rows, _, wrong in seen].count((4, False)) >= 5


@pytest.mark.parametrize("batch_size", [1, 2])
def test_an_example_is_given_up_only_when_nothing_else_holds_memory(
    model, text_of, monkeypatch, batch_size
):
    """A pass beside one that has not been taken fails; alone, everything fits."""
    held, inner = [], ActivationExtractor.begin

    def begin(self, batch):
        if held:
            raise torch.OutOfMemoryError("CUDA out of memory")
        started = inner(self, batch)
        held.append(batch)

        def taken():
            held.clear()
            return started()

        return taken

    texts = text_of(*LENGTHS)
    alone = plain(model, texts)
    monkeypatch.setattr(ActivationExtractor, "begin", begin)
    unit = worker(model, texts, batch_size=batch_size).capture(0, len(texts))
    assert not unit.batch.failures
    same(unit.batch, alone)


@pytest.mark.parametrize("capture", ["live", "replay"])
def test_answers_are_cut_beforehand_too(model, text_of, capture):
    texts = text_of(*LENGTHS)
    options = CaptureOptions(generation=GenerationParams(3, 0.0, capture=capture))
    want = worker(model, texts, options=options, batch_size=8).capture(0, len(texts)).batch
    with tight(model, lambda rows, columns: rows > 3) as seen:
        work = worker(model, texts, options=options, batch_size=8)
        units = [work.capture(start, start + 8) for start in (0, 8, 16)]
    failed = [rows for rows, _, wrong in seen if wrong]
    assert failed and len(failed) <= 6  # two a kind of pass and length, not two a batch
    got = [unit.batch for unit in units]
    texts_of = [record.response for batch in got for record in batch.examples]
    assert texts_of == [record.response for record in want.examples]
    for site in want.sites:
        rows = np.concatenate([batch.arrays[site] for batch in got])
        np.testing.assert_allclose(rows, want.arrays[site], atol=1e-5, rtol=1e-4)
