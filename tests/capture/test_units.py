"""What happens inside a unit: order, policies for odd prompts, answers, out of memory."""

import numpy as np
import pytest
import torch

from actscope import ActivationExtractor, DatasetRunner, ShardStorage
from actscope.capture import CaptureOptions
from actscope.capture.dataset import as_dataset
from actscope.capture.prepare import prepare, truncated
from actscope.capture.progress import Silent
from actscope.capture.units import UnitWorker
from actscope.core.activations import TokenRow
from actscope.core.errors import BadInputError, ExampleError
from actscope.core.protocols import GenerationParams
from actscope.core.spec import UnitPlan
from actscope.core.text import Example

LENGTHS = [5, 12, 1, 9, 3, 12, 7, 2, 20, 4, 6, 11]


def capture(model, dataset, *, options=None, strategy=None, span="all", **plan):
    source = as_dataset(dataset)
    extractor = ActivationExtractor(model, "all", strategy, span=span)
    limits = plan or {"batch_tokens": 64}
    worker = UnitWorker(
        extractor,
        source,
        options or CaptureOptions(),
        UnitPlan(0, len(source), max(len(source), 1), **limits),
        Silent(),
    )
    return worker.capture(0, len(source))


@pytest.mark.parametrize(
    "plan", [{"batch_size": 1}, {"batch_size": 5}, {"batch_tokens": 24}, {"batch_tokens": 10_000}]
)
def test_a_unit_is_in_dataset_order_whatever_its_batches(model, text_of, plan):
    texts = text_of(*LENGTHS)
    batch = capture(model, texts, **plan).batch
    assert [record.id for record in batch.examples] == [str(i) for i in range(len(texts))]
    assert [record.index for record in batch.examples] == list(range(len(texts)))
    assert [record.text for record in batch.examples] == texts
    for i, text in enumerate(texts):
        alone = ActivationExtractor(model, "all").extract([text])
        assert batch.tokens(i).tolist() == alone.tokens(0).tolist()
        assert batch.positions[batch.offsets[i] : batch.offsets[i + 1]].tolist() == list(
            range(LENGTHS[i] + 1)
        )
        for layer in range(3):
            torch.testing.assert_close(batch["resid_post", layer][i], alone["resid_post", layer][0])


def test_pooled_units_too(model, text_of):
    texts = text_of(*LENGTHS)
    batch = capture(model, texts, strategy="mean", batch_tokens=30).batch
    alone = [ActivationExtractor(model, "all", "mean").extract([t]) for t in texts]
    want = torch.cat([part["resid_post", 1] for part in alone])
    torch.testing.assert_close(batch["resid_post", 1], want)


def test_batches_keep_to_their_budget(model, text_of, monkeypatch):
    seen = []
    inner = ActivationExtractor.begin

    def watch(self, batch):
        seen.append((len(batch.rows), max(len(row) for row in batch.rows)))
        return inner(self, batch)

    monkeypatch.setattr(ActivationExtractor, "begin", watch)
    capture(model, text_of(*LENGTHS), batch_tokens=40)
    assert all(rows * longest <= 40 or rows == 1 for rows, longest in seen)
    assert sum(rows for rows, _ in seen) == len(LENGTHS)
    assert seen[0][1] == 21  # the longest first, so that memory peaks at once
    seen.clear()
    capture(model, text_of(*LENGTHS), batch_size=5)
    assert [rows for rows, _ in seen] == [5, 5, 2]


def test_failures_are_on_record_and_the_rest_goes_on(model_without_bos, text_of):
    dataset = [
        {"id": "fine", "text": "w1 w2 w3"},
        {"id": "empty", "text": ""},
        {"id": "foreign", "token_ids": [3, 5000]},
        {"id": "short", "text": "w1"},
        {"id": "last", "text": "w4 w5"},
    ]
    unit = capture(model_without_bos, dataset, span="1:")
    assert [record.id for record in unit.batch.examples] == ["fine", "last"]
    assert [(f.id, f.index, f.kind) for f in unit.batch.failures] == [
        ("empty", 1, "no_tokens"),
        ("foreign", 2, "bad_token"),
        ("short", 3, "empty_span"),
    ]


def test_a_unit_of_nothing_but_failures_is_a_unit(model_without_bos, tmp_path):
    extractor = ActivationExtractor(model_without_bos, "all")
    result = DatasetRunner(["", " "], None, extractor, ShardStorage(tmp_path)).run()
    assert result.failures == {"no_tokens": 2}
    run = result.open()
    assert (len(run), len(run.failures), run.complete) == (0, 2, True)
    assert run.verify().ok
    assert run.stack("resid_post", 0).shape == (0, 32)


def test_too_long_stops_before_anything_is_written(model, text_of, tmp_path):
    extractor = ActivationExtractor(model)
    options = CaptureOptions(max_length=10)
    runner = DatasetRunner(
        text_of(3, 30, 4), None, extractor, ShardStorage(tmp_path), options=options
    )
    with pytest.raises(ExampleError, match="'1' has 31 tokens; the limit is 10"):
        runner.run(run_id="r")
    assert not (tmp_path / "r").exists()


@pytest.mark.parametrize(("policy", "expected"), [
    ("skip", None),
    ("truncate-left", [1, *range(9, 14)]),
    ("truncate-right", [1, *range(6, 11)]),
])  # fmt: skip
def test_policies_for_long_prompts(model, policy, expected):
    options = CaptureOptions(max_length=6, on_too_long=policy)
    text = " ".join(f"w{i}" for i in range(8))
    batch = capture(model, ["w1", text], options=options).batch
    if expected is None:
        assert [(f.index, f.kind) for f in batch.failures] == [(1, "too_long")]
        return
    assert batch.tokens(1).tolist() == expected
    side = policy.removeprefix("truncate-")
    assert batch.examples[1].note == f"truncated 3 tokens on the {side}"
    assert batch.examples[0].note == ""
    alone = ActivationExtractor(model, "all").extract([expected])
    torch.testing.assert_close(batch["resid_post", 2][1], alone["resid_post", 2][0])


def test_truncation_keeps_the_special_ends_and_exactly_the_limit():
    for length in range(2, 12):
        for head in range(3):
            for tail in range(3):
                special = np.zeros(length, bool)
                special[:head] = True
                special[length - tail :] = True
                row = TokenRow("x", np.arange(length), np.zeros(length, np.uint8), special)
                for limit in range(1, length):
                    for side in ("left", "right"):
                        ids = truncated(row, limit, side).token_ids.tolist()
                        assert len(ids) == limit
                        assert ids == sorted(ids)
                        if head + tail < limit and not special.all():
                            assert ids[:head] == list(range(head))
                            assert ids[limit - tail :] == list(range(length - tail, length))


def test_new_tokens_that_leave_no_prompt_are_refused(model, text_of, tmp_path):
    for dataset in (text_of(3), []):
        for n in (64, 100):
            options = CaptureOptions(generation=GenerationParams(n), on_too_long="truncate-left")
            runner = DatasetRunner(
                dataset, None, ActivationExtractor(model), ShardStorage(tmp_path), options=options
            )
            with pytest.raises(
                BadInputError, match=f"{n} new tokens leave no room in a context of 64"
            ):
                runner.run()
    assert not any(tmp_path.iterdir())
    options = CaptureOptions(generation=GenerationParams(63), on_too_long="truncate-left")
    assert len(prepare(model, options, Example("x", token_ids=(5,) * 9), 0).row) == 1


@pytest.mark.parametrize(
    ("max_length", "says"),
    [
        (None, "the limit is 24: 40 new tokens take the rest of a context of 64"),
        (50, "the limit is 24: 40 new tokens take the rest of a context of 64"),
        (20, "the limit is 20"),
    ],
)
def test_the_message_names_what_lowered_the_limit(model, max_length, says):
    options = CaptureOptions(generation=GenerationParams(40), max_length=max_length)
    with pytest.raises(ExampleError) as caught:
        prepare(model, options, Example("x", token_ids=(5,) * 60), 0)
    assert caught.value.what == f"example 'x' has 60 tokens; {says}"


def test_the_answer_counts_towards_the_context(model):
    options = CaptureOptions(generation=GenerationParams(40), on_too_long="truncate-left")
    item = prepare(model, options, Example("x", token_ids=(5,) * 60), 0)
    assert len(item.row) == 24


@pytest.mark.parametrize("temperature", [0.0, 1.0])
def test_answers_do_not_depend_on_batches(model, text_of, temperature):
    texts = text_of(*LENGTHS)
    options = CaptureOptions(generation=GenerationParams(5, temperature, seed=7))
    units = [
        capture(model, texts, options=options, **plan)
        for plan in ({"batch_size": 1}, {"batch_size": 4}, {"batch_tokens": 100})
    ]
    for i in range(len(texts)):
        rows = [unit.batch.tokens(i).tolist() for unit in units]
        assert rows[0] == rows[1] == rows[2]
        assert rows[0][: LENGTHS[i] + 1] == model.encode(Example("x", texts[i])).token_ids.tolist()
    batch = units[1].batch
    for i, record in enumerate(batch.examples):
        assert record.n_prompt_tokens == LENGTHS[i] + 1
        assert record.response is not None
        replay = ActivationExtractor(model, "all").extract([batch.tokens(i).tolist()])
        torch.testing.assert_close(batch["resid_post", 2][i], replay["resid_post", 2][0])


def test_the_span_may_be_the_answer(model):
    options = CaptureOptions(generation=GenerationParams(4, 0.0))
    batch = capture(model, ["w1 w2", "w3"], options=options, span="response").batch
    for i, record in enumerate(batch.examples):
        kept = batch.positions[batch.offsets[i] : batch.offsets[i + 1]].tolist()
        assert kept == list(range(record.n_prompt_tokens, record.n_tokens))


def test_out_of_memory_halves_the_batch_and_is_on_record(model, text_of, monkeypatch):
    """No small machine runs out of memory on cue: the pass says so beyond three rows."""
    inner = ActivationExtractor.begin

    def tight(self, batch):
        if len(batch.rows) > 3 or any(len(row) == 21 for row in batch.rows):
            raise torch.OutOfMemoryError("CUDA out of memory")
        return inner(self, batch)

    texts = text_of(*LENGTHS)
    want = capture(model, texts).batch
    monkeypatch.setattr(ActivationExtractor, "begin", tight)
    unit = capture(model, texts, batch_size=8)
    assert [(f.index, f.kind) for f in unit.batch.failures] == [(8, "out_of_memory")]
    assert [r.index for r in unit.batch.examples] == [i for i in range(12) if i != 8]
    assert unit.metadata["halved_batches"][0] == 8
    torch.testing.assert_close(unit.batch["resid_post", 1][8], want["resid_post", 1][9])


def test_a_failed_pass_does_not_hide(model, text_of, monkeypatch):
    def broken(self, batch):
        raise RuntimeError("shapes differ")

    extractor_class = ActivationExtractor
    monkeypatch.setattr(extractor_class, "begin", broken)
    with pytest.raises(RuntimeError, match="shapes differ"):
        capture(model, text_of(3))


def test_texts_on_record_are_what_was_tokenised(model):
    options = CaptureOptions(chat=True)
    batch = capture(model, ["w1 w2"], options=options).batch
    assert str(batch.examples[0].text).split() == ["<s>", "<user>", "w1", "w2", "<assistant>"]
    assert batch.tokens(0).tolist().count(1) == 1
    batch = capture(model, [[1, 7, 8]]).batch
    assert batch.examples[0].text == "<s> w1 w2"
