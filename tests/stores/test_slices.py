"""Parts of a run: conditions on examples, spans of tokens, data frames; against plain loops."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from stored_runs import SITE, batch_of, record, run_of

from actscope.core.activations import TokenRow
from actscope.core.errors import BadInputError, ExampleError, UnknownNameError
from actscope.core.text import Span
from actscope.selectors import select
from actscope.stores import Run, ShardStorage, open_run
from actscope.stores._slice import rows_in_span
from actscope.stores._where import Where


@pytest.fixture(scope="module")
def run(tmp_path_factory: pytest.TempPathFactory) -> Run:
    return run_of(tmp_path_factory.mktemp("slices"))


CONDITIONS = [
    ("category == 'refusal'", lambda r: r.metadata["category"] == "refusal"),
    ("category != 'refusal' and n_tokens > 4",
     lambda r: r.metadata["category"] != "refusal" and r.n_tokens > 4),
    ("not (index < 3 or score >= 0.8)",
     lambda r: not (r.index < 3 or r.metadata["score"] >= 0.8)),
    ("metadata.deep['a b'] in [1, 2, 9]", lambda r: r.metadata["deep"]["a b"] in (1, 2, 9)),
    ("'1' in text and 'x' in tags", lambda r: "1" in r.text and "x" in r.metadata["tags"]),
    ("'x' not in tags", lambda r: "x" not in r.metadata["tags"]),
    ("2 <= index < 7", lambda r: 2 <= r.index < 7),
    ("response == null", lambda r: True),
    ("response < 'b'", lambda r: False),
    ("tags", lambda r: bool(r.metadata["tags"])),
    ("score > -1", lambda r: True),
]  # fmt: skip


@pytest.mark.parametrize(("condition", "plain"), CONDITIONS)
def test_conditions(run: Run, condition: str, plain: Any) -> None:
    wanted = [r.id for r in run.examples if plain(r)]
    part = run.where(condition)
    assert [r.id for r in part.examples] == wanted
    assert len(part) == len(wanted)
    rows = [run.array(SITE, example=i) for i, r in enumerate(run.examples) if plain(r)]
    expected = np.concatenate(rows) if rows else np.zeros((0, 4), np.float32)
    assert np.array_equal(part.numpy(SITE), expected)
    assert np.array_equal(part.stack("resid_post", 1).numpy(), expected)
    assert part.offsets.tolist() == [0, *np.cumsum([len(x) for x in rows]).tolist()]


@pytest.mark.parametrize(
    ("condition", "says"),
    [
        ("category = 'refusal'", "no condition"),
        ("category == ", "no condition"),
        ("", "no condition"),
        ("__import__('os').system('true')", "neither a field"),
        ("(lambda: 1)()", "neither a field"),
        ("[x for x in text]", "neither a field"),
        ("index is 3", "no comparison"),
        ("text.upper == 'A'", "no fields of its own"),
        ("index[1:2] == 3", "no field"),
        ("f'{index}' == '3'", "neither a field"),
        ("index + 1 == 3", "neither a field"),
        ("b'x' == text", "no text, number"),
        ("not " * 2000 + "index", "no condition"),
        ("(" * 400 + "index" + ")" * 400, "no condition"),
        ("index == 1" + " " * 10_001, "too long"),
        ("\0", "no condition"),
    ],
)
def test_what_is_no_condition(run: Run, condition: str, says: str) -> None:
    with pytest.raises(BadInputError, match=says):
        run.where(condition)


def test_a_field_that_no_example_has_is_named(run: Run) -> None:
    with pytest.raises(UnknownNameError, match="categroy") as caught:
        run.where("categroy == 'refusal'")
    assert "category" in str(caught.value)
    assert len(run.where("metadata.deep == 3")) == 0
    with pytest.raises(UnknownNameError):
        run.where("metadata.missing == 3")


def test_values_without_an_order_are_refused(run: Run) -> None:
    with pytest.raises(BadInputError, match="no order"):
        run.where("category < 3")
    with pytest.raises(BadInputError, match="looks into"):
        run.where("'a' in index")


def test_parts_of_parts(run: Run) -> None:
    part = run.where("category == 'refusal'").where("index > 4").take([-1, 0])
    assert [r.index for r in part.examples] == [10, 6]
    assert np.array_equal(part.array(SITE, example=0), run.array(SITE, example=10))
    assert part.tokens(1).tolist() == run.tokens(6).tolist()
    assert part.phase(1).tolist() == run.phase(6).tolist()
    assert [r.index for r in part.examples[:1]] == [10] and part.examples[-1].index == 6
    with pytest.raises(BadInputError, match="no such example"):
        part.get(SITE, example=2)


SPANS = ["all", "prompt", "response", "think", "answer", "last:2", "1:3", "-3:-1", ":2", "4:"]


@pytest.mark.parametrize("text", SPANS)
def test_spans_are_those_of_a_capture(run: Run, text: str) -> None:
    span = Span.parse(text)
    part = run.span(text)
    for i in range(len(run)):
        phase = run.phase(i).numpy()
        row = TokenRow(str(i), np.arange(len(phase)), phase, np.zeros(len(phase), np.bool_))
        try:
            wanted = select(row, span)
        except ExampleError:
            wanted = np.zeros(0, np.int64)
        assert np.array_equal(part.array(SITE, example=i), run.array(SITE, example=i)[wanted])
        assert part.positions(i).tolist() == wanted.tolist()
    assert len(part.stack(SITE)) == part.offsets[-1]


@settings(deadline=None)
@given(st.integers(1, 9), st.data())
def test_rows_of_a_run_that_kept_only_some_tokens(n: int, data: Any) -> None:
    phase = np.array(data.draw(st.lists(st.integers(0, 2), min_size=n, max_size=n)), np.uint8)
    positions = np.array(sorted(data.draw(st.sets(st.integers(0, n - 1)))), np.int64)
    span = Span.parse(data.draw(st.sampled_from(SPANS)))
    row = TokenRow("x", np.arange(n), phase, np.zeros(n, np.bool_))
    try:
        wanted = set(select(row, span).tolist())
    except ExampleError:
        wanted = set()
    found = rows_in_span(phase, positions, span)
    assert positions[found].tolist() == [p for p in positions.tolist() if p in wanted]


def test_spans_that_a_run_cannot_know(run: Run, tmp_path: Path) -> None:
    for text in ("user", "match:a", "all-special"):
        with pytest.raises(BadInputError, match="does not know which tokens"):
            run.span(text)
    with pytest.raises(BadInputError, match="cut by a span already"):
        run.span("prompt").span("last:1")
    pooled = run_of(tmp_path, pooled=True)
    with pytest.raises(BadInputError, match="nothing to cut"):
        pooled.span("prompt")
    part = pooled.where("index > 5")
    assert np.array_equal(part.numpy(SITE), pooled.numpy(SITE)[6:])
    assert part.get(SITE, example=0).shape == (4,)


def test_what_is_read_is_the_callers_own(run: Run) -> None:
    part = run.span("prompt")
    part.get(SITE, example=0)[:] = 7
    assert not (run.array(SITE, example=0) == 7).any()


def test_a_frame_has_a_row_for_each_example(run: Run) -> None:
    frame = run.where("index < 5").frame()
    assert list(frame["id"]) == [f"e{i}" for i in range(5)]
    assert list(frame["category"]) == ["refusal", "plain", "refusal", "odd", "refusal"]
    assert frame["score"].tolist() == [0.0, 0.1, 0.2, 0.3, 0.4]
    assert frame.loc[3, "deep"] == {"a b": 3}
    assert run.frame().groupby("category")["n_tokens"].mean()["refusal"] == 4.0
    nobody = run.where("index < 0").frame()
    assert len(nobody) == 0 and list(nobody["n_tokens"]) == []


def test_a_metadata_field_named_like_a_record_field() -> None:
    records = [record(0, text="other", id=9)]
    from actscope.stores._frame import frame_of

    frame = frame_of(records)
    assert frame.loc[0, "text"] == "text 0" and frame.loc[0, "metadata.text"] == "other"
    assert Where.parse("metadata.id == 9").matches(records[0])
    assert not Where.parse("id == 9").matches(records[0])


def test_examples_by_id(run: Run) -> None:
    assert np.array_equal(run.array(SITE, example="e7"), run.array(SITE, example=7))
    assert torch.equal(run.get("resid_post", 1, example="e7"), run.get(SITE, example=7))
    assert run.tokens("e3").tolist() == run.tokens(3).tolist()
    assert run.phase("e3").tolist() == run.phase(3).tolist()
    assert run.positions("e3").tolist() == run.positions(3).tolist()
    assert torch.equal(run.cache("e3")["resid_post", 1], run.get(SITE, example=3))
    part = run.take(["e10", 6, "e6", np.int64(-1)])
    assert [r.index for r in part.examples] == [10, 6, 6, 11]
    assert np.array_equal(part.array(SITE, example="e6"), run.array(SITE, example=6))
    with pytest.raises(BadInputError, match=r"no example has this id.*\n.*'e3'.*\n.*'e6'"):
        part.get(SITE, example="e3")


@pytest.mark.parametrize("example", ["t3", 3.0, None, [1], 12, -13])
def test_what_is_no_example(run: Run, example: Any) -> None:
    for part in (run, run.where("index >= 0")):
        with pytest.raises(BadInputError, match="example"):
            part.get(SITE, example=example)
        with pytest.raises(BadInputError, match="example"):
            part.take([example])


@pytest.mark.parametrize("layer", ["1", 1.0, True, [1]])
def test_what_is_no_layer(run: Run, layer: Any) -> None:
    for part in (run, run.take([0])):
        for read in (part.stack, part.numpy, part.dataset):
            with pytest.raises(BadInputError, match="whole number"):
                read("resid_post", layer)
    assert run.site("resid_post", np.int64(1)) == SITE


def test_answers_of_a_run_that_has_none(run: Run, tmp_path: Path) -> None:
    """Of a run with answers, examples without one have no rows; else the question is wrong."""
    assert len(run.where("index == 0").span("response").stack(SITE)) == 0
    writer = ShardStorage(tmp_path).open_run("prompts", None, None)
    writer.append("u", batch_of([record(0), record(4)], 0), {})
    writer.close()
    prompts = open_run(tmp_path / "prompts")
    assert len(prompts.span("prompt").stack(SITE)) == 6
    for span in ("response", "think"):
        with pytest.raises(BadInputError, match="no example of this run has an answer"):
            prompts.span(span)
