"""Interventions at heads and neurons, against the same change made by a plain hook."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
import torch

from actscope import Ablate, Add, Clamp, DatasetRunner, Patch, ShardStorage, open_run, wrap_model
from actscope.capture import ActivationExtractor
from actscope.core.errors import BadInputError, SiteUnavailableError
from actscope.testing.tiny_models import tiny_model

IDS = [5, 6, 7, 8, 9, 10]
OUT_PROJ = {"llama": "model.layers.1.self_attn.o_proj", "gpt2": "transformer.h.1.attn.c_proj"}
DOWN = {"llama": "model.layers.1.mlp.down_proj", "gpt2": "transformer.h.1.mlp.c_proj"}
ACT = {"llama": "model.layers.1.mlp.act_fn", "gpt2": "transformer.h.1.mlp.act"}


def logits_with(hf: Any, path: str, edit: Any) -> torch.Tensor:
    """Hugging Face's own logits while a module's input is edited."""

    def hook(_module: Any, args: Any) -> Any:
        return (edit(args[0].clone()), *args[1:])

    handle = hf.get_submodule(path).register_forward_pre_hook(hook)
    with torch.no_grad():
        logits = hf(input_ids=torch.tensor([IDS]), use_cache=False).logits[0]
    handle.remove()
    return logits


def without(columns: slice | list[int], tokens: Any = slice(None)) -> Any:
    def edit(tensor: torch.Tensor) -> torch.Tensor:
        tensor[..., tokens, columns] = 0
        return tensor

    return edit


@pytest.mark.parametrize("family", ["llama", "gpt2"])
def test_a_head_is_ablated_where_its_output_is_mixed(family: str) -> None:
    model = wrap_model(tiny_model(family))
    d_head = model.width(model.expand("z", [1])[0]) // 4
    plain = model.capture([IDS], "logits")["logits"][0]
    with model.intervene(Ablate(layer=1, site="z", heads=[2])) as applied:
        got = model.capture([IDS], ["logits", "z", "pattern"])
    expected = logits_with(model.hf, OUT_PROJ[family], without(slice(2 * d_head, 3 * d_head)))
    assert torch.equal(got["logits"][0], expected)
    assert not torch.equal(expected, plain)
    assert got["z", 1][0].shape == (6, 4, d_head)
    assert not got["z", 1][0][:, 2].any()
    assert got["z", 1][0][:, [0, 1, 3]].ne(0).all()
    assert applied.effects[0].rows == 6
    assert got.interventions[0]["d_head"] == d_head


@pytest.mark.parametrize("family", ["llama", "gpt2"])
def test_neurons_after_and_before_the_activation(family: str) -> None:
    model = wrap_model(tiny_model(family))
    with model.intervene(Ablate(layer=1, site="mlp_post", neurons=[3, 17], tokens=[-1])):
        after = model.capture([IDS], "logits")["logits"][0]
    assert torch.equal(after, logits_with(model.hf, DOWN[family], without([3, 17], 5)))
    with model.intervene(Clamp(layer=1, site="mlp_pre", neurons=[3], value=0.0)):
        before = model.capture([IDS], "logits")["logits"][0]
    assert torch.equal(before, logits_with(model.hf, ACT[family], without([3])))
    assert not torch.equal(after, before)


def test_patterns_see_a_change_before_them_and_not_one_after() -> None:
    model = wrap_model(tiny_model("llama"))
    plain = model.capture([IDS], ["pattern", "q"])
    with model.intervene(Ablate(layer=1, site="z", heads=[0])):
        changed = model.capture([IDS], ["pattern", "q", "z"])
    for kind in ("pattern", "q"):
        assert torch.equal(changed[kind, 1][0], plain[kind, 1][0])
        assert not torch.equal(changed[kind, 2][0], plain[kind, 2][0])
    sums = changed["pattern", 2][0].sum(-1)
    assert torch.allclose(sums, torch.ones_like(sums), atol=1e-5)


def test_a_patch_of_heads_from_memory_and_from_disk(tmp_path: Any) -> None:
    model = wrap_model(tiny_model("llama"))
    other = [11, 12, 13, 14, 15, 16]
    source = model.capture([other], "z", layers=[1])
    dataset = [{"id": "source", "token_ids": other}]
    extractor = ActivationExtractor(model, layers=["z.1"])
    DatasetRunner(dataset, extractor=extractor, storage=ShardStorage(tmp_path)).run(run_id="r")
    rows = source["z", 1][0].flatten(1)

    def patched(tensor: torch.Tensor) -> torch.Tensor:
        tensor[0, :, 8:16] = rows[:, 8:16]
        return tensor

    expected = logits_with(model.hf, OUT_PROJ["llama"], patched)
    with open_run(tmp_path / "r") as run:
        for given in (source, run, rows):
            with model.intervene(Patch(given, layer=1, site="z", heads=[1])):
                assert torch.equal(model.capture([IDS], "logits")["logits"][0], expected)


def test_gradients_of_heads_and_neurons_are_those_of_torch() -> None:
    model = wrap_model(tiny_model("llama", torch.float64))
    loss = model.logit_difference(3, 4)
    found = model.gradients([IDS], loss, ["z", "mlp_post", "mlp_pre"], layers=[1])
    for kind, path in (("z", OUT_PROJ), ("mlp_post", DOWN), ("mlp_pre", ACT)):
        seen: list[torch.Tensor] = []

        def hook(_module: Any, args: Any, seen: list[torch.Tensor] = seen) -> Any:
            leaf = args[0].detach().requires_grad_()
            seen.append(leaf)
            return (leaf, *args[1:])

        handle = model.hf.get_submodule(path["llama"]).register_forward_pre_hook(hook)
        logits = model.hf(input_ids=torch.tensor([IDS]), use_cache=False).logits[0, -1]
        handle.remove()
        (gradient,) = torch.autograd.grad(logits[3] - logits[4], seen)
        assert gradient.abs().max() > 0
        np.testing.assert_allclose(found[kind, 1][0].flatten(1), gradient[0], atol=1e-12)


@pytest.mark.parametrize(
    ("what", "error", "says"),
    [
        (lambda: Ablate(layer=1, site="z", heads=[4]), BadInputError, "no head 4"),
        (lambda: Ablate(layer=1, site="z", heads=[1], d_head=4), BadInputError, "as wide as"),
        (lambda: Add(np.ones(5), layer=1, site="z", strength=1.0, heads=[0]), BadInputError, "5"),
        (lambda: Ablate(site="blocks.1.z.head[0]"), SiteUnavailableError, r"heads= or neurons="),
        (lambda: Ablate(layer=1, site="pattern"), SiteUnavailableError, r"resid_pre\) or"),
        (lambda: Ablate(layer=1, site="q"), SiteUnavailableError, "where attention runs"),
    ],
)
def test_what_does_not_fit_is_refused(what: Any, error: type[Exception], says: str) -> None:
    model = wrap_model(tiny_model("llama"))
    with pytest.raises(error, match=says):
        model.intervene(what())
