"""A LoRA adapter and interventions at once, in either order: peft's own model with plain hooks."""

from __future__ import annotations

import threading
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from lora_adapters import as_peft, save_adapter
from model_state import state_of

from actscope import Ablate, Add, DatasetRunner, Patch, ShardStorage, wrap_model
from actscope.capture import ActivationExtractor
from actscope.core.errors import BadInputError, RunMismatchError
from actscope.core.text import Example
from actscope.testing.tiny_models import tiny_model

IDS = [5, 6, 7, 8, 9, 10]
VECTOR = np.random.default_rng(3).standard_normal(32)
STEER = Add(VECTOR, layer=1, strength=4.0)
HEAD = Ablate(layer=1, site="z", heads=[2])


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    return save_adapter(tmp_path / "lora", tiny_model("llama"), target_modules="all-linear")


def ready(folder: Path) -> Any:
    model = wrap_model(tiny_model("llama"))
    model.load_adapter(str(folder))
    return model


def hooked(reference: Any) -> list[Any]:
    """The same two changes on peft's model, by plain hooks."""
    inner = reference.base_model.model.model.layers[1]
    step = torch.tensor(4.0 * VECTOR / np.linalg.norm(VECTOR), dtype=torch.float32)

    def zero(_module: Any, args: Any) -> Any:
        z = args[0].clone()
        z[..., 16:24] = 0
        return (z, *args[1:])

    def steer(_module: Any, _args: Any, output: Any) -> Any:
        return (
            output + step if isinstance(output, torch.Tensor) else (output[0] + step, *output[1:])
        )

    return [
        inner.self_attn.o_proj.register_forward_pre_hook(zero),
        inner.register_forward_hook(steer),
    ]


def logits_of(hf: Any) -> torch.Tensor:
    with torch.no_grad():
        return hf(input_ids=torch.tensor([IDS]), use_cache=False).logits[0]


def test_either_order_is_peft_with_hooks(folder: Path) -> None:
    reference = as_peft(tiny_model("llama"), folder)
    plain = logits_of(reference)
    hooked(reference)
    expected = logits_of(reference)
    assert not torch.equal(expected, plain)
    model = ready(folder)
    before = model.capture([IDS], "logits")["logits"][0]
    with model.adapter("lora"), model.intervene(HEAD, STEER) as applied:
        outside = model.capture([IDS], ["logits", "z", "pattern"])
    with model.intervene(HEAD, STEER) as again:
        base = model.capture([IDS], "logits")["logits"][0]
        with model.adapter("lora"):
            inside = model.capture([IDS], ["logits", "z", "pattern"])
            assert torch.equal(logits_of(model.hf), expected)  # hf itself
        assert torch.equal(model.capture([IDS], "logits")["logits"][0], base)
    for got in (outside, inside):
        assert torch.allclose(got["logits"][0], expected, atol=1e-5)
        assert torch.equal(got["logits"][0], outside["logits"][0])
        assert not got["z", 1][0][:, 2].any()
    assert not torch.equal(base, outside["logits"][0])
    assert applied.passes == 1
    assert [effect.passes for effect in again.effects] == [4, 4]
    assert torch.equal(model.capture([IDS], "logits")["logits"][0], before)
    with model.adapter("lora"):
        assert torch.equal(model.capture([IDS], "logits")["logits"][0], plain)


def test_generation_under_both_is_that_of_peft_with_hooks(folder: Path) -> None:
    reference = as_peft(tiny_model("llama"), folder)

    def greedy(hf: Any) -> list[int]:
        ids = torch.tensor([IDS])
        mask = torch.ones_like(ids)
        made = hf.generate(
            input_ids=ids, attention_mask=mask, max_new_tokens=8, do_sample=False, pad_token_id=0
        )
        return made[0].tolist()

    plain = greedy(reference)
    hooked(reference)
    expected = greedy(reference)
    assert expected != plain
    model = ready(folder)
    for contexts in (
        lambda: (model.adapter("lora"), model.intervene(HEAD, STEER)),
        lambda: (model.intervene(HEAD, STEER), model.adapter("lora")),
    ):
        first, second = contexts()
        with first, second:
            made = model.generate([IDS], max_new_tokens=8, temperature=0, sites="resid_post")
        assert made.rows[0].token_ids.tolist() == expected
        assert made.activations is not None
        assert made.activations.interventions
    with model.adapter("lora"):
        rows = model.generate([IDS], max_new_tokens=8, temperature=0).rows
    assert rows[0].token_ids.tolist() == plain


def test_the_record_names_both_and_no_run_resumes_as_another(folder: Path, tmp_path: Path) -> None:
    model = ready(folder)
    dataset = [{"id": "q", "token_ids": IDS}]

    def capture(run: str) -> None:
        extractor = ActivationExtractor(model, layers=[-1])
        DatasetRunner(dataset, extractor=extractor, storage=ShardStorage(tmp_path)).run(run_id=run)

    with model.intervene(STEER), model.adapter("lora"):
        assert model.identity.adapter is not None
        assert [done["name"] for done in model.identity.interventions] == ["add"]
        capture("both")
    with pytest.raises(RunMismatchError, match=r"model\."):
        capture("both")
    with model.adapter("lora"), pytest.raises(RunMismatchError, match=r"model\.interventions"):
        capture("both")
    with model.intervene(STEER), pytest.raises(RunMismatchError, match=r"model\.adapter"):
        capture("both")
    capture("plain")
    for context in (model.intervene(STEER), model.adapter("lora")):
        with context, pytest.raises(RunMismatchError):
            capture("plain")
    assert model.identity.adapter is None
    assert model.identity.interventions == ()


def test_an_exception_undoes_both(folder: Path) -> None:
    model = ready(folder)
    before = state_of(model.hf)
    for first, second in (
        (lambda: model.intervene(HEAD, STEER), lambda: model.adapter("lora")),
        (lambda: model.adapter("lora"), lambda: model.intervene(HEAD, STEER)),
    ):
        with pytest.raises(KeyboardInterrupt), first(), second():
            model.generate([IDS], max_new_tokens=2)
            raise KeyboardInterrupt
        assert state_of(model.hf) == before
        assert model.active_adapter is None


def test_a_switch_that_cannot_be_followed_leaves_everything_as_it_was(
    folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    model = ready(folder)
    with model.intervene(STEER) as applied:
        changed = model.capture([IDS], "logits")["logits"][0]
        found = type(model.interventions).checked_point

        def fails(self: Any, site: Any) -> Any:
            if model.active_adapter is not None:
                raise KeyboardInterrupt
            return found(self, site)

        monkeypatch.setattr(type(model.interventions), "checked_point", fails)
        with pytest.raises(KeyboardInterrupt):
            model.switch_adapter("lora")
        assert model.active_adapter is None
        assert torch.equal(model.capture([IDS], "logits")["logits"][0], changed)
    assert applied.passes == 2


def test_an_adapter_is_loaded_inside_an_intervention(folder: Path) -> None:
    model = wrap_model(tiny_model("llama"))
    reference = ready(folder)
    with model.intervene(HEAD, STEER) as applied:
        model.load_adapter(str(folder))
        assert applied.passes == 0
        with model.adapter("lora"):
            got = model.capture([IDS], "logits")["logits"][0]
    with reference.adapter("lora"), reference.intervene(HEAD, STEER):
        assert torch.equal(got, reference.capture([IDS], "logits")["logits"][0])
    assert model.adapters["lora"].identity == reference.adapters["lora"].identity


def test_a_patch_carries_the_plain_base_into_the_adapted_model(folder: Path) -> None:
    """Rows of a source are read when the context opens, whatever is switched on later."""
    model = ready(folder)
    base = model.capture([IDS], "resid_post", layers=[1])["resid_post", 1][0]
    with (
        model.intervene(Patch(Example("source", token_ids=tuple(IDS)), layer=1)),
        model.adapter("lora"),
    ):
        got = model.capture([IDS], "resid_post", layers=[1])["resid_post", 1][0]
    assert torch.equal(got, base)


def test_another_thread_cannot_switch(folder: Path) -> None:
    model = ready(folder)
    errors: list[Exception] = []

    def switch() -> None:
        try:
            model.switch_adapter("lora")
        except BadInputError as error:
            errors.append(error)

    with model.intervene(STEER):
        thread = threading.Thread(target=switch)
        thread.start()
        thread.join()
    assert "cannot switch an adapter" in str(errors[0])
    assert model.active_adapter is None


def test_gradients_and_attribution_follow_the_adapter(folder: Path) -> None:
    model = ready(folder)
    loss = model.logit_difference(3, 4)
    merged = wrap_model(as_peft(tiny_model("llama"), folder).merge_and_unload())
    with model.adapter("lora"):
        found = model.gradients([IDS], loss, ["z", "resid_mid"])
        parts = model.logit_attribution(IDS, 3, 4)
    expected = merged.gradients([IDS], loss, ["z", "resid_mid"])
    for kind in ("z", "resid_mid"):
        assert torch.allclose(found[kind, 0][0], expected[kind, 0][0], rtol=1e-3, atol=1e-5)
    theirs = merged.logit_attribution(IDS, 3, 4)
    for name in ("embed", "attn_out.1", "mlp_out.2"):
        assert parts[name] == pytest.approx(theirs[name], rel=1e-3, abs=1e-5)
    assert model.logit_attribution(IDS, 3, 4)["mlp_out.2"] != pytest.approx(theirs["mlp_out.2"])
