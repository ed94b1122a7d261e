"""What the resolver makes of unusual models: found by value, or refused with the reason."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import coverage_models
import hf_references as ref
import pytest
import torch
from small_network import VOCAB, Network
from torch import nn

from actscope import Batch, Site, wrap_model
from actscope.backends.hf import HFModel
from actscope.core.errors import ModelLoadError, SiteUnavailableError

TEXTS = [[9, 30, 12, 44, 51, 8, 23, 17], [60, 11, 35], [70, 9, 13, 25, 40]]


def tiny(name: str, dtype: torch.dtype = torch.float32) -> HFModel:
    return wrap_model(coverage_models.tiny_model(name, dtype))


def verified(model: HFModel, kind: str) -> list[bool]:
    return [status.verified for site, status in model.sites().items() if site.kind == kind]


def reason(model: HFModel, kind: str, layer: int | None = 0) -> str:
    return model.sites()[Site(kind, layer)].reason


def alone(model: HFModel, kind: str, layer: int) -> list[torch.Tensor]:
    """Rows of each text by itself: nothing can be mixed up."""
    return [model.capture([ids], sites=[Site(kind, layer)])[kind, layer][0] for ids in TEXTS]


def assert_close(ours: Any, theirs: Any) -> None:
    for a, b in zip(ours, theirs, strict=True):
        assert torch.allclose(a, b, rtol=1e-4, atol=1e-4 * float(b.abs().max()))


def test_shared_blocks_are_one_layer_for_each_call() -> None:
    model = tiny("encoder/albert")
    assert model.n_layers == 3
    batch = Batch.from_ids(TEXTS)
    captured = model.capture(batch, sites=["resid_pre", "resid_post"])
    states = ref.hf_forward(model.hf, batch).hidden_states
    for layer in range(3):
        for kind, state in (("resid_pre", states[layer]), ("resid_post", states[layer + 1])):
            rows = ref.rows_of(state, batch)
            assert all(map(torch.equal, captured[kind, layer], rows)), (kind, layer)
    first, last = (torch.cat(captured["resid_post", i]) for i in (0, -1))
    assert (first - last).abs().max() > 0.1


def test_a_module_that_runs_twice_is_read_at_the_right_call() -> None:
    model = tiny("nanochat")  # one norm, before the first block and behind the last
    path = "model.norm"
    calls: list[torch.Tensor] = []
    model.hf.get_submodule(path).register_forward_hook(lambda m, a, o: calls.append(o.clone()))
    captured = model.capture([TEXTS[0]], sites=["ln_final", "logits"])
    assert len(calls) == 2
    assert torch.equal(captured["ln_final"][0], calls[1][0])
    assert not torch.allclose(calls[0], calls[1])


def test_a_block_for_images_is_passed_by() -> None:
    model = tiny("mllama")
    assert model.n_layers == 3
    captured = model.capture(Batch.from_ids(TEXTS), sites=["resid_pre", "resid_post"])
    passing = ["resid_post", 0], ["resid_pre", 1], ["resid_post", 1], ["resid_pre", 2]
    streams = [torch.cat(captured[kind, layer]) for kind, layer in passing]
    assert all(torch.equal(streams[0], other) for other in streams[1:])
    assert "does not run on text" in reason(model, "attn_out", 1)
    with pytest.raises(SiteUnavailableError, match="does not run on text"):
        model.capture([TEXTS[0]], sites=["blocks.1.mlp_out"])


@pytest.mark.parametrize("name", ["xlnet", "cpmant", "gemma3n_text", "deepseek_v4"])
def test_unusual_layouts_give_each_text_its_own_rows(name: str) -> None:
    """Tokens first, a learnt prompt in front, several streams: beside others as alone."""
    model = tiny(name)
    together = model.capture(Batch.from_ids(TEXTS), sites=["resid_pre", "resid_post"])
    for layer in range(model.n_layers):
        assert [len(rows) for rows in together["resid_post", layer]] == [8, 3, 5]
        assert_close(together["resid_post", layer], alone(model, "resid_post", layer))
        assert_close(together["resid_pre", layer], alone(model, "resid_pre", layer))


def test_a_learnt_prompt_is_left_out() -> None:
    model = tiny("cpmant")
    seen: list[torch.Tensor] = []
    block = model.hf.cpmant.encoder.layers[1]
    block.register_forward_hook(lambda m, a, o: seen.append(o[0].clone()))
    captured = model.capture([TEXTS[0]], sites=["resid_post"], layers=[1, 2])
    whole = seen[0][0]
    assert len(whole) > len(TEXTS[0])
    assert torch.equal(captured["resid_post", 1][0], whole[-len(TEXTS[0]) :])
    assert "before the tokens left out" in reason(model, "resid_post")


def test_a_stream_that_is_halved_between_blocks_is_followed() -> None:
    model = tiny("rwkv")  # rescale_every = 2
    captured = model.capture([TEXTS[0]], sites=["resid_pre", "resid_post"])
    assert torch.equal(captured["resid_post", 1][0] / 2, captured["resid_pre", 2][0])
    assert torch.equal(captured["resid_post", 0][0], captured["resid_pre", 1][0])
    assert reason(model, "resid_pre", 2) == "output of the block before times 0.5, bitwise"


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
@pytest.mark.parametrize(
    ("name", "kind", "parts"),
    [
        ("granitemoehybrid", "mlp_out", ["block_sparse_moe", "shared_mlp"]),
        ("falcon_h1", "attn_out", ["mamba", "self_attn"]),
    ],
)
def test_what_two_modules_add_together_is_their_sum(
    name: str, kind: str, parts: list[str], dtype: torch.dtype
) -> None:
    model = tiny(name, dtype)
    kinds = ["resid_pre", "attn_out", "resid_mid", "mlp_out", "resid_post"]
    captured = model.capture(Batch.from_ids(TEXTS), sites=kinds)
    for layer in range(model.n_layers):
        assert all(f"layers.{layer}.{part}" in reason(model, kind, layer) for part in parts)
        pre, attn, mid, mlp, post = (torch.cat(captured[k, layer]) for k in kinds)
        assert torch.equal(pre + attn, mid) and torch.equal(mid + mlp, post)
        assert attn.abs().max() > 1e-3 and mlp.abs().max() > 1e-3


def test_a_block_that_adds_one_thing_has_no_other() -> None:
    model = tiny("nemotron_h")  # mixers and MLPs take turns
    assert verified(model, "attn_out") == [True, False, True, False]
    assert verified(model, "mlp_out") == [False, True, False, True]
    assert not any(verified(model, "resid_mid"))
    assert "adds one thing, which mixes tokens" in reason(model, "mlp_out", 0)
    captured = model.capture(Batch.from_ids(TEXTS), sites=["resid_pre", "resid_post"])
    for layer in range(4):
        kind = "attn_out" if layer % 2 == 0 else "mlp_out"
        added = model.capture(Batch.from_ids(TEXTS), sites=[kind], layers=[layer])[kind, layer]
        total = torch.cat(captured["resid_pre", layer]) + torch.cat(added)
        assert torch.allclose(total, torch.cat(captured["resid_post", layer]), atol=1e-6)


def test_float32_stream_of_a_half_precision_model() -> None:
    model = tiny("mamba", torch.bfloat16)
    captured = model.capture([TEXTS[0]], sites=["resid_pre", "attn_out", "resid_post"])
    pre, added, post = (captured[k, 1][0] for k in ("resid_pre", "attn_out", "resid_post"))
    assert (pre.dtype, added.dtype, post.dtype) == (torch.float32, torch.bfloat16, torch.float32)
    assert torch.equal(pre + added, post)


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_post_norm_blocks_have_a_mid_and_name_what_is_added_before_the_norm(
    dtype: torch.dtype,
) -> None:
    model = tiny("bert", dtype)
    assert verified(model, "resid_mid") == [True] * 3
    assert not any(verified(model, "attn_out") + verified(model, "mlp_out"))
    assert "normalises after adding: bert.encoder.layer.0.attention.output.dense" in reason(
        model, "attn_out"
    )
    batch = Batch.from_ids(TEXTS)
    norm = "bert.encoder.layer.1.attention.output.LayerNorm"
    theirs = ref.module_outputs(model.hf, [norm], batch)[norm]
    ours = model.capture(batch, sites=["resid_mid"], layers=[1])["resid_mid", 1]
    assert all(map(torch.equal, ours, ref.rows_of(theirs, batch)))


def test_a_normalised_stream_does_not_pass_for_a_plain_one_in_half_precision() -> None:
    """Block 0 of rwkv normalises first, which bfloat16 rounding could hide in a loose sum."""
    for dtype in (torch.float32, torch.bfloat16):
        model = tiny("rwkv", dtype)
        assert verified(model, "attn_out") == [False, True, True]
        assert "normalises or rescales" in reason(model, "attn_out")


def test_a_head_with_a_dense_layer_before_its_norm_is_no_final_norm() -> None:
    model = tiny("bert")
    assert not verified(model, "ln_final")[0]
    captured = model.capture([TEXTS[0]], sites=["resid_post", "logits"], layers=[-1])
    logits = model.unembed(captured["resid_post", -1][0])
    assert torch.equal(logits, captured["logits"][0])  # the whole head takes the place of a norm


def test_logits_of_a_head_that_reads_a_scaled_norm() -> None:
    for name in ("minicpm3", "inkling_text", "recurrent_gemma"):
        model = tiny(name)
        captured = model.capture([TEXTS[0]], sites=["resid_post", "logits"], layers=[-1])
        ours = model.unembed(torch.stack(captured["resid_post", -1]))
        assert torch.equal(ours, torch.stack(captured["logits"])), name


@pytest.mark.parametrize(
    ("name", "says"),
    [
        ("blt", "does not determine"),
        ("inkling2_text", "does not determine"),
        ("reformer", "are no tokens"),
        ("prophetnet", "are no tokens"),
        ("hrm_text", "receive bitwise"),
        ("seq2seq/t5", "stack='encoder'"),
        ("seq2seq/bart", "stack='encoder'"),
    ],
)
def test_what_has_no_stream_of_token_rows_is_refused(name: str, says: str) -> None:
    with pytest.raises(ModelLoadError, match=says):
        tiny(name)


@pytest.mark.parametrize("name", ["t5", "bart"])
def test_the_encoder_of_an_encoder_decoder_works_alone(name: str) -> None:
    model = tiny(f"encoder-of/{name}")
    batch = Batch.from_ids(TEXTS)
    captured = model.capture(batch, sites=["resid_post"])
    states = ref.hf_forward(model.hf, batch).hidden_states
    for layer in range(model.n_layers - 1):
        rows = ref.rows_of(states[layer + 1], batch)
        assert all(map(torch.equal, captured["resid_post", layer], rows))


# Planted habits -----------------------------------------------------------------------------------


def test_the_small_network_is_found() -> None:
    model = wrap_model(Network())
    kinds = ("embed", "resid_pre", "resid_mid", "resid_post", "attn_out", "mlp_out", "ln_final")
    assert all(all(verified(model, kind)) for kind in kinds)
    assert model.causal


@pytest.mark.parametrize(
    ("habit", "says"),
    [
        ("bias outside", "returned by no module"),
        ("rescaled", "normalises or rescales"),
    ],
)
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_what_does_not_close_is_refused_with_the_reason(
    habit: str, says: str, dtype: torch.dtype
) -> None:
    model = wrap_model(Network(habit).to(dtype))
    for kind in ("attn_out", "mlp_out"):
        assert not any(verified(model, kind))
        assert says in reason(model, kind, 1)
    assert all(verified(model, "resid_post"))


def test_two_mlps_make_one_contribution() -> None:
    model = wrap_model(Network("two MLPs"))
    assert reason(model, "mlp_out").endswith("layers.0.mlp + layers.0.extra")
    ids = [[1, 2, 3, 4, 5]]
    kinds = ["resid_mid", "mlp_out", "resid_post"]
    captured = model.capture(ids, sites=kinds)
    mid, mlp, post = (captured[k, 2][0] for k in kinds)
    assert torch.equal(mid + mlp, post)
    block = model.hf.layers[2]
    normed = block.ln2(mid)
    assert torch.allclose(mlp, block.mlp(normed) + block.extra(normed), atol=1e-6)


def test_an_mlp_that_comes_first_is_still_the_mlp() -> None:
    model = wrap_model(Network("mlp first"))
    captured = model.capture([[1, 2, 3, 4]], sites=["resid_pre", "attn_out", "mlp_out"])
    pre, attn, mlp = (captured[k, 1][0] for k in ("resid_pre", "attn_out", "mlp_out"))
    block = model.hf.layers[1]
    assert torch.equal(mlp, block.mlp(block.ln1(pre)))
    assert torch.equal(attn, block.attn(block.ln2(pre + mlp)[None])[0])
    assert "the MLP comes first" in reason(model, "resid_mid")


@pytest.mark.parametrize("tail", ["mixes", "reads the start"])
def test_a_stack_that_is_not_the_whole_model_is_refused(tail: str) -> None:
    with pytest.raises(ModelLoadError, match="does not determine the model's output"):
        wrap_model(Network(tail=tail))


def test_a_norm_behind_a_dense_layer_is_not_the_final_norm() -> None:
    model = wrap_model(Network(tail="dense before norm"))
    assert not verified(model, "ln_final")[0]


class _Classifier(nn.Module):
    """A model that returns a class of the text, not token rows."""

    def __init__(self) -> None:
        super().__init__()
        self.body = Network()
        self.classes = nn.Linear(VOCAB, 3)

    def forward(self, input_ids: torch.Tensor) -> torch.Tensor:
        return self.classes(self.body(input_ids).logits[:, -1])


class _Silent(Network):
    """A model whose answer nobody can compare."""

    def forward(self, input_ids: torch.Tensor) -> Any:
        super().forward(input_ids)
        return None


@pytest.mark.parametrize("make", [_Classifier, _Silent])
def test_models_that_return_no_token_rows_are_taken(make: Callable[[], nn.Module]) -> None:
    model = wrap_model(make())
    assert all(verified(model, "attn_out") + verified(model, "resid_post"))


def test_a_part_too_small_to_show_is_no_contribution_in_half_precision() -> None:
    """A norm's output times a tiny constant of the configuration vanishes in the rounding."""
    model = wrap_model(coverage_models.tiny_model("zamba2", torch.bfloat16))
    got = model.capture([[9, 10, 11, 12]], sites=[Site("attn_out", 0), Site("resid_post", 0)])
    assert float(got["attn_out", 0][0].float().abs().max()) > 0.1
    assert not model.sites()[Site("mlp_out", 0)].verified
