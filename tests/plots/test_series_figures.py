"""Lines, bars and reliability diagrams show the numbers they were given."""

import numpy as np
import pytest

from actscope.analysis.calibration import reliability
from actscope.core.errors import BadInputError
from actscope.plots.bars import Bars, bars_figure
from actscope.plots.reliability import reliability_figure
from actscope.plots.series import Series, series_figure
from actscope.plots.style import to_svg


def test_lines_their_intervals_and_controls_are_drawn():
    found = Series("probe", [0, 1, 2], [0.5, 0.7, 0.9], [0.4, 0.6, 0.8], [0.6, 0.8, 1.0])
    control = Series("shuffled", [0, 1, 2], [0.55, 0.56, 0.55], control=True)
    figure = series_figure(
        [found, control], xlabel="block", ylabel="AUROC", level=0.5, level_label="chance"
    )
    axes = figure.axes[0]
    drawn = {line.get_label(): list(line.get_ydata()) for line in axes.lines}
    assert drawn["probe"] == [0.5, 0.7, 0.9] and drawn["shuffled"] == [0.55, 0.56, 0.55]
    assert "chance" in drawn
    assert [s.tolist() for s in axes.collections[0].get_segments()][1] == [[1, 0.6], [1, 0.8]]
    assert axes.get_xticks().tolist() == [0, 1, 2]
    svg = to_svg(figure, "f1", "A plot")
    assert "AUROC" in svg and "shuffled" in svg


def test_bars_stand_side_by_side_and_must_fit_their_names():
    panel = Bars(["A", "B"], {"one": [0.2, 0.8], "two": [0.5, 0.5]}, "share", "letter",
                 {"one": [0.1, 0.7]}, {"one": [0.3, 0.9]})  # fmt: skip
    axes = bars_figure([panel]).axes[0]
    assert [p.get_height() for p in axes.patches] == [0.2, 0.8, 0.5, 0.5]
    assert axes.patches[0].get_x() < axes.patches[2].get_x() < axes.patches[1].get_x()
    with pytest.raises(BadInputError, match="one value a name"):
        bars_figure([Bars(["A"], {"one": [1.0, 2.0]}, "share")])
    with pytest.raises(BadInputError):
        bars_figure([])


def test_a_reliability_diagram_leaves_out_empty_bins():
    rng = np.random.default_rng(0)
    sure = rng.uniform(0.5, 1, 80)
    found = reliability(sure, rng.random(80) < sure)
    axes = reliability_figure({"base": found}).axes[0]
    points = axes.collections[0].get_offsets()
    assert len(points) == int((found.counts > 0).sum()) == 5
    full = found.counts > 0
    np.testing.assert_allclose(points[:, 1], found.accuracy[full])
    assert f"ECE {found.error:.3f}" in axes.collections[0].get_label()
