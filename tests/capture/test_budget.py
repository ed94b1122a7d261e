"""The token budget is looked for where that pays, kept by the run, and forced by a number."""

import json
import sys
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pytest

from actscope import ActivationExtractor, DatasetRunner, ShardStorage
from actscope.capture import CaptureOptions, budget, job
from actscope.capture.budget import (
    CPU_MOST,
    MOST_ROUNDS,
    SMALLEST,
    climb,
    unit_tokens,
    usual_budget,
)
from actscope.core.batching import length_sorted_batches, padding_of
from actscope.core.errors import BadInputError
from actscope.core.protocols import GenerationParams

LENGTHS = [5, 12, 1, 9, 3, 12, 7, 2, 20, 4, 6, 11]
USUAL_HERE = CPU_MOST  # of a model as narrow as these


def probe(best):
    """A machine whose passes are fastest at one budget, and how many tokens it was asked for."""
    asked = []

    def timed(tokens):
        asked.append(tokens)
        return 1 + abs(tokens.bit_length() - best.bit_length())

    return timed, asked


@pytest.mark.parametrize("best", [128, 256, 512, 1024, 4096, 131_072])
def test_the_fastest_budget_is_found(best):
    timed, asked = probe(best)
    assert climb(512, timed, allowed=10**9, shortest=1) == best
    assert len(asked) <= 1 + MOST_ROUNDS * 10


def test_the_probe_stays_within_its_share():
    for allowed in (0, 1_000, 4_000, 10_000, 50_000):
        timed, asked = probe(65_536)
        climb(512, timed, allowed=allowed, shortest=1)
        assert sum(asked) <= allowed
        assert bool(asked) == (allowed >= 512 + 2 * (512 + 1024))


def test_a_little_faster_is_not_better():
    assert climb(512, lambda tokens: 1 - tokens / 1e7, allowed=10**9, shortest=1) == 512


def test_one_slow_pass_is_not_a_slow_budget():
    """Half of all passes are disturbed and take half as long again."""
    rng = np.random.default_rng(0)

    def timed(tokens):
        return (1.0 if tokens == 1024 else 1.2) * rng.choice([1.0, 1.5])

    found = [climb(1024, timed, allowed=10**6, shortest=1) for _ in range(50)]
    assert found.count(1024) >= 45


@pytest.mark.parametrize(
    ("device", "d_model", "tokens"),
    [("cpu", 64, 1024), ("cpu", 256, 1024), ("cpu", 512, 512), ("cpu", 768, 512),
     ("cpu", 4096, 256), ("cuda:0", 4096, 8192)],
)  # fmt: skip
def test_a_wider_model_begins_with_fewer_tokens(device, d_model, tokens):
    model = SimpleNamespace(device=device, d_model=d_model)
    assert usual_budget(model, CaptureOptions()) == tokens
    answers = CaptureOptions(generation=GenerationParams(5))
    assert usual_budget(model, answers) == (8192 if device == "cpu" else 32_768)


@pytest.mark.parametrize(
    ("device", "d_model", "n_layers", "tokens"),
    [("cpu", 256, 8, 65_536), ("cpu", 768, 12, 58_868), ("cpu", 4096, 32, 4096),
     ("cuda:0", 4096, 32, 65_536), ("cuda:0", 8192, 80, 7761)],
)  # fmt: skip
def test_a_unit_of_a_larger_model_has_fewer_tokens(device, d_model, n_layers, tokens):
    model = SimpleNamespace(device=device, d_model=d_model, n_layers=n_layers)
    assert int(unit_tokens(model)) == tokens


def test_one_text_is_the_smallest_budget():
    timed, _ = probe(SMALLEST)
    assert climb(512, timed, allowed=10**9, shortest=300) == 512


def runner(model, texts, folder, **options):
    extractor = ActivationExtractor(model, "all")
    return DatasetRunner(
        texts, None, extractor, ShardStorage(folder), options=CaptureOptions(**options)
    )


def test_few_texts_are_not_worth_a_probe(model, text_of, tmp_path, monkeypatch):
    monkeypatch.setattr(budget, "climb", lambda *a, allowed, **k: pytest.fail("tried") if allowed
                        > 100 else USUAL_HERE)  # fmt: skip
    plan = runner(model, text_of(*LENGTHS), tmp_path).run(run_id="r").open().plan
    assert (plan.batch_tokens, plan.pass_tokens) == (USUAL_HERE, USUAL_HERE // 16)


def test_a_resumed_run_keeps_what_was_found(model, text_of, tmp_path, monkeypatch):
    texts = text_of(*LENGTHS)
    monkeypatch.setattr(job, "choose_budget", lambda *a: 64)
    first = runner(model, texts, tmp_path, unit_size=4).run(run_id="r")
    assert first.open().plan.batch_tokens == 64
    monkeypatch.setattr(job, "choose_budget", lambda *a: pytest.fail("looked for again"))
    again = runner(model, texts, tmp_path, unit_size=4).run(run_id="r")
    assert (again.captured, again.resumed, list(again.notices)) == (0, len(texts), [])
    forced = runner(model, texts, tmp_path, unit_size=4, batch_tokens=99).run(run_id="r")
    assert any("batch_tokens" in notice for notice in forced.notices)
    fresh = runner(model, texts, tmp_path, unit_size=4, batch_tokens=99).run(run_id="s")
    assert fresh.open().plan.batch_tokens == 99


def test_two_workers_that_find_different_budgets_agree(model, text_of, tmp_path, monkeypatch):
    """The second is held up in its probe until the first has begun the run."""
    texts = text_of(*LENGTHS)

    def other_worker_first(*arguments):
        monkeypatch.setattr(job, "choose_budget", lambda *a: 32)
        assert runner(model, texts, tmp_path, unit_size=4).run(run_id="r").captured == len(texts)
        return 64

    monkeypatch.setattr(job, "choose_budget", other_worker_first)
    late = runner(model, texts, tmp_path, unit_size=4).run(run_id="r")
    assert (late.captured, late.resumed) == (0, len(texts))
    assert late.open().plan.batch_tokens == 32


def test_a_plan_from_before_the_field_fills_its_batches(model, text_of, tmp_path):
    from actscope.core.spec import UnitPlan

    stored = UnitPlan(0, 9, 3, batch_tokens=4096).to_json()
    del stored["pass_tokens"]
    assert UnitPlan.from_json(stored).pass_tokens == 0


def test_the_dry_run_tells_the_padding(model, text_of, tmp_path):
    texts = text_of(*LENGTHS)
    dry = runner(model, texts, tmp_path, unit_size=100, batch_tokens=40).dry_run(run_id="r")
    lengths = [n + 1 for n in LENGTHS]  # each with a BOS
    batches = length_sorted_batches(lengths, batch_tokens=40, pass_tokens=2)
    assert dry.padding == padding_of(lengths, batches) / sum(lengths)
    filled = padding_of(lengths, length_sorted_batches(lengths, batch_tokens=40))
    assert 0 <= dry.padding < filled / sum(lengths)


def test_skewed_texts_waste_little(monkeypatch):
    monkeypatch.syspath_prepend(str(Path(__file__).parents[2] / "benchmarks"))
    import capture_models

    lengths = [len(text) for text in capture_models.texts()]
    assert (min(lengths), max(lengths), len(lengths)) == (20, 512, 512)
    for unit in (64, 128, 256):
        waste = 0
        for start in range(0, len(lengths), unit):
            part = lengths[start : start + unit]
            batches = length_sorted_batches(part, batch_tokens=512, pass_tokens=32)
            waste += padding_of(part, batches)
        assert waste / sum(lengths) <= 0.05, json.dumps({"unit": unit, "waste": waste})
    sys.modules.pop("capture_models")


def test_answers_are_batched_wide(model, text_of, tmp_path):
    options = {"generation": GenerationParams(4, 0.0)}
    plan = runner(model, text_of(*LENGTHS), tmp_path, **options).run(run_id="r").open().plan
    assert (plan.batch_tokens, plan.pass_tokens) == (budget.ANSWERING["cpu"], 0)


def test_another_word_than_auto_is_refused():
    with pytest.raises(BadInputError, match="auto"):
        CaptureOptions(batch_tokens="fast")
