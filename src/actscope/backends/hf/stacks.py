"""The two stacks of an encoder-decoder: which one is captured, and what the other one reads.

An encoder-decoder reads two texts, so a site has to say which stack it means. Each stack is wrapped
as a model of its own: the encoder alone is an ordinary encoder; the decoder runs with the whole
model around it, and every row carries the text that the encoder reads for it.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
import numpy.typing as npt
import torch
from torch import nn

from actscope.core.activations import Batch, TokenRow
from actscope.core.errors import ExampleError, ModelLoadError, UnknownNameError
from actscope.core.text import PROMPT, RESPONSE, Example

__all__ = [
    "STACKS",
    "EncoderText",
    "answer_start",
    "chosen_stack",
    "decoder_row",
    "encoder_text",
    "prompt_rows",
    "reads_two_texts",
    "start_token",
    "target_of",
]

STACKS = ("encoder", "decoder")

EncoderText = tuple[torch.Tensor, torch.Tensor]
"""Token ids and mask ``[n, source_pos]`` of what the encoder reads."""


def reads_two_texts(model: nn.Module) -> bool:
    """Whether a model is an encoder and a decoder with attention between them."""
    getter = getattr(model, "get_encoder", None)
    if not getattr(getattr(model, "config", None), "is_encoder_decoder", False):
        return False
    encoder = getter() if callable(getter) else None
    return encoder is not None and encoder is not model


def chosen_stack(model: nn.Module, stack: str | None) -> nn.Module:
    """The module to wrap: the encoder by itself, or the whole model for its decoder.

    Raises:
        UnknownNameError: no such stack.
        ModelLoadError: an encoder-decoder without a choice, or a choice where there is none.
    """
    if stack is not None and stack not in STACKS:
        raise UnknownNameError("stack", stack, STACKS)
    if not reads_two_texts(model):
        if stack is not None:
            raise ModelLoadError(
                f"{type(model).__name__} has one stack of blocks",
                got=f"stack={stack!r}",
                next_step="leave the stack out",
            )
        return model
    if stack is None:
        raise ModelLoadError(
            f"{type(model).__name__} is an encoder-decoder: a site would not say which stack it "
            "means",
            expected="one of its two stacks",
            next_step="say which: stack='encoder' or stack='decoder' (--stack)",
        )
    if stack == "decoder":
        return model
    whole: Any = model
    return whole.get_encoder()


def start_token(model: nn.Module) -> int:
    """The token that a decoder begins with.

    Raises:
        ModelLoadError: the configuration does not say.
    """
    for config in (getattr(model, "generation_config", None), getattr(model, "config", None)):
        for name in ("decoder_start_token_id", "bos_token_id"):
            value = getattr(config, name, None)
            if isinstance(value, int):
                return value
    raise ModelLoadError(
        f"the configuration of {type(model).__name__} has no decoder_start_token_id",
        next_step="set model.config.decoder_start_token_id, then wrap it",
    )


def decoder_row(model: nn.Module, read: TokenRow, target: TokenRow | None = None) -> TokenRow:
    """The decoder's tokens for a text that the encoder reads: its start token, then the target.

    Args:
        model: The encoder-decoder.
        read: What the encoder reads.
        target: What the decoder is made to read after its start token.
    """
    start = np.array([start_token(model)], dtype=np.int64)
    ids, special = start, np.ones(1, dtype=np.bool_)
    phase = np.full(1, PROMPT, dtype=np.uint8)
    if target is not None:
        ids = np.concatenate([start, target.token_ids])
        special = np.concatenate([special, target.special])
        phase = np.concatenate([phase, np.full(len(target), RESPONSE, dtype=np.uint8)])
    return TokenRow(read.id, ids, phase, special, noise=read.noise, encoder_ids=read.token_ids)


def target_of(example: Example) -> Example | None:
    """What the decoder is made to read: ``metadata["target"]``, a text or token ids.

    Raises:
        ExampleError: it is neither.
    """
    target = example.metadata.get("target")
    if target is None:
        return None
    if isinstance(target, str):
        return Example(example.id, text=target)
    if isinstance(target, Sequence) and all(isinstance(i, int) for i in target):
        return Example(example.id, token_ids=tuple(target))
    raise ExampleError(
        "bad_target", f"example {example.id!r}: the target is {type(target).__name__}, not a text"
    )


def answer_start(row: TokenRow) -> TokenRow:
    """A prompt to be continued: for a decoder with an encoder its start token, whatever follows."""
    if row.encoder_ids is None or len(row) == 1:
        return row
    return row.take(np.arange(len(row)) == 0)


def prompt_rows(
    model: nn.Module, prompts: Mapping[str, Sequence[int] | npt.NDArray[np.int64]]
) -> list[TokenRow]:
    """Prompts of ready token ids: read by the encoder where there is one."""
    rows = [TokenRow.from_ids(name, ids) for name, ids in prompts.items()]
    return [decoder_row(model, row) for row in rows] if reads_two_texts(model) else rows


def encoder_text(batch: Batch, pad_id: int, device: torch.device) -> EncoderText | None:
    """What the encoder reads for a batch, on a device; None for a model of one stack."""
    padded = batch.encoder_padded(pad_id)
    if padded is None:
        return None
    ids, mask = padded
    return (
        torch.from_numpy(ids).to(device),
        torch.from_numpy(mask.astype(np.int64)).to(device),
    )
