"""The contract suite on every source of the room that reads what somebody wrote."""

import csv
import json

import pyarrow as pa
import pytest
from pyarrow import parquet

from actscope.core.errors import SourceError
from actscope.sources import SOURCES
from actscope.sources.censorship import CensorshipSource
from actscope.sources.csv import CSVSource
from actscope.sources.folder import FolderSource
from actscope.sources.inline import InlineSource
from actscope.sources.jsonl import JSONLSource
from actscope.sources.mcq import MCQSource, option_order
from actscope.sources.parquet import ParquetSource
from actscope.sources.prompt_set import PromptSetSource
from actscope.sources.text import TextSource
from actscope.sources.trait_set import TraitSetSource
from actscope.testing.source_contract import EXAMPLES, SourceContract


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


def write_censorship(path, examples):
    fields = {"censored": True, "censorship_category": "refusal", "subject": "s"}
    lines = [json.dumps({"id": e.id, "question": e.text, **fields}) for e in examples]
    path.write_text("\n".join(lines), encoding="utf-8")
    return CensorshipSource(path)


WRITERS = {
    "censorship": write_censorship,
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


class TestMCQ(SourceContract):
    @pytest.fixture
    def write(self, tmp_path):
        def write(examples, place="a"):
            rest = {"correct": "w", "distractors": ["x", "y", "z"]}
            rows = [{"id": e.id, "question": e.text, **rest} for e in examples]
            path = tmp_path / place
            path.write_text("\n".join(json.dumps(row) for row in rows), encoding="utf-8")
            return MCQSource(path)

        return write

    def expected(self, examples):
        def options(identity):
            answers = [("w", "x", "y", "z")[i] for i in option_order(identity, 4)]
            return "\n".join(f"{a}) {b}" for a, b in zip("ABCD", answers, strict=True))

        return [(e.id, f"{options(e.id)}\n{e.text}\nAnswer with one letter.") for e in examples]


class TestTraitSet(SourceContract):
    keeps_ids = False

    @pytest.fixture
    def write(self, tmp_path):
        def write(examples, place="a"):
            folder = tmp_path / place / "behavioral" / "refusal"
            folder.mkdir(parents=True)
            texts = [e.text for e in examples] or ["", ""]
            (folder / "positive.txt").write_bytes("\n".join(texts[:-1]).encode())
            (folder / "negative.txt").write_bytes(texts[-1].encode())
            (folder / "definition.txt").write_text("A trait.")
            prompts = {"name": "s", "prompts": [{"id": 1, "text": "x"}]}
            (folder / "steering.json").write_text(json.dumps(prompts))
            return TraitSetSource(folder)

        return write

    def expected(self, examples):
        # the last example is the negative side
        ids = [f"positive/{i:02d}" for i in range(1, len(examples))] + ["negative/01"]
        return [(i, e.text) for i, e in zip(ids, examples, strict=True)]

    def test_an_empty_dataset_is_no_error(self, write):
        """A trait has two sides: the opposite holds."""
        with pytest.raises(SourceError, match=r"positive\.txt is empty"):
            write(())

    def test_any_change_changes_the_fingerprint(self, write):
        prints = [write(EXAMPLES, "a"), write(EXAMPLES[:-1], "b"), write(EXAMPLES[1:], "c")]
        assert len({source.fingerprint() for source in prints}) == 3


def test_every_source_is_covered():
    covered = {*WRITERS, "inline", "text", "folder", "mcq", "trait_set", "demo"}
    assert covered == set(SOURCES.names())
