"""The models and the texts of the speed benchmarks: from a configuration, alike on every machine.

``build(name)`` gives a Hugging Face model in float32 with random weights, ``texts()`` 512 token
lists whose lengths have a long tail, as prompts have. Nothing is downloaded: the tokens are those
of the texts that are part of the package.
"""

from __future__ import annotations

from functools import cache
from importlib.resources import files
from typing import Any

import numpy as np
import torch
from transformers import (
    GPT2Config,
    GPT2LMHeadModel,
    GPTNeoXConfig,
    GPTNeoXForCausalLM,
    LlamaConfig,
    LlamaForCausalLM,
    PreTrainedTokenizerFast,
)

SHORTEST, LONGEST, TEXTS, GROUP = 20, 512, 512, 16
MEDIAN, SPREAD = 64, 0.9
"""Of the log-normal distribution of lengths, before it is cut to SHORTEST and LONGEST."""


def _llama(width: int, blocks: int, heads: int, inner: int) -> tuple[type, Any]:
    return LlamaForCausalLM, LlamaConfig(
        vocab_size=32_000, hidden_size=width, num_hidden_layers=blocks, num_attention_heads=heads,
        num_key_value_heads=heads, intermediate_size=inner, max_position_embeddings=1024,
    )  # fmt: skip


def _shapes() -> dict[str, tuple[type, Any]]:
    neox = GPTNeoXConfig(
        vocab_size=50_304, hidden_size=512, num_hidden_layers=6, num_attention_heads=8,
        intermediate_size=2048, max_position_embeddings=1024,
    )  # fmt: skip
    return {
        "llama256x8": _llama(256, 8, 4, 768),
        "llama768x12": _llama(768, 12, 12, 2048),
        "gpt2": (GPT2LMHeadModel, GPT2Config()),
        "neox512x6": (GPTNeoXForCausalLM, neox),
    }


MODELS = ("llama256x8", "llama768x12", "gpt2", "neox512x6")


def build(name: str) -> Any:
    """A model of that name in float32, in evaluation mode, with its own attention choice (sdpa).

    Args:
        name: One of ``MODELS``.
    """
    kind, config = _shapes()[name]
    config.eos_token_id = config.pad_token_id = config.bos_token_id = None
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        model = kind(config)
    return model.float().eval()


def shape(name: str) -> tuple[int, int]:
    """Blocks and width of the residual stream of a model of that name."""
    config = _shapes()[name][1]
    return config.num_hidden_layers, config.hidden_size


@cache
def _stream() -> tuple[int, ...]:
    """Every text of the package as tokens, one after the other."""
    demo = files("actscope.demo")
    tokenizer = PreTrainedTokenizerFast(tokenizer_file=str(demo / "model" / "tokenizer.json"))
    found: list[int] = []
    for folder in ("texts/long", "texts/short"):
        for path in sorted((demo / folder).iterdir(), key=lambda entry: entry.name):
            if path.name.endswith(".txt"):
                text = path.read_text(encoding="utf-8")
                found += tokenizer.encode(text, add_special_tokens=False)
    return tuple(found)


def texts() -> list[list[int]]:
    """512 token lists of 20 to 512 tokens, most of them short; windows of the package's texts."""
    stream, rng = _stream(), np.random.default_rng(0)
    drawn = np.exp(rng.normal(np.log(MEDIAN), SPREAD, TEXTS))
    lengths = np.clip(drawn, SHORTEST, LONGEST).astype(int)
    starts = rng.integers(0, len(stream) - LONGEST, TEXTS)
    return [list(stream[a : a + n]) for a, n in zip(starts.tolist(), lengths.tolist(), strict=True)]


def sample(count: int) -> list[list[int]]:
    """About so many of the texts: of 32 groups of 16 of like length, some that are evenly spread.

    So batches of 16 texts of like length hold no more padding than those of all 512.
    """
    every = texts()
    if count >= len(every):
        return every
    order = sorted(range(len(every)), key=lambda i: len(every[i]))
    groups = [order[at : at + GROUP] for at in range(0, len(order), GROUP)]
    n = min(max(count // GROUP, 1), len(groups))
    chosen = [groups[(2 * k + 1) * len(groups) // (2 * n)] for k in range(n)]
    return [every[i] for i in sorted(i for group in chosen for i in group)]


def alike(questions: int) -> list[list[int]]:
    """Three texts for each question, of 200 tokens, of which they share the first 160."""
    rng = np.random.default_rng(0)
    found: list[list[int]] = []
    for _ in range(questions):
        head = rng.integers(10, 1500, 160).tolist()
        found += [head + rng.integers(10, 1500, 40).tolist() for _ in range(3)]
    return found
