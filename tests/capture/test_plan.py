"""Ranges, unit sizes, and the plan a run was begun with."""

import pytest

from actscope.capture.dataset import as_dataset
from actscope.capture.options import CaptureOptions
from actscope.capture.plan import (
    LARGEST_UNIT,
    Footprint,
    adopt,
    choose_unit_size,
    dataset_range,
    make_plan,
)
from actscope.core.errors import BadInputError, RunMismatchError, UnknownNameError


def test_ranges_are_cut_to_the_dataset():
    assert dataset_range(10, CaptureOptions()) == (0, 10)
    assert dataset_range(10, CaptureOptions(offset=4, limit=3)) == (4, 7)
    assert dataset_range(10, CaptureOptions(offset=4, limit=99)) == (4, 10)
    assert dataset_range(10, CaptureOptions(limit=0)) == (0, 0)
    assert dataset_range(0, CaptureOptions()) == (0, 0)
    with pytest.raises(BadInputError, match="beyond the dataset"):
        dataset_range(10, CaptureOptions(offset=10))


def test_unit_sizes_are_powers_of_two_within_work_and_memory():
    for tokens in (0, 1, 20, 300, 5_000, 10**9):
        for size in (0, 100, 10**6, 10**12):
            unit = choose_unit_size(Footprint(tokens, size), 512, 16_384)
            assert 1 <= unit <= LARGEST_UNIT
            assert unit & (unit - 1) == 0
            assert unit == 1 or unit * max(tokens, 1) <= 16_384
    assert choose_unit_size(Footprint(10, 10), 512, 16_384) == LARGEST_UNIT
    assert choose_unit_size(Footprint(92, 10), 512, 65_536) == 512
    assert choose_unit_size(Footprint(10, 200 << 20), 1, 16_384) == 1


def test_a_unit_holds_a_batch_where_memory_does():
    """All layers of a model of 4096 x 32 in bfloat16: 72 MiB a text of 288 tokens."""
    large = Footprint(288, 72 << 20)
    assert choose_unit_size(large, 256, 16_384) == 1  # 128 MiB hold a text and a half
    assert choose_unit_size(large, 2048, 16_384) == 4
    assert choose_unit_size(large, 8192, 16_384) == 16
    assert choose_unit_size(large, 131_072, 16_384) == 16  # no more than 2 GiB
    assert choose_unit_size(Footprint(288, 9 << 20), 8192, 16_384) == 16


def test_batches_by_size_or_by_budget():
    plan = make_plan((0, 10), 4, CaptureOptions(batch_tokens=99), None)
    assert (plan.batch_tokens, plan.batch_size) == (99, None)
    plan = make_plan((0, 10), 4, CaptureOptions(), 3)
    assert (plan.batch_tokens, plan.batch_size) == (None, 3)


def test_a_run_keeps_its_plan_but_not_for_another_range():
    begun = make_plan((0, 10), 4, CaptureOptions(batch_tokens=100), None)
    asked = make_plan((0, 10), 8, CaptureOptions(batch_tokens=200), None)
    assert adopt(None, asked, "x") == (asked, [])
    plan, ignored = adopt(begun, asked, "x")
    assert plan == begun
    assert sorted(ignored) == ["batch_tokens", "unit_size"]
    with pytest.raises(RunMismatchError, match="examples 0 to 12"):
        adopt(begun, make_plan((0, 12), 4, CaptureOptions(), None), "x")


@pytest.mark.parametrize(
    "bad", [{"on_too_long": "truncate"}, {"storage_dtype": "int8"}, {"storage_dtype": "float64"}]
)
def test_options_name_what_there_is(bad):
    with pytest.raises(UnknownNameError):
        CaptureOptions(**bad)


@pytest.mark.parametrize("bad", [{"unit_size": 0}, {"batch_tokens": 0}, {"offset": -1}])
def test_options_refuse_senseless_numbers(bad):
    with pytest.raises(BadInputError):
        CaptureOptions(**bad)


def test_a_datasets_fingerprint_is_its_content():
    def print_of(items):
        return as_dataset(items).fingerprint()

    base = [{"id": "a", "text": "one", "k": 1}, {"id": "b", "text": "two", "k": 2}]
    assert print_of(base) == print_of(iter(base))
    changes = [
        base[::-1],
        base[:1],
        [{**base[0], "text": "One"}, base[1]],
        [{**base[0], "id": "c"}, base[1]],
        [{**base[0], "k": 3}, base[1]],
    ]
    assert len({print_of(base), *map(print_of, changes)}) == len(changes) + 1
    assert print_of(["1 2"]) != print_of([[1, 2]])


def test_metadata_must_be_json():
    for value in (object(), float("nan")):
        with pytest.raises(BadInputError, match="not JSON"):
            as_dataset([{"id": "a", "text": "x", "k": value}])


def test_a_list_and_a_file_of_the_same_examples_are_one_dataset(tmp_path):
    path = tmp_path / "d.jsonl"
    path.write_text('{"id": "a", "text": "one", "k": 1}\n{"id": "b", "text": "two"}\n')
    listed = [{"id": "a", "text": "one", "k": 1}, {"id": "b", "text": "two"}]
    assert as_dataset(path).fingerprint() == as_dataset(listed).fingerprint()
    assert [e.text for e in as_dataset(str(path)).examples()] == [str(path)]
