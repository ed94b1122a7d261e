"""Questions as other collections write them become questions of our own."""

import json
import math
import types
from datetime import UTC, datetime

import pytest

from actscope.core.errors import SourceError
from actscope.sources.mcq import Question, read_questions

MMLU = {"question": "What is 2 + 2?", "choices": ["3", "4", "5", "6"], "answer": 1, "subject": "s"}


def write(path, *rows):
    if path.suffix == ".json":
        path.write_text(json.dumps(list(rows)))
    elif path.suffix == ".parquet":
        import pyarrow
        from pyarrow import parquet

        parquet.write_table(pyarrow.Table.from_pylist(list(rows)), path)
    else:
        path.write_text("".join(json.dumps(row) + "\n" for row in rows))
    return path


@pytest.mark.parametrize("ending", ["jsonl", "json", "parquet"])
def test_mmlu_rows_are_read_from_every_format(tmp_path, ending):
    path = write(tmp_path / f"q.{ending}", MMLU, {**MMLU, "answer": 3})
    one, two = read_questions(path)
    assert one == Question("000000", "What is 2 + 2?", "4", ("3", "5", "6"), {"subject": "s"})
    assert (two.id, two.correct) == ("000001", "6")


@pytest.mark.parametrize("answer", ["B", " b", "1"])
def test_an_answer_may_be_a_letter_or_a_number_as_text(tmp_path, answer):
    [one] = read_questions(write(tmp_path / "q.jsonl", {**MMLU, "answer": answer}))
    assert one.correct == "4"


def test_choices_with_labels_and_an_answer_key(tmp_path):
    row = {
        "id": "arc1", "question": "Which?", "answerKey": "3",
        "choices": {"text": ["a", "b", "c", "d"], "label": ["1", "2", "3", "4"]},
    }  # fmt: skip
    assert read_questions(write(tmp_path / "q.jsonl", row)) == [
        Question("arc1", "Which?", "c", ("a", "b", "d"), {})
    ]


def test_trivia_rows_keep_three_of_their_distractors_by_the_id_alone(tmp_path):
    row = {
        "question_id": "tc_1", "question": "Who?", "answer": {"value": "Ada", "aliases": ["A."]},
        "distractors": ["Bo", "Cy", "Di", "Ed", "Flo"],
    }  # fmt: skip
    [one] = read_questions(write(tmp_path / "a.jsonl", row))
    [two] = read_questions(write(tmp_path / "b.jsonl", MMLU, row))[1:]
    assert one == two
    assert (one.id, one.correct) == ("tc_1", "Ada")
    assert len(set(one.distractors)) == 3 and set(one.distractors) < set(row["distractors"])
    plain = {**row, "answer": "Ada", "distractors": ["Bo", "Cy", "Di"]}
    assert read_questions(write(tmp_path / "c.jsonl", plain))[0].distractors == ("Bo", "Cy", "Di")


@pytest.mark.parametrize(
    ("row", "said"),
    [
        ({**MMLU, "choices": ["3", "4", "5"]}, "three distractors"),
        ({**MMLU, "answer": 4}, "none of the choices"),
        ({**MMLU, "answer": "E"}, "none of the choices"),
        ({**MMLU, "answer": None}, "none of the choices"),
        ({**MMLU, "answer": True}, "none of the choices"),
        ({**MMLU, "question": ""}, "missing or empty"),
        ({"question": "Who?", "answer": "Ada", "distractors": ["Bo", "Cy"]}, "three distractors"),
        ({"question": "Who?", "answer": "Ada"}, "three distractors"),
        ({"question": "Who?"}, "'correct' is missing"),
        ({**MMLU, "choices": ["4", "4", "5", "6"]}, "there twice"),
    ],
)
def test_rows_that_are_no_questions_are_refused(tmp_path, row, said):
    with pytest.raises(SourceError, match=said):
        read_questions(write(tmp_path / "q.jsonl", row))


def test_a_json_file_must_be_a_list(tmp_path):
    path = tmp_path / "q.json"
    path.write_text(json.dumps(MMLU))
    with pytest.raises(SourceError, match="not a list"):
        read_questions(path)


def test_a_dataset_of_the_hub_is_its_parquet_file(tmp_path, monkeypatch):
    """The network's part is played by a module of the same two names."""
    file = write(tmp_path / "0000.parquet", MMLU)
    listed = ["abstract/test/0000.parquet", "abstract/dev/0000.parquet", "README.md"]

    class Hub:
        def list_repo_files(self, repo, repo_type, revision):
            assert (repo_type, revision) == ("dataset", "refs/convert/parquet")
            if repo != "cais/mmlu":
                raise OSError("no such dataset")
            return listed

    def download(repo, name, repo_type, revision):
        assert (repo, name) == ("cais/mmlu", listed[0])
        return str(file)

    fake = types.SimpleNamespace(HfApi=Hub, hf_hub_download=download)
    monkeypatch.setitem(__import__("sys").modules, "huggingface_hub", fake)
    assert read_questions("hf:cais/mmlu:abstract:test")[0].correct == "4"
    with pytest.raises(SourceError, match="abstract:test") as error:
        read_questions("hf:cais/mmlu")
    assert "has 2 files" in str(error.value)
    with pytest.raises(SourceError, match="cannot be listed"):
        read_questions("hf:nobody/nothing")


def test_a_parquet_file_that_is_none_is_named(tmp_path):
    path = tmp_path / "q.parquet"
    path.write_bytes(b"PAR1 and then nothing of the kind")
    with pytest.raises(SourceError, match="not a readable Parquet file"):
        read_questions(path)


def test_columns_that_json_does_not_have_are_kept_as_text(tmp_path):
    dated = {**MMLU, "asked": datetime(2026, 1, 2, 3, 4, tzinfo=UTC), "raw": b"ab", "odd": math.nan}
    [one] = read_questions(write(tmp_path / "q.parquet", dated))
    assert one.metadata["asked"].startswith("2026-01-02T03:04")
    assert json.loads(json.dumps(one.metadata, allow_nan=False)) == one.metadata
    assert one.metadata["odd"] is None
