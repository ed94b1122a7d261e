"""Whole runs against plain passes: shared beginnings in tight memory, and a writer that lags."""

import time

import numpy as np
import pytest
from tight_memory import tight

from actscope import ActivationExtractor, DatasetRunner, ShardStorage
from actscope.capture import CaptureOptions, units
from actscope.capture.assembly import UnitMemory

LAYERS = range(3)


def prompts(seed=0):
    """Six beginnings with three ends each, among texts that begin like no other; as token ids."""
    rng = np.random.default_rng(seed)
    found = []
    for length in (40, 33, 24, 40, 28, 36):
        head = rng.integers(6, 90, length).tolist()
        found += [head + rng.integers(6, 90, n).tolist() for n in (4, 9, 6)]
        found.append(rng.integers(6, 90, 3 * length // 4).tolist())
    return found


def alone(model, texts, strategy):
    """Every text in a plain pass of its own."""
    extractor = ActivationExtractor(model, "all", strategy)
    parts = [extractor.extract([ids]) for ids in texts]
    return [np.concatenate([one.array("resid_post", layer) for one in parts]) for layer in LAYERS]


def moved(run, want):
    worst = 0.0
    for layer in LAYERS:
        got = run.numpy("resid_post", layer)
        assert got.shape == want[layer].shape
        scale = np.abs(want[layer]).max(axis=1, keepdims=True)
        worst = max(worst, float((np.abs(got - want[layer]) / scale).max()))
    return worst


@pytest.mark.parametrize("strategy", [None, "last", "mean", "max"])
@pytest.mark.parametrize("most", [1, 2, 10_000])
def test_shared_beginnings_pooled_and_halved(model, tmp_path, strategy, most):
    texts = prompts()
    want = alone(model, texts, strategy)
    extractor = ActivationExtractor(model, "all", strategy)
    assert not model.prefix_refusal(extractor.selection)  # the check has memory enough
    options = CaptureOptions(share_prefix="auto", unit_size=9, batch_tokens=160)
    runner = DatasetRunner(texts, None, extractor, ShardStorage(tmp_path), options=options)
    with tight(model, lambda rows, columns: rows > most) as seen:
        result = runner.run()
    failed = [rows for rows, _, wrong in seen if wrong]
    assert bool(failed) == (most < 10)
    assert any(columns < 10 for _, columns, wrong in seen if not wrong)  # ends by themselves
    run = result.open()
    assert run.plan.share_prefix and not run.failures and len(run) == len(texts)
    assert moved(run, want) < 1e-3


class Lagging:
    """A storage whose writer takes its time before it looks at what it was given."""

    def __init__(self, storage, seconds):
        self.storage, self.seconds = storage, seconds

    def __getattr__(self, name):
        return getattr(self.storage, name)

    def open_run(self, *given):
        return LaggingWriter(self.storage.open_run(*given), self.seconds)


class LaggingWriter:
    def __init__(self, writer, seconds):
        self.writer, self.seconds, self.turn = writer, seconds, 0

    def __getattr__(self, name):
        return getattr(self.writer, name)

    def append(self, *given):
        time.sleep(self.seconds[self.turn % len(self.seconds)])
        self.turn += 1
        self.writer.append(*given)


@pytest.mark.parametrize("strategy", [None, "mean"])
@pytest.mark.parametrize("queue_bytes", [1, 30_000, 1 << 30])
@pytest.mark.parametrize("seconds", [[0.03], [0.05, 0, 0, 0.02]], ids=["slow", "uneven"])
def test_memory_is_used_again_only_when_it_was_written(
    model, tmp_path, monkeypatch, strategy, queue_bytes, seconds
):
    made = []

    class Counted(UnitMemory):
        def __init__(self):
            super().__init__()
            made.append(self)

    monkeypatch.setattr(units, "UnitMemory", Counted)
    texts = prompts(1)
    extractor = ActivationExtractor(model, "all", strategy)
    options = CaptureOptions(unit_size=2, batch_tokens=100, queue_bytes=queue_bytes)
    storage = Lagging(ShardStorage(tmp_path), seconds)
    run = DatasetRunner(texts, None, extractor, storage, options=options).run().open()
    assert len(run) == len(texts) == 24
    if queue_bytes == 1:
        assert 1 <= len(made) <= 3  # of twelve units: one is filled while one is written
    assert moved(run, alone(model, texts, strategy)) < 1e-5
