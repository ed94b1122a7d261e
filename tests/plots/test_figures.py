"""Figures hold the numbers they were given: their arrays are read back, not their pixels."""

import re
import subprocess
import sys

import matplotlib as mpl
import numpy as np
import pytest

from actscope.analysis.norms import norms_by_layer
from actscope.analysis.similarity import cosine_matrix
from actscope.core.errors import BadInputError
from actscope.plots.logit_lens import LensTokens, logit_lens_figure
from actscope.plots.norms import norms_figure
from actscope.plots.similarity import similarity_figure
from actscope.plots.style import to_png, to_svg
from actscope.plots.token_text import shortened, visible


def norms(first_times=1.0, layers=4, growth=1.5):
    rng = np.random.default_rng(0)
    is_first = np.arange(60) % 20 == 0
    values = {}
    for layer in range(layers):
        values[layer] = rng.uniform(9, 11, 60) * growth**layer
        values[layer][is_first] *= first_times
    return norms_by_layer(values, is_first)


def test_norms_draw_medians_and_quartiles():
    found = norms()
    (axes,) = norms_figure(found).axes
    (line,) = axes.lines
    assert line.get_xdata().tolist() == [0, 1, 2, 3]
    assert line.get_ydata().tolist() == [s.median for s in found.later]
    (band,) = axes.collections
    edges = band.get_paths()[0].vertices[:, 1]
    assert edges.min() == min(s.q25 for s in found.later)
    assert edges.max() == max(s.q75 for s in found.later)
    assert axes.get_yscale() == "linear"
    assert axes.get_ylim()[0] == 0
    assert axes.get_ylabel() == "L2 norm of resid_post"


def test_dominant_first_tokens_are_a_line_of_their_own_on_a_log_axis():
    found = norms(first_times=300)
    (axes,) = norms_figure(found).axes
    later, first = axes.lines
    assert first.get_ydata().tolist() == [s.median for s in found.first]
    assert later.get_ydata().tolist() == [s.median for s in found.later]
    assert axes.get_yscale() == "log"
    labels = [t.get_text() for t in axes.get_legend().get_texts()]
    assert labels[0] == "later tokens, median" and labels[2] == "first token, median"


def test_many_layers_have_few_ticks_and_no_numbers_are_drawn_as_nothing():
    (axes,) = norms_figure(norms(layers=80, growth=1.0)).axes
    assert len(axes.get_xticks()) <= 16
    empty = norms_by_layer({0: [np.nan, np.nan]}, np.array([True, False]))
    assert "<svg" in to_svg(norms_figure(empty), "e", "nothing")


def test_the_lens_shows_probabilities_guesses_and_what_is_right(lens, tokens):
    figure = logit_lens_figure(lens, tokens, answer_from=4)
    axes = figure.axes[0]
    image = axes.collections[0].get_array()
    np.testing.assert_array_equal(image.filled(np.nan), lens.actual_prob.T)
    assert bool(image.mask[4, 0])
    cells = {t.get_position(): t for t in axes.texts if t.get_text() not in HEADS}
    assert len(cells) == 9 * 3 - 1, "a row that is not finite has no guess"
    for (column, row), text in cells.items():
        assert text.get_text() == shortened(visible(tokens.top[column][row]), 13)
        assert (text.get_fontweight() == "bold") == (lens.actual_rank[column, row] == 1)
    assert [t.get_text() for t in axes.get_xticklabels()] == ["block 0", "block 2", "block 5"]
    inputs = [t.get_text() for t in axes.get_yticklabels()]
    assert inputs == [shortened(visible(t), 13) for t in tokens.inputs]
    (line,) = axes.lines
    assert line.get_ydata() == [3.5, 3.5]


HEADS = ("at token", "actual next")


def test_the_lens_can_be_coloured_by_rank(lens, tokens):
    figure = logit_lens_figure(lens, tokens, colour="rank")
    image = figure.axes[0].collections[0].get_array().filled(0)
    np.testing.assert_array_equal(image, lens.actual_rank.T)
    assert "<svg" in to_svg(figure, "r", "ranks")


def test_text_is_light_on_dark_and_dark_on_light(lens, tokens):
    axes = logit_lens_figure(lens, tokens).axes[0]
    for text in axes.texts:
        column, row = text.get_position()
        if text.get_text() in HEADS:
            continue
        probability = lens.actual_prob[column, row]
        if probability > 0.8 or probability < 0.3:
            assert text.get_color() == ("white" if probability > 0.8 else "black")


def test_the_lens_refuses_words_that_do_not_fit(lens, tokens):
    with pytest.raises(BadInputError, match="a word for every cell"):
        logit_lens_figure(lens, LensTokens(tokens.inputs[:-1], tokens.actual, tokens.top))
    with pytest.raises(BadInputError, match="probability or rank"):
        logit_lens_figure(lens, tokens, colour="mood")


def test_similarity_is_viridis_from_minus_one_to_one_with_gaps():
    vectors = np.random.default_rng(0).normal(size=(5, 8))
    vectors[2] = 0
    cosine = cosine_matrix(vectors)
    figure = similarity_figure(cosine, ["a", "b$x$", "c<d>", "d\n", "e"], groups=[3])
    axes, bar = figure.axes
    image = axes.collections[0]
    np.testing.assert_array_equal(image.get_array().filled(np.nan), cosine)
    assert (image.cmap.name, image.norm.vmin, image.norm.vmax) == ("viridis", -1, 1)
    crosses = [line for line in axes.lines if line.get_marker() == "x"]
    assert len(crosses) == 9
    assert [t.get_text() for t in axes.get_yticklabels()] == ["a", "b$x$", "c<d>", "d⏎", "e"]
    assert len(axes.texts) == 16
    assert axes.texts[0].get_text() == "1.00"
    assert bar.get_ylabel() == "cosine similarity"


def test_many_items_show_no_numbers_and_sizes_must_agree():
    figure = similarity_figure(np.eye(20), [str(i) for i in range(20)])
    assert not figure.axes[0].texts
    with pytest.raises(BadInputError, match="one label a row"):
        similarity_figure(np.eye(3), ["a"])


def test_all_text_is_black(lens, tokens):
    figures = [
        norms_figure(norms(300), title="t"),
        similarity_figure(np.eye(3), list("abc"), title="t"),
        logit_lens_figure(lens, tokens, title="t"),
    ]
    for figure in figures:
        for axes in figure.axes:
            texts = [axes.title, axes.xaxis.label, axes.yaxis.label]
            texts += [*axes.get_xticklabels(), *axes.get_yticklabels()]
            assert {t.get_color() for t in texts} == {"black"}


def test_the_callers_settings_are_left_alone(lens, tokens):
    before = dict(mpl.rcParams)
    to_png(logit_lens_figure(lens, tokens))
    assert dict(mpl.rcParams) == before


def test_no_list_of_open_windows_is_used():
    code = (
        "import sys, numpy as np; from actscope.plots.similarity import similarity_figure as f;"
        "from actscope.plots.style import to_svg;"
        "assert 'matplotlib' not in sys.modules; to_svg(f(np.eye(2), 'ab'), 'a', 'b');"
        "assert 'matplotlib.pyplot' not in sys.modules"
    )
    subprocess.run([sys.executable, "-c", code], check=True, timeout=120)


def test_svg_ids_are_unique_to_the_figure_and_references_follow():
    figure = norms_figure(norms())
    one, other = (to_svg(figure, name, "words") for name in ("one", "two"))
    assert one.replace("one-", "two-") == other
    ids = set(re.findall(r'id="([^"]+)"', one))
    used = re.findall(r'(?:href="#|url\(#)([^")]+)', one)
    assert used and set(used) <= ids
    assert all(name.startswith("one-") for name in ids)


def test_drawing_twice_gives_the_same_bytes(lens, tokens):
    drawings = {to_svg(logit_lens_figure(lens, tokens), "a", "b") for _ in range(2)}
    assert len(drawings) == 1


def test_without_matplotlib_the_next_step_is_named(monkeypatch, lens, tokens):
    monkeypatch.setitem(sys.modules, "matplotlib", None)
    with pytest.raises(BadInputError, match=r"pip install 'actscope\[plots\]'"):
        logit_lens_figure(lens, tokens)
