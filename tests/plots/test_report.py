"""The report is one well-formed page that runs nothing and fetches nothing."""

import re
from html.parser import HTMLParser

import numpy as np
import pytest

from actscope.core.errors import OutputFolderError
from actscope.plots.logit_lens import logit_lens_figure
from actscope.plots.report import Picture, Report, Section, Table, render_report, write_report
from actscope.plots.similarity import similarity_figure

EVIL = "<script>alert('x')</script>"
VOID = {"meta", "br", "hr", "img", "link", "input"}


class Page(HTMLParser):
    """Reads a page and fails where a tag is not closed."""

    def __init__(self, text):
        super().__init__()
        self.open, self.tags, self.attributes, self.text = [], [], [], []
        self.feed(text)
        self.close()
        assert self.open == []

    def handle_starttag(self, tag, attrs):
        self.tags.append(tag)
        self.attributes += attrs
        if tag not in VOID:
            self.open.append(tag)

    def handle_startendtag(self, tag, attrs):
        self.tags.append(tag)
        self.attributes += attrs

    def handle_endtag(self, tag):
        assert self.open.pop() == tag

    def handle_data(self, data):
        self.text.append(data)


@pytest.fixture
def report(lens, tokens):
    lens_picture = Picture(logit_lens_figure(lens, tokens), f'lens of "{EVIL}"')
    cosine = similarity_figure(np.eye(2), [EVIL, "b"], title=EVIL)
    return Report(
        title=EVIL,
        lead=f"lead {EVIL}",
        facts=[(EVIL, 3)],
        sections=[
            Section(f"First {EVIL}", [lens_picture], f"n = 9 {EVIL}"),
            Section(
                "Second",
                [Picture(cosine, "one", EVIL), Picture(cosine, "two")],
                tables=[Table(["token", "count#"], [(EVIL, 7), ("a  b\n", 8)], "of tokens")],
            ),
            Section("Third", tables=[Table(["x"], [], "empty")]),
        ],
        provenance=[("model", EVIL)],
    )


@pytest.fixture
def page(report):
    return Page(render_report(report))


def test_no_text_becomes_a_tag(page):
    assert "script" not in page.tags
    assert not [name for name, _ in page.attributes if name.startswith("on")]
    assert "".join(page.text).count(EVIL) >= 7


def test_the_page_fetches_nothing(report):
    text = render_report(report)
    known = ("http://www.w3.org/2000/svg", "http://www.w3.org/1999/xlink")
    assert set(re.findall(r"[a-z]+://[^\s\"'<>)]*", text)) <= set(known)
    page = Page(text)
    assert not {"link", "img", "iframe", "object", "base", "form"} & set(page.tags)
    for name, value in page.attributes:
        if name in ("src", "href", "xlink:href"):
            assert value.startswith(("#", "data:image/png;base64,")), value
        assert "url(" not in (value or "") or "url(#" in value
    assert "@import" not in text
    assert any("default-src 'none'" in (value or "") for _, value in page.attributes)


def test_figures_and_tables_are_counted(page):
    text = "".join(page.text)
    assert re.findall(r"(Figure|Table) (\d)\.", text) == [
        ("Figure", "1"), ("Figure", "2"), ("Table", "1"), ("Table", "2"),
    ]  # fmt: skip
    assert page.tags.count("svg") == 3
    assert page.tags.count("h1") == 1


def test_ids_are_unique(page):
    ids = [value for name, value in page.attributes if name == "id"]
    assert len(ids) == len(set(ids))


def test_tokens_of_a_figure_can_be_seen(page):
    text = "".join(page.text)
    for seen in ("·the⏎", "\\x00", "\\u202eabc", "$\\alpha_{", "∅", "日本"):
        assert seen in text


def test_numbers_flush_right_and_cells_are_verbatim(page):
    classes = [value for name, value in page.attributes if name == "class"]
    assert classes.count("number") == 3
    assert "a  b\n" in "".join(page.text)


def test_figures_are_described(page):
    labels = [value for name, value in page.attributes if name == "aria-label"]
    assert labels == [f'lens of "{EVIL}"', "one", "two"]


def test_writing_replaces_the_file_and_leaves_nothing_else(tmp_path, report):
    path = tmp_path / "new" / "report.html"
    write_report(Report("old"), path)
    write_report(report, path)
    assert [p.name for p in path.parent.iterdir()] == ["report.html"]
    Page(path.read_text(encoding="utf-8"))


def test_a_text_that_is_no_unicode_does_not_stop_the_page(tmp_path):
    path = write_report(Report("a\ud800b"), tmp_path / "r.html")
    assert "a?b" in path.read_text(encoding="utf-8")


def test_a_place_that_cannot_be_written(tmp_path):
    (tmp_path / "file").write_text("")
    with pytest.raises(OutputFolderError, match="cannot be written"):
        write_report(Report("x"), tmp_path / "file" / "report.html")
    (tmp_path / "folder").mkdir()
    with pytest.raises(OutputFolderError, match="cannot be written"):
        write_report(Report("x"), tmp_path / "folder")
    assert sorted(p.name for p in tmp_path.iterdir()) == ["file", "folder"]
