"""Any module over any inputs: the image tower of a vision-language model."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from transformers import (
    CLIPVisionConfig,
    LlamaConfig,
    LlavaConfig,
    LlavaForConditionalGeneration,
)

from actscope import wrap_model
from actscope.core.errors import BadInputError, SiteUnavailableError, UnknownNameError

IMAGE = 95


def llava() -> Any:
    torch.manual_seed(0)
    vision = CLIPVisionConfig(
        hidden_size=16, intermediate_size=32, num_hidden_layers=3, num_attention_heads=2,
        image_size=8, patch_size=4,
    )  # fmt: skip
    text = LlamaConfig(
        vocab_size=96, hidden_size=32, intermediate_size=48, num_hidden_layers=3,
        num_attention_heads=4, num_key_value_heads=2,
    )  # fmt: skip
    config = LlavaConfig(vision_config=vision, text_config=text, image_token_id=IMAGE)
    return LlavaForConditionalGeneration(config).eval()


def hooks_of_ours(hf: Any) -> list[Any]:
    """Transformers leaves hooks of its own where it collects hidden states."""
    hooks = [h for m in hf.modules() for h in m._forward_hooks.values()]
    return [h for h in hooks if "actscope" in h.__module__]


def test_the_text_stack_is_found_and_the_image_tower_is_reached_by_path() -> None:
    hf = llava()
    model = wrap_model(hf)
    assert (model.n_layers, model.d_model) == (3, 32)
    path = next(n for n, _ in hf.named_modules() if n.endswith("encoder.layers.1"))
    with pytest.raises(SiteUnavailableError, match="returns no floating-point tensor"):
        model.expand(path)
    pixels = torch.randn(1, 3, 8, 8)
    ids = torch.tensor([[7, *[IMAGE] * 4, 8]])
    block = "model.language_model.layers.1"
    before = dict(hf.state_dict())
    found = model.read_modules([path, block], input_ids=ids, pixel_values=pixels)
    assert not hooks_of_ours(hf)
    with torch.no_grad():
        tower = hf.get_submodule(path.split(".encoder.")[0])
        expected = tower(pixels, output_hidden_states=True).hidden_states[2]
        text = hf(input_ids=ids, pixel_values=pixels, output_hidden_states=True).hidden_states[2]
    assert torch.equal(found[path][0], expected)
    assert torch.equal(found[block][0], text)
    assert found[path][0].shape == (1, 5, 16)
    assert all(torch.equal(before[k], v) for k, v in hf.state_dict().items())


def test_bad_input() -> None:
    hf = llava()
    model = wrap_model(hf)
    path = next(n for n, _ in hf.named_modules() if n.endswith("encoder.layers.1"))
    with pytest.raises(BadInputError, match="returned no floating-point tensor") as caught:
        model.read_modules([path], input_ids=torch.tensor([[7, 8]]))
    assert "pixel_values" in caught.value.next_step
    with pytest.raises(UnknownNameError):
        model.read_modules([path + "x"], input_ids=torch.tensor([[7, 8]]))
    with pytest.raises(BadInputError, match="no module"):
        model.read_modules([], input_ids=torch.tensor([[7, 8]]))
    assert not hooks_of_ours(hf)
