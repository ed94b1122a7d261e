"""Probe curves and token strips hold the numbers they were given."""

import numpy as np
import pytest

from actscope.analysis.probes import ProbeCurve, ProbeScore
from actscope.core.errors import BadInputError
from actscope.plots.probe_curve import probe_curve_figure
from actscope.plots.style import some_of, text_colours, to_png, to_svg
from actscope.plots.token_strip import StripText, token_strip_figure
from actscope.plots.token_text import visible


def curve(n_layers=4, first=3):
    scores = tuple(
        ProbeScore(0.5 + 0.4 * i / n_layers, 0.4 + 0.3 * i / n_layers, 0.97, 0.62, 0.49, 80)
        for i in range(n_layers)
    )
    return ProbeCurve(tuple(range(first, first + n_layers)), scores, 0.66, 40, 5, 200)


def named(axes):
    return {artist.get_label(): artist for artist in [*axes.lines, *axes.collections]}


def test_a_probe_curve_draws_scores_intervals_control_and_chance():
    found = curve()
    (axes,) = probe_curve_figure(found).axes
    drawn = named(axes)
    assert drawn["linear probe"].get_xdata().tolist() == list(found.layers)
    assert drawn["linear probe"].get_ydata().tolist() == [s.auroc for s in found.scores]
    assert drawn["shuffled labels, mean"].get_ydata().tolist() == [0.49] * 4
    assert list(drawn["chance"].get_ydata()) == [0.5, 0.5]
    segments = drawn["95 % interval"].get_segments()
    assert [tuple(s[:, 1]) for s in segments] == [(s.low, s.high) for s in found.scores]
    grey = drawn["shuffled labels,\nup to 95th percentile"].get_paths()[0].vertices
    assert grey[:, 1].max() == 0.62
    assert (grey[:, 0].min(), grey[:, 0].max()) == (2.5, 6.5)
    assert (axes.get_xlabel(), axes.get_ylabel()) == ("block", "AUROC on held-out rows (0 to 1)")


def test_one_layer_and_many_layers_can_be_drawn():
    (axes,) = probe_curve_figure(curve(1)).axes
    assert list(axes.get_xticks()) == [3]
    (axes,) = probe_curve_figure(curve(80), title="found").axes
    assert len(axes.get_xticks()) <= 16 and axes.get_title("left") == "found"
    band = named(axes)["95 % interval"].get_paths()[0].vertices
    assert band[:, 1].max() == 0.97


def test_low_scores_stay_inside_the_axes():
    low = ProbeScore(0.1, 0.02, 0.2, 0.6, 0.5, 10)
    (axes,) = probe_curve_figure(ProbeCurve((0,), (low,), 0.6, 5, 5, 10)).axes
    assert axes.get_ylim()[0] < 0.02


WORDS = ["<bos>", " a$x$", "<script>", "\u202eb", "", " the\n", "plain", "words"]


def strip(values, **more):
    return token_strip_figure(
        [StripText(WORDS, values, 3, "first"), StripText(WORDS[:2], values[:2])],
        unit="projection (units)",
        **more,
    )


def test_a_strip_colours_every_token_by_its_value():
    values = np.array([900.0, -2, -1, 0, 0.5, 1, 1.5, 2])
    figure = strip(values, centre=0.5)
    axes, bar = figure.axes
    words = [t for t in axes.texts if t.get_text() not in ("first", "")]
    assert [t.get_text() for t in words] == [visible(w) for w in [*WORDS, *WORDS[:2]]]
    first, second = [c for c in axes.collections if len(c.get_facecolor()) > 1]
    red, blue = first.get_facecolor()[7], first.get_facecolor()[1]
    assert red[0] > red[2] and blue[2] > blue[0]
    neutral = first.get_facecolor()[4]
    assert np.ptp(neutral[:3]) < 0.02, "the centre is white"
    np.testing.assert_array_equal(first.get_facecolor()[:2], second.get_facecolor())
    assert bar.get_xlabel() == "projection (units)"
    low, high = bar.get_xlim()
    assert (low + high) / 2 == pytest.approx(0.5)
    assert high < 10, "a huge first token takes no colour from the others"


def test_the_answer_is_marked_where_it_begins():
    axes = strip(np.arange(8.0)).axes[0]
    (bar,) = [c for c in axes.collections if len(c.get_paths()) == 1]
    boxes = axes.collections[0].get_paths()
    x = bar.get_paths()[0].vertices[0, 0]
    assert x == pytest.approx(boxes[3].vertices[:, 0].min())
    no_answer = token_strip_figure([StripText(["a"], [1.0], answer_from=1)], unit="u")
    assert len(no_answer.axes[0].collections) == 1


def test_long_texts_are_wrapped_and_nothing_leaves_the_figure():
    figure = token_strip_figure([StripText([" wordy"] * 90, np.arange(90.0))], unit="u")
    axes = figure.axes[0]
    corners = np.concatenate([p.vertices for p in axes.collections[0].get_paths()])
    assert corners[:, 0].max() <= axes.get_xlim()[1] + 1e-9
    assert corners[:, 1].max() <= axes.get_ylim()[0] + 1e-9
    assert len(np.unique(corners[:, 1].round(3))) > 4


def test_text_is_legible_on_every_colour():
    ink = text_colours([[0, 0, 0, 1], [1, 1, 1, 1], [0.4, 0, 0.1, 1], [0.9, 0.9, 0.5, 1]])
    assert ink.tolist() == ["white", "black", "white", "black"]
    axes = strip(np.array([0.0, -5, -4, 0, 1, 2, 4, 5])).axes[0]
    boxes = axes.collections[0].get_facecolor()
    shown = [t for t in axes.texts if t.get_text() not in ("first", "")][: len(boxes)]
    for text, box in zip(shown, boxes, strict=True):
        assert text.get_color() == (
            "white" if box[:3] @ [0.2126, 0.7152, 0.0722] < 0.5 else "black"
        )
    assert {t.get_color() for t in shown} == {"white", "black"}


@pytest.mark.parametrize("values", [[np.nan] * 8, [0.0] * 8, [1, np.nan, np.inf, 2, 3, 4, 5, 6]])
def test_values_that_are_not_finite_or_all_alike_are_drawn(values):
    figure = strip(np.array(values, float))
    assert "<svg" in to_svg(figure, "s", "words")
    for box, value in zip(figure.axes[0].collections[0].get_facecolor(), values, strict=True):
        if not np.isfinite(value):
            assert box.tolist() == [1, 1, 1, 1]


def test_hostile_tokens_are_text_and_drawing_twice_gives_the_same_bytes():
    pages = {to_svg(strip(np.arange(8.0), title="t"), "s", "words") for _ in range(2)}
    assert len(pages) == 1
    assert "<script>" not in pages.pop()
    assert to_png(token_strip_figure([StripText(["日本"], [1.0])], unit="u")).startswith(b"\x89PNG")


def test_a_strip_needs_a_value_for_every_token():
    with pytest.raises(BadInputError, match="at least one text"):
        token_strip_figure([], unit="u")
    for tokens, values in ((["a"], []), ([], [])):
        with pytest.raises(BadInputError, match="one value a token"):
            token_strip_figure([StripText(tokens, values)], unit="u")


def test_some_of_many_layers():
    assert some_of([2, 4]) == [2, 4]
    assert len(some_of(range(100))) <= 16
