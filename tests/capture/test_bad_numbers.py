"""Numbers that are none: refused by name before anything runs; whole numbers of numpy are taken."""

import json

import numpy as np
import pytest

from actscope import ActivationExtractor, DatasetRunner, ShardStorage
from actscope.capture import CaptureOptions
from actscope.capture.plan import make_plan
from actscope.core.batching import length_sorted_batches
from actscope.core.errors import BadInputError
from actscope.core.spec import UnitPlan
from actscope.studies.introspection.params import CollectParams

NO_NUMBERS = [True, False, 1.5, 2.0, "3", float("nan"), [3], np.float64(4), np.bool_(True)]
OPTIONS = {
    "batch_tokens": 1, "unit_size": 1, "max_length": 1, "queue_bytes": 1, "limit": 0, "offset": 0
}  # fmt: skip


def refused(make, name, value):
    with pytest.raises(BadInputError) as caught:
        make()
    error = caught.value
    assert error.what.startswith(name)
    assert error.got == repr(value)
    assert error.expected and error.next_step


@pytest.mark.parametrize("name", OPTIONS)
@pytest.mark.parametrize("value", NO_NUMBERS, ids=repr)
def test_options(name, value):
    refused(lambda: CaptureOptions(**{name: value}), name, value)


@pytest.mark.parametrize(("name", "least"), OPTIONS.items())
def test_the_smallest_number_of_an_option(name, least):
    refused(lambda: CaptureOptions(**{name: least - 1}), name, least - 1)
    assert getattr(CaptureOptions(**{name: least}), name) == least


@pytest.mark.parametrize("name", ["batch_tokens", "offset", "queue_bytes"])
def test_none_where_a_number_is_needed(name):
    refused(lambda: CaptureOptions(**{name: None}), name, None)


@pytest.mark.parametrize("name", ["unit_size", "max_length", "limit"])
def test_none_where_it_means_something(name):
    assert getattr(CaptureOptions(**{name: None}), name) is None


@pytest.mark.parametrize("value", [*NO_NUMBERS, 0, -1], ids=repr)
def test_a_plan(value):
    plain = CaptureOptions()
    refused(lambda: make_plan((0, 4), 2, plain, value), "batch_size", value)
    refused(lambda: make_plan((0, 4), value, plain, None), "unit_size", value)
    refused(lambda: UnitPlan(0, 4, value), "unit_size", value)
    refused(lambda: length_sorted_batches([1], batch_size=value), "batch_size", value)


@pytest.mark.parametrize("name", ["num_questions", "batch_size", "batch_tokens", "unit_size"])
@pytest.mark.parametrize("value", [*NO_NUMBERS, 0], ids=repr)
def test_a_collection(tmp_path, name, value):
    refused(lambda: CollectParams(tmp_path, **{name: value}), name, value)


@pytest.mark.parametrize("value", [*NO_NUMBERS, -1], ids=repr)
def test_the_offset_of_a_collection(tmp_path, value):
    refused(lambda: CollectParams(tmp_path, offset=value), "offset", value)


def test_numbers_of_numpy_are_plain_numbers_afterwards(tmp_path):
    options = CaptureOptions(**{name: np.int32(3) for name in OPTIONS})
    assert {type(getattr(options, name)) for name in OPTIONS} == {int}
    collected = CollectParams(tmp_path, num_questions=np.int64(3), unit_size=np.uint8(2))
    assert (type(collected.num_questions), type(collected.unit_size)) == (int, int)
    plan = make_plan((0, 4), np.int64(2), CaptureOptions(), np.int64(3))
    assert json.loads(json.dumps(plan.to_json()))["batch_size"] == 3
    assert json.dumps(UnitPlan(0, 4, np.int64(2)).to_json())
    assert length_sorted_batches([1, 2, 3], batch_size=np.int64(2)) == [[2, 1], [0]]


@pytest.mark.parametrize("value", ["8", True, 2.0, 0], ids=repr)
def test_a_runner_says_so_before_it_writes(model, text_of, tmp_path, value):
    runner = DatasetRunner(text_of(3, 4), value, ActivationExtractor(model), ShardStorage(tmp_path))
    refused(runner.run, "batch_size", value)
    refused(runner.dry_run, "batch_size", value)
    assert not any(tmp_path.iterdir())


def test_a_batch_size_and_a_budget_are_two_answers_to_one_question(model, text_of, tmp_path):
    options = CaptureOptions(batch_tokens=64)
    runner = DatasetRunner(
        text_of(3, 4), 2, ActivationExtractor(model), ShardStorage(tmp_path), options=options
    )
    with pytest.raises(BadInputError, match="not both") as caught:
        runner.run()
    assert caught.value.got and caught.value.next_step
    assert not any(tmp_path.iterdir())
    both = DatasetRunner(text_of(3, 4), np.int64(2), ActivationExtractor(model),
                         ShardStorage(tmp_path)).run()  # fmt: skip
    assert both.open().plan.batch_size == 2
