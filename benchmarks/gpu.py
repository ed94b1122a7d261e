"""Captures on an accelerator against the bare forward pass: tokens/s, overhead, bytes copied.

    python benchmarks/gpu.py [--device cuda] [--out benchmarks/results/gpu.json]
    python benchmarks/gpu.py --device cpu --tiny      # a rehearsal without an accelerator

A model of the shape of Llama 3.1 8B with random weights, bfloat16. Targets: one row a text, all
layers, <= 3 % over the bare pass; one layer, all tokens <= 5 %; four layers, all tokens, to disk
<= 10 %; bytes copied to the host <= 1.01 of the bytes selected.
"""

from __future__ import annotations

import argparse
import json
import statistics
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import torch
from capture_ways import by_length, folder, padded, run
from transformers import LlamaConfig, LlamaForCausalLM

from actscope import wrap_model
from actscope.core.activations import Batch
from actscope.core.protocols import AHEAD, Selection
from actscope.core.provenance import environment
from actscope.strategies import as_strategy

TARGETS = {"pooled": 1.03, "one-layer": 1.05, "four-layers-disk": 1.10}


def build(device: str, tiny: bool) -> Any:
    shape: dict[str, Any] = {
        "vocab_size": 128_256, "hidden_size": 4096, "num_hidden_layers": 32,
        "num_attention_heads": 32, "num_key_value_heads": 8, "intermediate_size": 14_336,
        "max_position_embeddings": 8192, "rope_theta": 500_000.0,
    }  # fmt: skip
    if tiny:
        shape |= {
            "vocab_size": 512, "hidden_size": 64, "num_hidden_layers": 4,
            "num_attention_heads": 4, "num_key_value_heads": 2, "intermediate_size": 128,
        }  # fmt: skip
    config = LlamaConfig(**shape)
    torch.manual_seed(0)
    before = torch.get_default_dtype()
    torch.set_default_dtype(torch.bfloat16)
    try:
        with torch.device(device):
            return LlamaForCausalLM(config).eval()
    finally:
        torch.set_default_dtype(before)


def make_texts(count: int, vocabulary: int) -> list[list[int]]:
    rng = np.random.default_rng(0)
    lengths = np.clip(np.exp(rng.normal(np.log(200), 0.8, count)), 20, 2048).astype(int)
    return [rng.integers(3, vocabulary, n).tolist() for n in lengths]


def waited(device: str, action: Callable[[], Any]) -> float:
    if device.startswith("cuda"):
        torch.cuda.synchronize()
    began = time.perf_counter()
    action()
    if device.startswith("cuda"):
        torch.cuda.synchronize()
    return time.perf_counter() - began


def streamed(model: Any, selection: Selection, batches: list[Batch]) -> tuple[int, int]:
    """Bytes selected and bytes copied."""
    selected, waiting = 0, []
    with model.open(selection) as session:
        for batch in batches:
            if len(waiting) == AHEAD:
                selected += sum(a.nbytes for a in waiting.pop(0)().arrays.values())
            waiting.append(session.begin(batch))
        for started in waiting:
            selected += sum(a.nbytes for a in started().arrays.values())
        return selected, session.bytes_copied


def measure(model: Any, texts: list[list[int]], given: Any) -> dict[str, Any]:
    device, n = given.device, model.n_layers
    groups = by_length(texts, batch_tokens=given.batch_tokens)
    inputs = [{k: v.to(device) for k, v in padded(group).items()} for group in groups]
    batches = [Batch.from_ids(group) for group in groups]
    four = [n // 4 - 1, n // 2 - 1, 3 * n // 4 - 1, n - 1]

    def bare() -> None:
        with torch.no_grad():
            for one in inputs:
                model.hf.base_model(**one, use_cache=False)

    def chosen(layers: Any, strategy: str | None) -> Selection:
        return Selection(model.expand("resid_post", layers), as_strategy(strategy))

    def disk() -> None:
        with folder(given.where) as path:
            run(model, texts, path, layers=four, batch_tokens=given.batch_tokens)

    ways: dict[str, Callable[[], Any]] = {
        "bare": bare,
        "pooled": lambda: streamed(model, chosen("all", "mean"), batches),
        "one-layer": lambda: streamed(model, chosen([n - 1], None), batches),
        "four-layers-disk": disk,
    }
    for way in ways.values():
        way()  # kernels are chosen, memory is allocated
    taken: dict[str, list[float]] = {name: [] for name in ways}
    for _ in range(given.runs):
        for name, way in ways.items():
            taken[name].append(waited(device, way))
    seconds = {name: statistics.median(times) for name, times in taken.items()}
    selected, copied = streamed(model, chosen([n - 1], None), batches)
    tokens = sum(len(text) for text in texts)
    return {
        "seconds": seconds,
        "tokens_per_second": {name: round(tokens / s) for name, s in seconds.items()},
        "over_bare": {name: round(seconds[name] / seconds["bare"], 4) for name in TARGETS},
        "targets": TARGETS,
        "copied_over_selected": round(copied / selected, 4),
    }


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("--device", default="cuda")
    parser.add_argument("--tiny", action="store_true", help="a small model, to see that it runs")
    parser.add_argument("--texts", type=int, default=0)
    parser.add_argument("--batch-tokens", type=int, default=8192)
    parser.add_argument("--runs", type=int, default=5)
    parser.add_argument("--where", type=Path, default=Path("/tmp"))
    parser.add_argument("--out", type=Path)
    given = parser.parse_args()
    hf = build(given.device, given.tiny)
    texts = make_texts(given.texts or (16 if given.tiny else 512), hf.config.vocab_size)
    model = wrap_model(hf, None)
    cuda = given.device.startswith("cuda")
    found = {
        "chip": torch.cuda.get_device_name() if cuda else "cpu",
        "tiny": given.tiny,
        "texts": len(texts),
        **environment(),
        **measure(model, texts, given),
    }
    text = json.dumps(found, indent=1)
    print(text)
    if given.out:
        given.out.write_text(text + "\n", encoding="utf-8")


if __name__ == "__main__":
    main()
