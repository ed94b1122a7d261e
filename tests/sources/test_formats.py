"""What is particular to one format."""

import datetime
import json
import pickle
import sys
from decimal import Decimal

import pyarrow as pa
import pytest
from pyarrow import parquet

from actscope.capture.dataset import as_dataset
from actscope.core.errors import SourceError
from actscope.core.text import Example
from actscope.sources import open_source
from actscope.sources.csv import CSVSource
from actscope.sources.folder import FolderSource
from actscope.sources.inline import InlineSource
from actscope.sources.jsonl import JSONLSource
from actscope.sources.parquet import ParquetSource
from actscope.sources.prompt_set import PromptSetSource
from actscope.sources.text import TextSource


@pytest.fixture
def put(tmp_path):
    def put(name, content):
        path = tmp_path / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_bytes(content.encode() if isinstance(content, str) else content)
        return path

    return put


def texts(source):
    return [e.text for e in source.examples()]


# -- JSON Lines -----------------------------------------------------------------------------------


def test_jsonl_blank_lines_bom_and_crlf(put):
    path = put("a.jsonl", b'\xef\xbb\xbf{"text":"a"}\r\n\r\n  \n{"text":"b"}\n\n{"text":"c"}')
    source = JSONLSource(path)
    assert texts(source) == ["a", "b", "c"] and len(source) == 3
    for start in range(4):
        assert [e.text for e in source.examples(start)] == ["a", "b", "c"][start:]


@pytest.mark.parametrize(
    ("line", "says"),
    [
        (b'{"text": "b"', "line 3.*is not valid JSON"),
        (b'{"text": "b", "x": NaN}', "NaN is not a JSON number"),
        (b'{"text": "b", "x": 1e999}', "line 3: the metadata is not JSON"),
        (b'{"text": "b\xff"}', "line 3.*is not UTF-8(.|\n)*got: byte 0xff"),
        (b'["b"]', "line 3.*is not a JSON object"),
        (b"[" * 100_000, "is not valid JSON"),
        (b"1" * 5000, "is not valid JSON"),
        (b'"text"', "is not a JSON object"),
    ],
)
def test_jsonl_names_the_line(put, line, says):
    path = put("a.jsonl", b'{"text": "a"}\n\n' + line + b'\n{"text": "c"}\n')
    with pytest.raises(SourceError, match=says):
        JSONLSource(path)


def test_jsonl_characters_that_are_hard_to_carry(put):
    path = put("a.jsonl", r'{"id": "\ud83d", "text": "\ud800 \u0000 \ud83d\ude00", "m": "\udfff"}')
    source = JSONLSource(path)
    [example] = source.examples()
    assert example.id == "\ud83d" and example.text == "\ud800 \0 \U0001f600"
    other = JSONLSource(put("b.jsonl", r'{"id": "\ud83e", "text": "\ud800 \u0000 \ud83d\ude00"}'))
    assert len({source.fingerprint(), other.fingerprint()}) == 2


def test_jsonl_that_changes_after_it_was_opened(put):
    path = put("a.jsonl", '{"text": "a"}\n{"text": "b"}\n')
    source = JSONLSource(path)
    path.write_text('{"text": "a"}\n{"text": "bb"}\n')
    with pytest.raises(SourceError, match="has changed since it was opened"):
        list(source.examples())
    path.unlink()
    with pytest.raises(SourceError, match="cannot read"):
        list(source.examples())


def test_jsonl_holds_offsets_not_texts(put):
    path = put("a.jsonl", "".join(json.dumps({"text": "x" * 1000}) + "\n" for _ in range(500)))
    source = JSONLSource(path)
    assert len(pickle.dumps(source)) < 500 * 50
    assert [e.id for e in pickle.loads(pickle.dumps(source)).examples(498)] == ["498", "499"]


# -- tables ---------------------------------------------------------------------------------------


def test_csv_quotes_line_ends_and_long_cells(put):
    long = "x" * 200_000
    path = put("a.csv", f'\ufeff\r\n\r\nid,text\r\n1,"a ""b"",\nc"\r\n\r\n2,{long}\r\n3,\r\n')
    assert texts(CSVSource(path)) == ['a "b",\nc', long, ""]


def test_tsv(put):
    assert texts(CSVSource(put("a.tsv", "text\tn\na, b\t1\n"))) == ["a, b"]


@pytest.mark.parametrize(
    ("content", "says"),
    [
        (
            "id,text\n1,a\n2,b,c\n",
            r"line 3 \(row 1\) has another number(.|\n)*expected: 2",
        ),
        ("id,text\n1\n", "another number of cells"),
        ('id,text\n1,"a\n', "line 2: broken CSV"),
        ("id,text,id\n1,a,2\n", "occurs twice in the header(.|\n)*got: id"),
        (b"id,text\n1,\xe9\n", "is not UTF-8(.|\n)*byte 0xe9(.|\n)*iconv"),
    ],
)
def test_csv_that_is_broken(put, content, says):
    with pytest.raises(SourceError, match=says):
        CSVSource(put("a.csv", content))


def test_parquet_reads_on_and_back(tmp_path):
    path = tmp_path / "a.parquet"
    rows = [{"text": f"t{i}"} for i in range(5000)]
    parquet.write_table(pa.Table.from_pylist(rows), path, row_group_size=700)
    source = ParquetSource(path)
    for start, stop in [(0, 10), (10, 20), (20, 1500), (1500, 1501), (3, 5), (4990, 6000), (0, 1)]:
        got = [(e.id, e.text) for e in source.examples(start, stop)]
        assert got == [(str(i), f"t{i}") for i in range(start, min(stop, 5000))]
    next(source.examples(100, 200))
    assert [e.id for e in source.examples(200, 202)] == ["200", "201"]
    assert [e.id for e in pickle.loads(pickle.dumps(source)).examples(4999)] == ["4999"]


def test_parquet_values_that_json_does_not_have(tmp_path):
    path = tmp_path / "a.parquet"
    row = {
        "text": "a",
        "nan": float("nan"),
        "when": datetime.datetime(2024, 5, 6, 7, 8, 9),
        "day": datetime.date(2024, 5, 6),
        "price": Decimal("1.50"),
        "raw": b"\x00\xff",
        "deep": {"list": [1.5, float("inf")]},
    }
    parquet.write_table(pa.Table.from_pylist([row]), path)
    source = ParquetSource(path)
    [example] = source.examples()
    assert example.metadata == {
        "nan": None,
        "when": "2024-05-06T07:08:09",
        "day": "2024-05-06",
        "price": "1.50",
        "raw": "AP8=",
        "deep": {"list": [1.5, None]},
    }


def test_parquet_that_is_broken(put, tmp_path):
    with pytest.raises(SourceError, match="not a readable Parquet file"):
        ParquetSource(put("a.parquet", b"PAR1 nothing of the kind PAR1"))
    path = tmp_path / "b.parquet"
    raw = pa.array([b"ok", b"\xff"])
    parquet.write_table(pa.table({"text": raw}), path)
    with pytest.raises(SourceError, match=r"row 0: the field 'text' is not text(.|\n)*got: bytes"):
        ParquetSource(path)
    parquet.write_table(pa.table({"text": raw.view(pa.string())}), path)
    with pytest.raises(SourceError, match="not a readable Parquet file"):
        ParquetSource(path)
    whole = path.read_bytes()
    for cut in range(0, len(whole) - 1, 97):
        path.write_bytes(whole[:cut])
        if cut:
            with pytest.raises(SourceError, match="not a readable Parquet file"):
                ParquetSource(path)


def test_parquet_without_pyarrow(put, monkeypatch):
    monkeypatch.setitem(sys.modules, "pyarrow", None)
    with pytest.raises(SourceError, match=r"pip install 'actscope\[parquet\]'"):
        ParquetSource(put("a.parquet", b"PAR1"))


# -- texts ----------------------------------------------------------------------------------------


def test_text_lines_and_whole(put):
    path = put("a.txt", "\ufeffone\r\n\r\n  two \n \t\nthree \x0b\x0c\u2028 3\n")
    assert texts(TextSource(path)) == ["one", "  two ", "three \x0b\x0c\u2028 3"]
    assert texts(TextSource(path, whole=True)) == ["one\n\n  two \n \t\nthree \x0b\x0c\u2028 3"]
    assert len(TextSource(put("b.txt", ""), whole=True)) == 0


def test_folder_ids_order_and_what_is_left_out(put, tmp_path):
    put("f/b.txt", "B\n\n")
    put("f/a/z.txt", "Z")
    put("f/a.b.txt", "AB")
    put("f/.hidden.txt", "no")
    put("f/.git/c.txt", "no")
    put("f/readme.md", "no")
    source = FolderSource(tmp_path / "f")
    assert [(e.id, e.text) for e in source.examples()] == [
        ("a.b", "AB"),
        ("a/z", "Z"),
        ("b", "B\n"),
    ]


def test_folder_errors(put, tmp_path):
    with pytest.raises(SourceError, match="there is no folder"):
        FolderSource(tmp_path / "none")
    with pytest.raises(SourceError, match="there is no folder ''"):
        FolderSource("")
    put("f/a.jsonl", "")
    put("f/b.jsonl", "")
    with pytest.raises(SourceError, match=r"holds no \.txt file(.|\n)*got: 2 \.jsonl"):
        FolderSource(tmp_path / "f")
    bad = put("f/a.txt", b"\xff")
    with pytest.raises(SourceError, match=r"a\.txt is not UTF-8"):
        FolderSource(tmp_path / "f")
    bad.write_text("good")
    source = FolderSource(tmp_path / "f")
    bad.write_text("other")
    with pytest.raises(SourceError, match="has changed"):
        list(source.examples())


def test_prompt_set(put):
    prompts = [{"id": 7, "text": "a", "note": "n"}, {"text": "b", "level": 2}]
    path = put("a.json", json.dumps({"name": "s", "description": "d", "prompts": prompts}))
    assert list(PromptSetSource(path).examples()) == [
        Example("7", "a", metadata={"note": "n", "prompt_set": "s"}),
        Example("1", "b", metadata={"note": "", "prompt_set": "s", "level": 2}),
    ]


@pytest.mark.parametrize(
    ("content", "says"),
    [
        ('[{"text": "a"}]', "not a prompt set(.|\n)*got: list(.|\n)*jsonl"),
        ('{"name": "x"}', "not a prompt set(.|\n)*got: fields name"),
        ('{"prompts": ["a"]}', "prompt 0 is not an object"),
        ('{"prompts": [{"id": 1}]}', "prompt 0: the field 'text' does not exist"),
        ('{"prompts": [{"id": 1, "text": "a"}, {"id": 1, "text": "b"}]}', "rows 0 and 1"),
        ("{", "is not valid JSON"),
    ],
)
def test_prompt_set_that_is_none(put, content, says):
    with pytest.raises(SourceError, match=says):
        PromptSetSource(put("a.json", content))


@pytest.mark.parametrize("name", ["a.jsonl", "a.csv", "a.txt", "a.json", "a.parquet"])
def test_an_empty_file_is_an_empty_dataset(put, name):
    source = open_source(put(name, ""))
    assert len(source) == 0 and list(source.examples()) == []
    assert source.fingerprint() == InlineSource([]).fingerprint()


def test_a_list_in_python_has_the_fingerprint_of_the_same_file(put):
    path = put("a.jsonl", '{"text": "a"}\n{"text": "b \\ud800"}\n')
    assert as_dataset(["a", "b \ud800"]).fingerprint() == JSONLSource(path).fingerprint()
    assert InlineSource(["a", "b \ud800"]).fingerprint() == JSONLSource(path).fingerprint()
