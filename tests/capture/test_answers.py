"""Runs with answers: live or replayed, on record, and never mixed."""

import json

import numpy as np
import pytest
import torch

from actscope import ActivationExtractor, DatasetRunner, ShardStorage, wrap_model
from actscope.capture import CaptureOptions
from actscope.core.errors import BadInputError, RunMismatchError
from actscope.core.protocols import GenerationParams
from actscope.core.text import RESPONSE
from actscope.testing.tiny_models import tiny_model


def answered(model, dataset, tmp_path, name="r", *, span="all", strategy=None, **params):
    options = CaptureOptions(generation=GenerationParams(5, 0.9, seed=3, **params), unit_size=4)
    extractor = ActivationExtractor(model, "all", strategy, span=span)
    runner = DatasetRunner(dataset, 3, extractor, ShardStorage(tmp_path), options=options)
    return runner.run(run_id=name)


@pytest.mark.parametrize(
    ("span", "strategy"), [("all", None), ("response", "mean"), ("last:7", None)]
)
def test_live_runs_hold_what_replayed_runs_hold(model, text_of, tmp_path, span, strategy):
    texts = text_of(5, 12, 1, 9, 3, 12, 7)
    runs = [
        answered(model, texts, tmp_path, how, capture=how, span=span, strategy=strategy).open()
        for how in ("live", "replay")
    ]
    live, replay = runs
    assert [r.to_json() for r in live.examples] == [r.to_json() for r in replay.examples]
    assert live.verify().ok
    for i in range(len(texts)):
        assert live.tokens(i).tolist() == replay.tokens(i).tolist()
        assert live.phase(i).tolist() == replay.phase(i).tolist()
        assert live.phase(i).tolist()[-1] == RESPONSE
        for layer in range(3):
            a, b = (run.get("resid_post", layer, example=i) for run in runs)
            torch.testing.assert_close(a, b, rtol=1e-4, atol=1e-5)


def test_progress_counts_what_was_captured_live(model, text_of, tmp_path):
    told = []

    class Watch:
        def started(self, total, done):
            told.append(("started", total, done))

        def advanced(self, examples, tokens):
            told.append((examples, tokens))

        def notice(self, text):
            told.append(text)

    options = CaptureOptions(generation=GenerationParams(5, 0.0, capture="live"))
    extractor = ActivationExtractor(model, "all", span="9:")
    runner = DatasetRunner(
        text_of(5, 12, 1), 2, extractor, ShardStorage(tmp_path), options=options, progress=Watch()
    )
    result = runner.run()
    assert (result.captured, result.failures) == (2, {"empty_span": 1})
    assert told[0] == ("started", 3, 0)
    steps = [step for step in told[1:] if isinstance(step, tuple)]
    assert sum(n for n, _ in steps) == 3
    assert sum(tokens for _, tokens in steps) == result.tokens == 6 + 13 + 2 * 5


def test_the_way_is_part_of_the_spec_and_auto_is_what_it_came_to(model, text_of, tmp_path):
    texts = text_of(4, 2)
    answered(model, texts, tmp_path)
    record = json.loads((tmp_path / "r" / "run.json").read_text())
    assert record["spec"]["generation"]["capture"] == "live"
    assert answered(model, texts, tmp_path, capture="live").resumed == 2
    assert answered(model, texts, tmp_path, capture="auto").resumed == 2
    with pytest.raises(RunMismatchError, match=r"generation\.capture: stored 'live'.*'replay'"):
        answered(model, texts, tmp_path, capture="replay")


def test_a_model_that_cannot_be_live_is_replayed_and_says_why(tokenizer, text_of, tmp_path):
    rope = {"rope_type": "dynamic", "rope_theta": 10000.0, "factor": 2.0}
    model = wrap_model(tiny_model("llama", rope_parameters=rope), tokenizer)
    result = answered(model, text_of(4, 2), tmp_path)
    assert any("pass of their own" in n and "rotary" in n for n in result.notices)
    record = json.loads((tmp_path / "r" / "run.json").read_text())
    assert record["spec"]["generation"]["capture"] == "replay"
    commits = [json.loads(p.read_text()) for p in (tmp_path / "r" / "commits").iterdir()]
    assert ["rotary" in c["metadata"]["answers"]["reason"] for c in commits] == [True]
    with pytest.raises(BadInputError, match="cannot be captured live"):
        answered(model, text_of(4, 2), tmp_path, "other", capture="live")
    assert not (tmp_path / "other").exists()


def test_out_of_memory_halves_a_live_batch(model, text_of, tmp_path, monkeypatch):
    inner = type(model).generate_live

    def tight(self, rows, params, selection):
        if len(rows) > 1 or len(rows[0]) == 13:
            raise torch.OutOfMemoryError("CUDA out of memory")
        return inner(self, rows, params, selection)

    texts = text_of(5, 12, 1, 9)
    want = answered(model, texts, tmp_path, "want", capture="live").open()
    monkeypatch.setattr(type(model), "generate_live", tight)
    result = answered(model, texts, tmp_path, "tight", capture="live")
    assert (result.captured, result.failures) == (3, {"out_of_memory": 1})
    run = result.open()
    assert [r.id for r in run.examples] == ["0", "2", "3"]
    for i, j in enumerate([0, 2, 3]):
        assert run.tokens(i).tolist() == want.tokens(j).tolist()
        a, b = run.get("resid_post", 2, example=i), want.get("resid_post", 2, example=j)
        np.testing.assert_allclose(a, b, rtol=1e-4, atol=1e-5)
