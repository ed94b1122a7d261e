"""Analysis results to draw."""

import numpy as np
import pytest

from actscope.analysis.logit_lens import lens_of_logits
from actscope.plots.logit_lens import LensTokens

WORDS = [
    "<script>alert(1)</script>",
    "$\\alpha_{",
    " the\n",
    "\x00",
    "\u202eabc",
    "&amp;",
    "-->",
    "日本",
    "",
    "plain",
]


@pytest.fixture
def lens():
    """Three layers, nine positions, ten words; one row of the first layer is NaN."""
    rng = np.random.default_rng(0)
    logits = list(rng.normal(size=(3, 10, 10)) * 3)
    logits[0][4] = np.nan
    return lens_of_logits(logits, np.arange(10), layers=[0, 2, 5])


@pytest.fixture
def tokens(lens):
    return LensTokens(
        inputs=WORDS[:-1],
        actual=[WORDS[i] for i in lens.actual_ids],
        top=[[WORDS[i] for i in row[:, 0]] for row in lens.top_ids],
    )
