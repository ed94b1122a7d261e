"""A plain Hugging Face model and where its parts are, for the shapes of this benchmark."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import torch
from torch import nn
from transformers import AutoModelForCausalLM


def load_model(folder: Path) -> Any:
    """The saved model in float32, with its own choice of attention."""
    return AutoModelForCausalLM.from_pretrained(folder, dtype=torch.float32).eval()


def blocks(model: Any) -> list[nn.Module]:
    """The blocks of a llama, gpt2 or gpt_neox."""
    base = model.base_model
    return list(base.h if hasattr(base, "h") else base.layers)


def attention(block: nn.Module) -> nn.Module:
    """What a block calls its attention."""
    return next(
        getattr(block, name) for name in ("self_attn", "attn", "attention") if hasattr(block, name)
    )


@contextmanager
def eager_attention(model: Any) -> Iterator[None]:
    """The implementation that returns probabilities, for all blocks: there is no finer choice."""
    before = model.config._attn_implementation
    model.set_attn_implementation("eager")
    try:
        yield
    finally:
        model.set_attn_implementation(before)
