"""Plain Hugging Face values of some texts, each run alone, and how far others are off."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import torch

from peers.batches import text_rows
from peers.plain import blocks, eager_attention, load_model
from peers.tasks import HEADS, middle

SAMPLE = 8
WRONG = 1e-3
"""A difference, relative to the largest value of its row, that no order of sums explains."""

Values = dict[tuple[int, str], np.ndarray]


def sample(texts: list[list[int]], size: int = SAMPLE) -> list[int]:
    """Texts of all lengths, the shortest and the longest among them."""
    order = sorted(range(len(texts)), key=lambda i: len(texts[i]))
    places = np.linspace(0, len(order) - 1, min(size, len(order))).astype(int)
    return [order[p] for p in places]


@torch.inference_mode()
def values(folder: Path, texts: list[list[int]], chosen: list[int]) -> tuple[Values, int]:
    """``hidden_states`` by layer, ``normed`` and ``pattern`` of the chosen texts; how many layers.

    The stream that leaves the last block is not among ``hidden_states``: it is what the final norm
    is given.
    """
    model = load_model(folder)
    base, n_layers = model.base_model, len(blocks(model))
    norm = next(getattr(base, n) for n in ("norm", "ln_f", "final_layer_norm") if hasattr(base, n))
    entering: list[torch.Tensor] = []
    norm.register_forward_pre_hook(lambda _module, inputs: entering.append(inputs[0]))
    found: Values = {}
    for i in chosen:
        ids = torch.tensor([texts[i]])
        states = base(ids, use_cache=False, output_hidden_states=True).hidden_states
        for layer in range(n_layers - 1):
            found[i, str(layer)] = states[layer + 1][0].numpy()
        found[i, str(n_layers - 1)] = entering[-1][0].numpy()
        found[i, "normed"] = states[-1][0].numpy()
        with eager_attention(model):
            out = base(ids, use_cache=False, output_attentions=True).attentions
        found[i, "pattern"] = out[middle(n_layers)][0, list(HEADS)].numpy()
    return found, n_layers


def captured(contender: str, task: str, out: Path, n_layers: int, text: int) -> Iterator[Any]:
    """Each part of what a task left on disk for one text: its name and its values."""
    layers = [middle(n_layers)] if task == "last_token_layer" else list(range(n_layers))
    if contender == "actscope":
        from peers.adapter_actscope import stored

        if task == "pattern":
            yield "pattern", stored(out, text, middle(n_layers), "pattern")
            return
        for layer in layers:
            yield str(layer), stored(out, text, layer, "resid_post")
    elif task == "pattern":
        yield "pattern", text_rows(out, text, "pattern")
    elif task == "all_layers":
        for layer in layers:
            yield str(layer), text_rows(out, text, str(layer))
    else:
        for layer in layers:
            yield str(layer), np.load(out / f"{layer}.npy", mmap_mode="r")[text]


def difference(
    contender: str, task: str, out: Path, truth: Values, n_layers: int, *, last_is_normed: bool
) -> float:
    """The largest difference of any value, relative to the largest of its row.

    Raises:
        ValueError: what is on disk has another shape.
    """
    worst = 0.0
    for text in {text for text, _ in truth}:
        for name, got in captured(contender, task, out, n_layers, text):
            normed = last_is_normed and name == str(n_layers - 1)
            want = truth[text, "normed" if normed else name].astype(np.float64)
            if task.startswith("last_token"):
                want = want[-1]
            if got.shape != want.shape:
                raise ValueError(f"{task}, {name}: {got.shape} and not {want.shape}")
            off = np.abs(got - want) / np.abs(want).max(-1, keepdims=True)
            worst = max(worst, float(np.nan_to_num(off, nan=np.inf).max()))
    return worst
