"""Call the user's model the way it wants to be called, and no other way."""

from __future__ import annotations

import inspect
from functools import lru_cache
from typing import Any

import torch
from torch import nn

from actscope.core.errors import ModelLoadError

__all__ = ["forward", "token_embedding"]


def forward(
    model: nn.Module,
    input_ids: torch.Tensor,
    attention_mask: torch.Tensor,
    *,
    left_padded: bool = False,
) -> Any:
    """One forward pass without a cache.

    Position ids follow the mask. With padding on the right that is what models do by themselves;
    with padding on the left they are passed explicitly where the model takes them.

    Args:
        model: The Hugging Face model, or any module that takes ``input_ids``.
        input_ids: ``[n, pos]``.
        attention_mask: ``[n, pos]``, 1 on tokens.
        left_padded: Whether padding is on the left.
    """
    accepted = _parameters(type(model))
    arguments: dict[str, Any] = {}
    if "attention_mask" in accepted:
        arguments["attention_mask"] = attention_mask
    if "use_cache" in accepted:
        arguments["use_cache"] = False
    if left_padded and "position_ids" in accepted:
        positions = attention_mask.long().cumsum(-1) - 1
        arguments["position_ids"] = positions.clamp_min(0)
    if "input_ids" in accepted:
        return model(input_ids=input_ids, **arguments)
    return model(input_ids, **arguments)


@lru_cache(maxsize=64)
def _parameters(model_type: type[nn.Module]) -> frozenset[str]:
    return frozenset(inspect.signature(model_type.forward).parameters)


def token_embedding(model: nn.Module) -> nn.Embedding:
    """The module that embeds token ids.

    Raises:
        ModelLoadError: there is none.
    """
    getter = getattr(model, "get_input_embeddings", None)
    found = getter() if callable(getter) else None
    if isinstance(found, nn.Embedding):
        return found
    for module in model.modules():
        if isinstance(module, nn.Embedding):
            return module
    raise ModelLoadError(
        f"{type(model).__name__} has no token embedding", expected="a model that takes token ids"
    )
