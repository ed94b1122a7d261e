"""The bundled model's refusals can be steered: measured on questions the direction has not seen."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest

import actscope
from actscope import Ablate, Add
from actscope.analysis.projection import difference_of_means
from actscope.sources import open_source


@pytest.fixture(scope="module")
def model() -> Any:
    return actscope.load_model("demo")


@pytest.fixture(scope="module")
def pairs() -> list[Any]:
    """Every request to refuse and its harmless twin."""
    examples = list(open_source("demo:censorship/marren").examples())
    by_id = {e.id: e for e in examples}
    asked = [e for e in examples if e.metadata["censorship_category"] == "refusal"]
    return [(e, by_id[e.metadata["twin"]]) for e in asked]


@pytest.fixture(scope="module")
def found(model: Any, pairs: list[Any]) -> tuple[int, Any]:
    """The layer whose means lie furthest apart in standard deviations, and its direction."""
    seen = pairs[::2]
    ends = [
        model.capture([p[i] for p in seen], chat=True, strategy="last", batch_tokens=512)
        for i in (0, 1)
    ]

    def of(layer: int) -> tuple[float, Any]:
        refused, answered = (end.numpy("resid_post", layer) for end in ends)
        v = difference_of_means(refused, answered)
        u = v / np.linalg.norm(v)
        spread = np.sqrt(((refused @ u).var() + (answered @ u).var()) / 2)
        return float(np.linalg.norm(v) / spread), v

    best = max(range(model.n_layers), key=lambda layer: of(layer)[0])
    return best, of(best)[1]


def refusals(model: Any, examples: list[Any]) -> float:
    texts = model.generate(examples, chat=True, temperature=0, max_new_tokens=12).texts
    return float(np.mean(["I am sorry" in text for text in texts]))


def test_against_the_direction_requests_are_answered_and_along_it_twins_are_refused(
    model: Any, pairs: list[Any], found: tuple[int, Any]
) -> None:
    layer, v = found
    gap = float(np.linalg.norm(v))
    requests, twins = ([p[i] for p in pairs[1::2]] for i in (0, 1))
    plain = refusals(model, requests), refusals(model, twins)
    assert plain[0] > plain[1]

    with model.intervene(Add(v, layer=layer, strength=-2 * gap)) as applied:
        against = refusals(model, requests)
    applied.check()
    assert applied.effects[0].projection == pytest.approx(-2 * gap, rel=1e-3)
    # Where the direction was read, and as far as the two means lie apart: every token moved
    # further than that is nowhere near what the model has seen, and its answer is no refusal.
    with model.intervene(Add(v, layer=layer, strength=gap, tokens=[-1])):
        along = refusals(model, twins)
    with model.intervene(Ablate(v, layer="all")):
        without = refusals(model, requests)
    assert against < plain[0] / 2
    assert without < plain[0] / 2
    assert along > plain[1] + 0.2

    # the control: other directions of that length do less
    rng = np.random.default_rng(0)
    for _ in range(3):
        noise = rng.standard_normal(len(v))
        with model.intervene(Add(noise, layer=layer, strength=-2 * gap)):
            assert abs(refusals(model, requests) - plain[0]) < plain[0] - against
    with model.intervene(Add(v, layer=layer, strength=0.0)):
        assert refusals(model, requests) == plain[0]
