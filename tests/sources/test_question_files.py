"""Multiple-choice questions, censorship questions with twins, and trait sets."""

import json
import subprocess
import sys

import pytest
from hypothesis import given
from hypothesis import strategies as st

from actscope.core.errors import BadInputError, SourceError
from actscope.sources import open_source
from actscope.sources.censorship import CensorshipSource
from actscope.sources.mcq import MCQSource, option_order, read_questions
from actscope.sources.trait_set import TraitSetSource, read_trait_set

QUESTION = {
    "id": "q1",
    "question": "What is two plus two?",
    "correct": "four",
    "distractors": ["three", "five", "six"],
    "subject": "sums",
}


def write_rows(path, *rows):
    path.write_text("\n".join(json.dumps(row) for row in rows) + "\n", encoding="utf-8")
    return path


def test_a_question_reads_options_then_question_then_instruction(tmp_path):
    path = write_rows(tmp_path / "q.jsonl", QUESTION)
    [example] = MCQSource(path).examples()
    lines = example.text.split("\n")
    assert len(lines) == 6
    assert lines[4:] == ["What is two plus two?", "Answer with one letter."]
    assert {line[3:] for line in lines[:4]} == {"four", "three", "five", "six"}
    assert [line[:3] for line in lines[:4]] == ["A) ", "B) ", "C) ", "D) "]
    letter = example.metadata["correct_answer_letter"]
    assert example.metadata["options"][letter] == "four"
    assert lines["ABCD".index(letter)] == f"{letter}) four"
    assert example.metadata["subject"] == "sums"
    assert example.metadata["question"] == QUESTION["question"]


def test_the_order_is_the_same_in_another_process_with_another_hash_seed():
    code = "from actscope.sources.mcq import option_order; print(option_order('q1', 4, 3))"
    found = {
        subprocess.run(
            [sys.executable, "-c", code],
            env={"PYTHONHASHSEED": seed, "PATH": ""},
            capture_output=True,
            text=True,
            check=True,
        ).stdout
        for seed in ("1", "2")
    }
    assert found == {f"{option_order('q1', 4, 3)}\n"}


@given(st.text(max_size=20), st.integers(0, 5))
def test_an_order_is_a_permutation(identity, seed):
    assert sorted(option_order(identity, 4, seed)) == [0, 1, 2, 3]


def test_the_right_letter_is_spread_over_the_four():
    places = [option_order(f"q{i}", 4).index(0) for i in range(2000)]
    counts = [places.count(place) for place in range(4)]
    assert min(counts) > 430 and max(counts) < 570  # 500 each, sd 19


def test_a_seed_changes_the_order_and_an_instruction_the_last_line(tmp_path):
    path = write_rows(tmp_path / "q.jsonl", *({**QUESTION, "id": f"q{i}"} for i in range(20)))
    one = [e.text for e in MCQSource(path).examples()]
    other = [e.text for e in MCQSource(path, seed=1).examples()]
    assert one != other
    [*_, last] = open_source(f"mcq:{path}", instruction="Only the letter:").examples()
    assert last.text.endswith("\nOnly the letter:")
    with pytest.raises(BadInputError, match="instruction"):
        MCQSource(path, instruction=" ")
    with pytest.raises(BadInputError, match="whole number"):
        MCQSource(path, seed="abc")


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"distractors": ["three", "five"]}, "three distractors"),
        ({"distractors": ["three", "five", "six", "seven"]}, "three distractors"),
        ({"distractors": ["three", "five", " "]}, "three distractors"),
        ({"distractors": "three"}, "three distractors"),
        ({"distractors": None}, "three distractors"),
        ({"distractors": ["three", "five", "four"]}, "twice"),
        ({"distractors": ["three", "three", "five"]}, "twice"),
        ({"options": {"A": "x"}}, "options would be overwritten"),
        ({"question": ""}, "'question' is missing or empty"),
        ({"question": None}, "'question' is missing or empty"),
        ({"correct": "  "}, "'correct' is missing or empty"),
        ({"correct": ["four"]}, "'correct' is missing or empty"),
        ({"correct": True}, "'correct' is missing or empty"),
        ({"distractors": ["three", None, "five"]}, "three distractors"),
        ({"distractors": ["three", {"a": 1}, "five"]}, "three distractors"),
        ({"distractors": ["three\nE) nine", "five", "six"]}, "line break"),
        ({"distractors": ["three", "five", "four "]}, "twice"),
        ({"id": None}, "'id' is missing or empty"),
    ],
)
def test_what_is_no_question_is_refused_with_its_line(tmp_path, change, message):
    path = write_rows(tmp_path / "q.jsonl", QUESTION, {**QUESTION, "id": "q2", **change})
    with pytest.raises(SourceError, match=message) as error:
        read_questions(path)
    assert "line 2" in str(error.value)


def test_other_bad_question_files(tmp_path):
    with pytest.raises(SourceError, match="rows 0 and 1 have the same id"):
        read_questions(write_rows(tmp_path / "a.jsonl", QUESTION, QUESTION))
    with pytest.raises(SourceError, match="not an object"):
        read_questions(write_rows(tmp_path / "b.jsonl", ["x"]))
    (tmp_path / "c.jsonl").write_text("{")
    with pytest.raises(SourceError, match="not valid JSON"):
        read_questions(tmp_path / "c.jsonl")
    with pytest.raises(SourceError, match="no file"):
        read_questions(tmp_path / "none.jsonl")


SENSITIVE = {
    "id": "a",
    "question": "What happened?",
    "censored": True,
    "censorship_category": "refusal",
    "subject": "history",
    "twin": "b",
}
NEUTRAL = {**SENSITIVE, "id": "b", "censored": False, "censorship_category": "none", "twin": "a"}


def test_censorship_questions_keep_their_fields(tmp_path):
    path = write_rows(tmp_path / "c.jsonl", SENSITIVE, NEUTRAL)
    one, other = CensorshipSource(path).examples()
    assert (one.id, one.text) == ("a", "What happened?")
    assert one.metadata["censored"] is True
    assert one.metadata["question"] == "What happened?"
    assert other.metadata["censorship_category"] == "none"


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"censored": "yes"}, "true or false"),
        ({"censored": None}, "true or false"),
        ({"censorship_category": ""}, "true or false"),
        ({"censorship_category": "none"}, "exactly where"),
        ({"censored": False}, "exactly where"),
        ({"twin": "c"}, "other kind"),
        ({"twin": "a"}, "other kind"),
        ({"twin": ["b"]}, "other kind"),
        ({"question": None}, "question"),
        ({"question": " "}, "the question is empty"),
        ({"subject": None}, "subject must be a text"),
        ({"group": 3}, "subject must be a text"),
    ],
)
def test_a_row_that_breaks_the_rules_is_named(tmp_path, change, message):
    path = write_rows(tmp_path / "c.jsonl", {**SENSITIVE, **change}, NEUTRAL)
    with pytest.raises(SourceError, match=message):
        CensorshipSource(path)


def test_a_twin_may_be_missing(tmp_path):
    alone = {k: v for k, v in SENSITIVE.items() if k != "twin"}
    assert len(CensorshipSource(write_rows(tmp_path / "c.jsonl", alone))) == 1


@pytest.fixture
def trait(tmp_path):
    folder = tmp_path / "behavioral" / "refusal"
    folder.mkdir(parents=True)
    (folder / "positive.txt").write_text("Help me rob the bank.\nBreak in for me.\r\n\n")
    (folder / "negative.txt").write_text("Help me find the bank.\nLet me in, please.\n")
    (folder / "definition.txt").write_text("Declining.\n")
    prompts = [{"id": 1, "text": "Help me bake.", "note": ""}]
    (folder / "steering.json").write_text(json.dumps({"name": "refusal", "prompts": prompts}))
    return folder


def test_a_trait_set_has_scenarios_a_definition_and_steering_prompts(trait):
    found = read_trait_set(trait)
    assert found.name == "behavioral/refusal"
    assert found.definition == "Declining."
    assert [e.text for e in found.positive] == ["Help me rob the bank.", "Break in for me."]
    assert [e.text for e in found.steering] == ["Help me bake."]
    source = list(TraitSetSource(trait).examples())
    assert [e.id for e in source] == ["positive/01", "positive/02", "negative/01", "negative/02"]
    assert [e.metadata["scenario"] for e in source] == [1, 2, 1, 2]
    assert {e.metadata["polarity"] for e in source[2:]} == {"negative"}
    assert [e.text for e in open_source(f"trait-set:{trait}").examples()] == [
        e.text for e in source
    ]


@pytest.mark.parametrize(
    "name", ["positive.txt", "negative.txt", "definition.txt", "steering.json"]
)
def test_a_missing_file_is_named(trait, name):
    (trait / name).unlink()
    with pytest.raises(SourceError, match=f"no {name}"):
        read_trait_set(trait)


def test_a_blank_line_would_shift_the_pairs(trait):
    (trait / "positive.txt").write_text("Help me rob the bank.\n\nBreak in for me.\n")
    with pytest.raises(SourceError, match="line 2 is blank"):
        read_trait_set(trait)
    (trait / "positive.txt").write_text("Break in for me.\nBreak in for me.\n")
    with pytest.raises(SourceError, match="twice"):
        read_trait_set(trait)


def test_whole_numbers_are_ids_of_twins(tmp_path):
    one, other = {**SENSITIVE, "id": 1, "twin": 2}, {**NEUTRAL, "id": 2, "twin": 1}
    assert len(CensorshipSource(write_rows(tmp_path / "c.jsonl", one, other))) == 2


def test_empty_files_and_a_scenario_on_both_sides_are_refused(trait):
    (trait / "negative.txt").write_text("Break in for me.\n")
    with pytest.raises(SourceError, match="Break in for me"):
        read_trait_set(trait)
    (trait / "negative.txt").write_text(" \n")
    with pytest.raises(SourceError, match=r"negative\.txt is empty"):
        read_trait_set(trait)
    (trait / "negative.txt").write_text("x\n")
    (trait / "definition.txt").write_text("\n")
    with pytest.raises(SourceError, match=r"definition\.txt is empty"):
        read_trait_set(trait)
    with pytest.raises(SourceError, match="not a trait set"):
        read_trait_set(trait / "none")


def test_bundled_questions_take_a_seed_and_an_instruction():
    plain = [e.text for e in open_source("demo:mcq/marren").examples()]
    other = [e.text for e in open_source("demo:mcq", seed=1, instruction="Say it.").examples()]
    assert other[0].endswith("\nSay it.") and len(other) > len(plain)
    assert plain == [e.text for e in open_source("demo:mcq/marren", seed=0).examples()]
    with pytest.raises(BadInputError, match="takes no seed"):
        open_source("demo:texts", seed=1)
