"""A byte-level tokenizer built in memory: 256 bytes and four marks, a BOS and a chat template."""

from __future__ import annotations

from typing import Any

from tokenizers import Tokenizer, decoders, models, pre_tokenizers, processors
from transformers import PreTrainedTokenizerFast

__all__ = ["BYTE_VOCAB", "tiny_tokenizer"]

BYTE_VOCAB = 260

_TEMPLATE = (
    "{{ bos_token }}{% for m in messages %}"
    "{% if m.role == 'system' %}{{ raise_exception('no system role') }}{% endif %}"
    "<u>{{ m.content }}{% endfor %}{% if add_generation_prompt %}<a>{% endif %}"
)


def tiny_tokenizer(*, chat: bool = True, pad: bool = True) -> Any:
    """Every byte is a token; any text round-trips. BOS is written at the start of plain text.

    Args:
        chat: Whether it has a chat template (one that writes BOS and refuses a system turn).
        pad: Whether it has a pad token.
    """
    marks = ["<pad>", "<bos>", "<u>", "<a>"]
    letters = sorted(pre_tokenizers.ByteLevel.alphabet())
    vocab = {token: i for i, token in enumerate([*marks, *letters])}
    tokenizer = Tokenizer(models.BPE(vocab, []))
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    tokenizer.decoder = decoders.ByteLevel()
    tokenizer.add_special_tokens(marks)
    tokenizer.post_processor = processors.TemplateProcessing(
        single="<bos> $A", special_tokens=[("<bos>", vocab["<bos>"])]
    )
    fast = PreTrainedTokenizerFast(
        tokenizer_object=tokenizer,
        bos_token="<bos>",
        additional_special_tokens=["<u>", "<a>"],
        **({"pad_token": "<pad>"} if pad else {}),
    )
    if chat:
        fast.chat_template = _TEMPLATE
    return fast
