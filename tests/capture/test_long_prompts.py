"""Under the policy ``error`` a prompt over the limit is found before the first unit is captured."""

import pytest

from actscope import ActivationExtractor, DatasetRunner, ShardStorage
from actscope.capture import CaptureOptions
from actscope.capture.long_prompts import may_exceed
from actscope.core.errors import ExampleError
from actscope.core.text import Example, Message

LONG = 37


@pytest.fixture(autouse=True)
def few_are_counted(monkeypatch):
    """Only units 0, 3, 6 and 9 of twelve are tokenised to estimate the size."""
    monkeypatch.setattr("actscope.capture.job.EXACT_COUNT", 20)


def runner(model, tmp_path, dataset, on_too_long="error", **options):
    return DatasetRunner(
        dataset,
        None,
        ActivationExtractor(model),
        ShardStorage(tmp_path),
        options=CaptureOptions(on_too_long=on_too_long, unit_size=5, **options),
    )


def ids_with_one_too_long():
    return [[7, 8, 9] if i != LONG else [7] * 70 for i in range(60)]


def texts_with_one_too_long():
    return ["w1 w2 w3" if i != LONG else "w1 " * 70 for i in range(60)]


@pytest.mark.parametrize("make", [ids_with_one_too_long, texts_with_one_too_long])
@pytest.mark.parametrize("chat", [False, True])
def test_a_late_prompt_stops_the_run_before_it_begins(model, tmp_path, make, chat):
    if chat and make is ids_with_one_too_long:
        pytest.skip("no chat template is put around token ids")
    dataset = make()
    with pytest.raises(ExampleError, match=f"'{LONG}' has 7[0-9] tokens; the limit is 64"):
        runner(model, tmp_path, dataset, chat=chat).run(run_id="r")
    assert not (tmp_path / "r").exists()
    done = runner(model, tmp_path, dataset, "skip", chat=chat).run(run_id="r")  # the remedy
    assert (done.captured, done.failures) == (59, {"too_long": 1})


def test_only_prompts_that_may_be_too_long_are_tokenised(model, tmp_path, monkeypatch):
    seen = []
    inner = type(model).encode

    def watch(self, example, **more):
        seen.append(example.id)
        return inner(self, example, **more)

    monkeypatch.setattr(type(model), "encode", watch)
    dataset = texts_with_one_too_long()
    dataset[LONG] = "w1" * 70  # many bytes, two tokens
    assert runner(model, tmp_path, dataset).run(run_id="r").captured == 60
    assert seen.count(str(LONG)) == 2  # looked at, captured
    assert seen.count("36") == 1


def test_what_is_on_disk_is_not_looked_through_again(model, tmp_path, monkeypatch):
    dataset = ids_with_one_too_long()
    dataset[LONG] = [7]
    runner(model, tmp_path, dataset).run(run_id="r")
    monkeypatch.setattr("actscope.capture.job.refuse_too_long", lambda *_: pytest.fail("looked"))
    assert runner(model, tmp_path, dataset).run(run_id="r").resumed == 60


def test_other_failures_stay_on_record(model, tmp_path):
    dataset = ids_with_one_too_long()
    dataset[LONG] = [5000] * 70
    done = runner(model, tmp_path, dataset).run(run_id="r")
    assert done.failures == {"bad_token": 1}


TEXTS = {
    "w1": False,
    "x" * 32: False,
    "x" * 33: True,
    "\N{GREEK SMALL LETTER ALPHA}" * 16: False,
    "\N{GREEK SMALL LETTER ALPHA}" * 17: True,
    "\N{ARABIC LIGATURE SALLALLAHOU ALAYHE WASALLAM}": True,  # 3 bytes, 18 letters when unfolded
    "\udc80" * 11: True,
}


@pytest.mark.parametrize("text", TEXTS)
def test_bytes_bound_tokens(text):
    assert may_exceed(Example("x", text), 64, chat=False) == TEXTS[text]


def test_ids_are_counted_and_templates_are_not_guessed():
    assert not may_exceed(Example("x", token_ids=(1,) * 64), 64, chat=True)
    assert may_exceed(Example("x", token_ids=(1,) * 65), 64, chat=False)
    assert may_exceed(Example("x", "w1"), 64, chat=True)
    assert may_exceed(Example("x", messages=(Message("user", "w1"),)), 64, chat=False)
