"""Rows with fields, in every format that has them: what they mean and what is refused."""

import csv
import json

import pyarrow as pa
import pytest
from pyarrow import parquet

from actscope.core.errors import SourceError
from actscope.core.text import Message
from actscope.sources import open_source

CHAT = [{"role": "system", "content": "Be brief."}, {"role": "user", "content": "Why?"}]
TURNS = (Message("system", "Be brief."), Message("user", "Why?"))


def as_jsonl(folder, rows):
    path = folder / "a.jsonl"
    path.write_text("".join(json.dumps(row) + "\n" for row in rows))
    return path


def as_csv(folder, rows):
    path = folder / "a.csv"
    names = list(rows[0])
    with path.open("w", newline="") as file:
        writer = csv.writer(file)
        writer.writerow(names)
        for row in rows:
            cells = [row.get(n) for n in names]
            writer.writerow([json.dumps(c) if isinstance(c, list) else c for c in cells])
    return path


def as_parquet(folder, rows):
    path = folder / "a.parquet"
    parquet.write_table(pa.Table.from_pylist(rows), path)
    return path


FORMATS = pytest.mark.parametrize("write", [as_jsonl, as_csv, as_parquet])


@FORMATS
def test_fields_that_are_not_used_become_metadata(tmp_path, write):
    path = write(
        tmp_path, [{"id": "a", "text": "A", "topic": "x"}, {"id": "b", "text": "B", "topic": "y"}]
    )
    examples = list(open_source(path).examples())
    assert [(e.id, e.text, e.metadata) for e in examples] == [
        ("a", "A", {"topic": "x"}),
        ("b", "B", {"topic": "y"}),
    ]


@FORMATS
def test_other_names_for_the_fields(tmp_path, write):
    path = write(tmp_path, [{"key": "k", "question": "Q", "text": "T"}])
    [example] = open_source(path, text_field="question", id_field="key").examples()
    assert (example.id, example.text, example.metadata) == ("k", "Q", {"text": "T"})


@FORMATS
def test_without_ids_a_row_is_called_by_its_index_whatever_the_range(tmp_path, write):
    source = open_source(write(tmp_path, [{"text": f"t{i}"} for i in range(5)]))
    assert [e.id for e in source.examples(3)] == ["3", "4"]


@FORMATS
def test_conversations(tmp_path, write):
    path = write(tmp_path, [{"id": "c", "messages": CHAT, "text": "unused"}])
    [example] = open_source(path).examples()
    assert example.messages == TURNS and example.text is None
    assert example.metadata == {"text": "unused"}
    [plain] = open_source(path, text_field="text").examples()
    assert plain.text == "unused"
    renamed = write(tmp_path, [{"turns": CHAT, "text": "x"}])
    [example] = open_source(renamed, messages_field="turns").examples()
    assert example.messages == TURNS


@FORMATS
def test_token_ids(tmp_path, write):
    [example] = open_source(write(tmp_path, [{"token_ids": [1, 2, 3]}])).examples()
    assert example.token_ids == (1, 2, 3)


@FORMATS
def test_one_fingerprint_for_the_same_examples_in_any_format(tmp_path, write):
    rows = [{"id": "a", "text": "A", "topic": "é"}, {"id": "b", "text": "B", "topic": ""}]
    reference = open_source(as_jsonl(tmp_path, rows)).fingerprint()
    assert open_source(write(tmp_path, rows)).fingerprint() == reference
    other_text = open_source(write(tmp_path, rows), text_field="topic")
    assert other_text.fingerprint() != reference


@FORMATS
@pytest.mark.parametrize(
    ("row", "options", "says"),
    [
        ({"prompt": "x"}, {}, r"'text' does not(.|\n)*fields 'prompt'(.|\n)*field prompt\)"),
        ({"txet": "x", "a": "y"}, {}, "did you mean text_field='txet'"),
        ({"a": "x", "b": "y"}, {}, "name the field with text_field="),
        ({"text": "x"}, {"text_field": "body"}, "'body' does not exist"),
        ({"text": "x", "idx": "1"}, {"id_field": "id"}, "did you mean id_field='idx'"),
        ({"text": "x"}, {"messages_field": "turns"}, "'turns' does not exist"),
    ],
)  # fmt: skip
def test_a_field_that_is_missing(tmp_path, write, row, options, says):
    with pytest.raises(SourceError, match=says):
        open_source(write(tmp_path, [row]), **options)


@FORMATS
def test_ids_that_occur_twice_name_both_rows(tmp_path, write):
    rows = [{"id": i, "text": "t"} for i in ("a", "b", "c", "b", "a")]
    with pytest.raises(SourceError, match=r"rows 1 and 3 have the same id(.|\n)*got: 'b'"):
        open_source(write(tmp_path, rows))


def test_an_id_that_is_another_rows_index(tmp_path):
    with pytest.raises(SourceError, match="rows 0 and 1 have the same id"):
        open_source(as_jsonl(tmp_path, [{"id": 1, "text": "a"}, {"text": "b"}]))


@pytest.mark.parametrize(
    ("row", "says"),
    [
        ({"text": 5}, "'text' is not text(.|\n)*got: int 5"),
        ({"text": ["x"]}, "is not text(.|\n)*got: list"),
        ({"text": None}, "'text' is empty"),
        ({"id": [1], "text": "x"}, "the id must be"),
        ({"messages": "hello"}, "'messages' is not valid JSON"),
        ({"messages": []}, "not a conversation"),
        ({"messages": 3}, "not a conversation"),
        ({"messages": [{"role": "user"}]}, "not a conversation"),
        ({"messages": [{"role": "user", "content": [{"type": "image"}]}]}, "not a conversation"),
        ({"messages": [*CHAT, "x"]}, "not a conversation"),
        ({"token_ids": []}, "not a list of whole numbers"),
        ({"token_ids": [1.5]}, "not a list of whole numbers"),
        ({"token_ids": [True]}, "not a list of whole numbers"),
    ],
)
def test_a_field_of_the_wrong_kind(tmp_path, row, says):
    with pytest.raises(SourceError, match=rf"a\.jsonl, line 1 \(row 0\)(.|\n)*{says}"):
        open_source(as_jsonl(tmp_path, [row]))


def test_numbers_as_ids(tmp_path):
    rows = [{"id": 10, "text": "a"}, {"id": 0, "text": "b"}, {"id": None, "text": "c"}]
    assert [e.id for e in open_source(as_jsonl(tmp_path, rows)).examples()] == ["10", "0", "2"]
