"""The contract suite on every source of the room that reads what somebody wrote."""

import csv
import json

import pyarrow as pa
import pytest
from pyarrow import parquet

from actscope.sources import SOURCES
from actscope.sources.csv import CSVSource
from actscope.sources.folder import FolderSource
from actscope.sources.inline import InlineSource
from actscope.sources.jsonl import JSONLSource
from actscope.sources.parquet import ParquetSource
from actscope.sources.prompt_set import PromptSetSource
from actscope.sources.text import TextSource
from actscope.testing.source_contract import SourceContract


def write_jsonl(path, examples):
    lines = [json.dumps({"id": e.id, "text": e.text, "n": 1}) for e in examples]
    path.write_text("\n".join(lines), encoding="utf-8")
    return JSONLSource(path)


def write_csv(path, examples):
    with path.open("w", encoding="utf-8", newline="") as file:
        writer = csv.writer(file)
        writer.writerow(["id", "text", "n"])
        writer.writerows([e.id, e.text, 1] for e in examples)
    return CSVSource(path)


def write_parquet(path, examples):
    columns = {"id": [e.id for e in examples], "text": [e.text for e in examples]}
    schema = pa.schema([("id", pa.string()), ("text", pa.string())])
    parquet.write_table(pa.table(columns, schema=schema), path, row_group_size=3)
    return ParquetSource(path)


def write_prompt_set(path, examples):
    prompts = [{"id": e.id, "text": e.text, "note": ""} for e in examples]
    path.write_text(json.dumps({"name": "s", "description": "", "prompts": prompts}))
    return PromptSetSource(path)


WRITERS = {
    "jsonl": write_jsonl,
    "csv": write_csv,
    "parquet": write_parquet,
    "prompt_set": write_prompt_set,
}


class TestFiles(SourceContract):
    @pytest.fixture(params=WRITERS.values(), ids=WRITERS)
    def write(self, tmp_path, request):
        return lambda examples, place="a": request.param(tmp_path / place, examples)


class TestInline(SourceContract):
    keeps_ids = False

    @pytest.fixture
    def write(self):
        return lambda examples, place="a": InlineSource([e.text for e in examples])


class TestText(SourceContract):
    keeps_ids = False

    @pytest.fixture
    def write(self, tmp_path):
        def write(examples, place="a"):
            path = tmp_path / place
            path.write_bytes("".join(f"{e.text}\n" for e in examples).encode())
            return TextSource(path)

        return write


class TestFolder(SourceContract):
    @pytest.fixture
    def write(self, tmp_path):
        def write(examples, place="a"):
            folder = tmp_path / place
            folder.mkdir()
            for example in examples:
                (folder / f"{example.id}.txt").write_bytes(f"{example.text}\n".encode())
            return FolderSource(folder)

        return write

    def test_an_id_that_occurs_twice_is_refused(self, write):
        """A folder cannot hold one name twice."""


def test_every_source_is_covered():
    covered = {*WRITERS, "inline", "text", "folder", "demo"}
    assert covered == set(SOURCES.names())
