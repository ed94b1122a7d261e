"""Call the user's model the way it wants to be called, and no other way."""

from __future__ import annotations

import inspect
from functools import lru_cache
from typing import Any

import torch
from torch import nn

from actscope.backends.hf.stacks import EncoderText, reads_two_texts
from actscope.core.errors import BadInputError, ModelLoadError

__all__ = ["forward", "forward_cached", "text_config", "token_embedding"]


def forward(
    model: nn.Module,
    input_ids: torch.Tensor,
    attention_mask: torch.Tensor,
    *,
    left_padded: bool = False,
    encoder: EncoderText | None = None,
) -> Any:
    """One forward pass without a cache.

    Position ids follow the mask. With padding on the right that is what models do by themselves;
    with padding on the left they are passed explicitly where the model takes them.

    Args:
        model: The Hugging Face model, or any module that takes ``input_ids``.
        input_ids: ``[n, pos]``.
        attention_mask: ``[n, pos]``, 1 on tokens.
        left_padded: Whether padding is on the left.
        encoder: What the encoder reads, where the ids are the decoder's.

    Raises:
        BadInputError: an encoder-decoder whose encoder has nothing to read.
    """
    accepted = _parameters(type(model))
    arguments: dict[str, Any] = {}
    if "use_cache" in accepted:
        arguments["use_cache"] = False
    if reads_two_texts(model):
        return _decoder_forward(model, input_ids, attention_mask, encoder, arguments)
    if "attention_mask" in accepted:
        arguments["attention_mask"] = attention_mask
    if left_padded and "position_ids" in accepted:
        positions = attention_mask.long().cumsum(-1) - 1
        arguments["position_ids"] = positions.clamp_min(0)
    if "input_ids" in accepted:
        return model(input_ids=input_ids, **arguments)
    return model(input_ids, **arguments)


def forward_cached(
    model: nn.Module,
    input_ids: torch.Tensor,
    attention_mask: torch.Tensor,
    position_ids: torch.Tensor,
    cache: Any,
) -> Any:
    """One forward pass that reads and fills a cache; without logits where the model allows it.

    Args:
        model: A causal Hugging Face model.
        input_ids: ``[n, new]``.
        attention_mask: ``[n, cached + new]``, 1 on tokens.
        position_ids: ``[n, new]``.
        cache: A ``transformers`` cache.

    Raises:
        TypeError: the model takes no cache.
    """
    accepted = _parameters(type(model))
    if "past_key_values" not in accepted:
        raise TypeError(f"{type(model).__name__} takes no past_key_values")
    arguments: dict[str, Any] = {"use_cache": True, "past_key_values": cache}
    if "position_ids" in accepted:
        arguments["position_ids"] = position_ids
    if "logits_to_keep" in accepted:
        arguments["logits_to_keep"] = 1
    return model(input_ids=input_ids, attention_mask=attention_mask, **arguments)


def _decoder_forward(
    model: nn.Module,
    ids: torch.Tensor,
    mask: torch.Tensor,
    encoder: EncoderText | None,
    arguments: dict[str, Any],
) -> Any:
    if encoder is None:
        raise BadInputError(
            "the encoder has nothing to read: these are token ids of the decoder alone",
            next_step="pass texts or examples: the encoder reads their text, the decoder reads "
            "metadata['target']",
        )
    read, read_mask = encoder
    return model(
        input_ids=read,
        attention_mask=read_mask,
        decoder_input_ids=ids,
        decoder_attention_mask=mask,
        **arguments,
    )


@lru_cache(maxsize=64)
def _parameters(model_type: type[nn.Module]) -> frozenset[str]:
    return frozenset(inspect.signature(model_type.forward).parameters)


def text_config(model: nn.Module) -> Any:
    """The configuration of the part that reads text: of a wrapper, its text model's."""
    config = getattr(model, "config", None)
    getter = getattr(config, "get_text_config", None)
    return getter(decoder=True) if callable(getter) else config


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
