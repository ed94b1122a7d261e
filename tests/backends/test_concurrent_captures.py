"""Several threads on one model: each has its own rows, and nothing is left behind."""

from __future__ import annotations

import threading
from collections.abc import Callable
from typing import Any

import numpy as np
import pytest
import torch
from model_state import state_of

from actscope import Example, wrap_model
from actscope.backends.hf import HFModel
from actscope.backends.hf.exclusive import on_entering
from actscope.testing.tiny_models import VOCAB, tiny_model

SITES = "resid_post, q, pattern, mlp_post, logits"
ROUNDS = 40


def texts(seed: int) -> list[list[int]]:
    rng = np.random.default_rng(seed)
    return [rng.integers(3, VOCAB, n).tolist() for n in (12, 7, 9)]


def in_threads(*works: Callable[[], None]) -> list[BaseException]:
    """Run all at once; what they raise."""
    raised: list[BaseException] = []
    start = threading.Barrier(len(works))

    def run(work: Callable[[], None]) -> None:
        try:
            start.wait()
            work()
        except BaseException as error:
            raised.append(error)

    threads = [threading.Thread(target=run, args=(work,)) for work in works]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    return raised


def keeps_capturing(model: HFModel, inputs: list[list[int]]) -> Callable[[], None]:
    expected = model.capture(inputs, SITES)

    def work() -> None:
        for _ in range(ROUNDS):
            got = model.capture(inputs, SITES)
            for site in expected.sites:
                assert all(
                    torch.equal(a, b) for a, b in zip(expected[site], got[site], strict=True)
                ), site

    return work


def test_captures_of_two_threads_do_not_mix() -> None:
    model = wrap_model(tiny_model("llama"))
    before = state_of(model.hf)
    assert in_threads(*(keeps_capturing(model, texts(seed)) for seed in range(2))) == []
    assert state_of(model.hf) == before


def test_two_wrappers_of_one_model_do_not_mix() -> None:
    hf = tiny_model("llama")
    works = [keeps_capturing(wrap_model(hf), texts(seed)) for seed in range(2)]
    assert in_threads(*works) == []


def test_the_plain_model_in_another_thread_is_left_alone() -> None:
    model = wrap_model(tiny_model("llama"))
    ids = torch.tensor([texts(5)[0]])
    with torch.no_grad():
        expected = model.hf(ids).logits

    def plain() -> None:
        for _ in range(3 * ROUNDS):
            with torch.no_grad():
                assert torch.equal(model.hf(ids).logits, expected)

    assert in_threads(keeps_capturing(model, texts(0)), plain) == []


def test_answers_of_two_threads_leave_the_models_own_settings() -> None:
    hf = tiny_model("llama")
    model = wrap_model(hf)
    hf.generation_config.top_k = 17
    before = state_of(hf)
    prompts = [Example("a", token_ids=tuple(texts(0)[0]))]
    expected = model.generate(prompts, 4, seed=3, sites="resid_post")

    def answers() -> None:
        for _ in range(10):
            made = model.generate(prompts, 4, seed=3, sites="resid_post")
            assert made.rows[0].token_ids.tolist() == expected.rows[0].token_ids.tolist()
            pairs = zip(made.activations["resid_post", 1], expected.activations["resid_post", 1],
                        strict=True)  # fmt: skip
            assert all(torch.equal(a, b) for a, b in pairs)

    assert in_threads(answers, answers) == []
    assert state_of(hf) == before


def test_gradients_and_captures() -> None:
    model = wrap_model(tiny_model("gpt2"))
    inputs = texts(1)[:1]

    def loss(logits: Any, batch: Any) -> Any:
        return logits[:, -1, 5].sum()

    expected = model.gradients(inputs, loss, "resid_post")["resid_post", 0][0]

    def gradients() -> None:
        for _ in range(ROUNDS // 2):
            got = model.gradients(inputs, loss, "resid_post")["resid_post", 0][0]
            assert torch.equal(got, expected)

    assert in_threads(gradients, keeps_capturing(model, texts(0))) == []
    assert all(p.requires_grad for p in model.hf.parameters())


@pytest.mark.parametrize("family", ["llama", "gpt2"])
def test_a_capture_inside_a_capture(family: str) -> None:
    model = wrap_model(tiny_model(family))
    inputs = texts(2)
    expected = model.capture(inputs, "resid_post")
    inner: list[Any] = []

    def pooled(rows: torch.Tensor) -> torch.Tensor:
        inner.append(model.capture([texts(3)[0]], "resid_post"))
        return rows.mean(0)

    outer = model.capture(inputs, "resid_post", strategy=pooled)
    alone = model.capture([texts(3)[0]], "resid_post")
    for site in expected.sites:
        want = torch.stack([rows.mean(0) for rows in expected[site]])
        assert torch.allclose(outer[site], want, atol=1e-6)
        assert all(torch.equal(found[site][0], alone[site][0]) for found in inner)


def test_a_hook_that_was_removed_while_its_module_runs_is_left_out() -> None:
    module = torch.nn.Linear(2, 2)
    seen: list[str] = []
    handles = [on_entering(module, lambda *_: handles[1].remove())]
    handles.append(on_entering(module, lambda *_: seen.append("removed")))
    handles.append(on_entering(module, lambda *_: seen.append("kept")))
    module(torch.zeros(1, 2))
    assert seen == ["kept"]
