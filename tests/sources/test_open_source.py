"""From what a user writes to a source."""

import subprocess
import sys
from importlib.resources import files

import pytest

from actscope.core.errors import BadInputError, SourceError, UnknownNameError
from actscope.sources import SOURCES, open_source
from actscope.sources.csv import CSVSource
from actscope.sources.demo import DemoSource
from actscope.sources.folder import FolderSource
from actscope.sources.inline import InlineSource
from actscope.sources.jsonl import JSONLSource
from actscope.sources.prompt_set import PromptSetSource
from actscope.sources.text import TextSource


@pytest.mark.parametrize(
    ("name", "kind"),
    [
        ("a.jsonl", JSONLSource),
        ("a.NDJSON", JSONLSource),
        ("a.csv", CSVSource),
        ("a.tsv", CSVSource),
        ("a.txt", TextSource),
        ("a.json", PromptSetSource),
    ],
)
def test_the_ending_tells_the_format(tmp_path, name, kind):
    path = tmp_path / name
    path.write_text("")
    assert type(open_source(path)) is kind
    assert type(open_source(str(path), text_field=None, id_field=None)) is kind


def test_a_folder_is_texts(tmp_path):
    (tmp_path / "a.txt").write_text("x")
    assert type(open_source(tmp_path)) is FolderSource
    assert type(open_source(f"folder:{tmp_path}")) is FolderSource


def test_a_prefix_tells_it_too(tmp_path):
    path = tmp_path / "log"
    path.write_text('{"q": "x"}\n')
    [example] = open_source(f"jsonl:{path}", text_field="q").examples()
    assert example.text == "x"
    assert [e.text for e in open_source(f"text:{path}").examples()] == ['{"q": "x"}']
    assert type(open_source("inline:jsonl: a text")) is InlineSource
    path = tmp_path / "set"
    path.write_text("")
    assert type(open_source(f"prompt-set:{path}")) is PromptSetSource


def test_a_home_folder_is_found(tmp_path, monkeypatch):
    monkeypatch.setenv("HOME", str(tmp_path))
    (tmp_path / "a.txt").write_text("x")
    assert len(open_source("~/a.txt")) == 1


@pytest.mark.parametrize(
    ("spec", "options", "error", "says"),
    [
        ("{}/prompts.jsonl", {}, SourceError, r"there is no file(.|\n)*mean .*prompt\.jsonl"),
        ("{}/x.csv", {}, SourceError, "check the path"),
        ("josnl:{}/prompt.jsonl.x", {}, SourceError, "stand before it: one of censorship:, csv:"),
        ("{}/notes.doc", {}, SourceError, "cannot tell the format(.|\n)*'.doc'(.|\n)*jsonl:"),
        ("jsonl:{}", {}, SourceError, "is a folder"),
        ("", {}, SourceError, "no name"),
        ("text:", {}, SourceError, "is a folder"),
        ("a\0b.txt", {}, SourceError, r"a\\x00b"),
        ("{}/" + "n" * 300 + ".txt", {}, SourceError, "cannot look for|there is no file"),
        ("demo:text", {}, UnknownNameError, "did you mean 'texts'"),
        ("demo:prompts/../../x", {}, UnknownNameError, "unknown demo data"),
        ("{}/notes.txt", {"text_field": "x"}, BadInputError, "'text' takes no text_field"),
        ("{}/prompt.jsonl", {"text_feild": "x"}, BadInputError, "no text_feild(.|\n)*text_field"),
        ("demo:texts", {"id_field": "x"}, BadInputError, "seed, instruction"),
    ],
)  # fmt: skip
def test_what_is_refused(tmp_path, spec, options, error, says):
    (tmp_path / "prompt.jsonl").write_text("")
    (tmp_path / "notes.doc").write_text("")
    (tmp_path / "notes.txt").write_text("")
    with pytest.raises(error, match=says):
        open_source(spec.replace("{}", str(tmp_path)), **options)


def test_demo_texts():
    texts = open_source("demo:texts")
    assert len(texts) == 20
    assert all(e.id.startswith(("long/", "short/")) for e in texts.examples())
    short = list(open_source("demo:texts/short").examples())
    assert len(short) == 10 and not any(e.text.endswith("\n") for e in short)


def test_demo_prompts():
    sets = sorted((files("actscope") / "demo" / "prompt_sets").iterdir(), key=lambda f: f.name)
    names = [f.name.removesuffix(".json") for f in sets if f.name.endswith(".json")]
    every = list(open_source("demo:prompts").examples())
    assert {e.id.partition("/")[0] for e in every} == set(names)
    assert sum(len(open_source(f"demo:prompts/{name}")) for name in names) == len(every)
    [first] = open_source("demo:prompts/single_trait").examples(0, 1)
    assert first.id == "1" and first.metadata["prompt_set"] == "single_trait"
    assert first.metadata["note"] and set(first.metadata) == {"note", "prompt_set"}


def test_demo_is_a_source_like_any_other():
    source = DemoSource("texts/long")
    assert source.fingerprint() == open_source("demo:texts/long/").fingerprint()
    assert [e.id for e in source.examples(2, 4)] == [e.id for e in source.examples()][2:4]


def test_the_room_is_open_without_heavy_libraries():
    script = (
        "import sys; from actscope.sources import open_source; open_source('demo:texts');"
        "print([m for m in ('torch', 'pyarrow', 'transformers') if m in sys.modules])"
    )
    done = subprocess.run(
        [sys.executable, "-c", script], capture_output=True, text=True, check=True, timeout=60
    )
    assert done.stdout.strip() == "[]"


def test_every_source_says_what_it_is():
    for name in SOURCES.names():
        assert SOURCES.get(name).__doc__
