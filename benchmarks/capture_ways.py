"""What is compared: the bare model, the bare disk, plain loops, and actscope.

Each way is a function that does the whole job once, from token lists to files in the folder it is
given, where there are files. Plain ways are plain Hugging Face code.
"""

from __future__ import annotations

import os
import shutil
import tempfile
from collections.abc import Callable, Generator, Sequence
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any

import numpy as np
import torch

from actscope import ActivationExtractor, DatasetRunner, ShardStorage, wrap_model
from actscope.capture.options import CaptureOptions
from actscope.core.batching import length_sorted_batches

Texts = Sequence[list[int]]
Way = Callable[[Path], None]
WIDE = 512
BUDGETS = ((512, 1024, 2048), (256, 512, 1024))
"""Padded tokens of a batch, of which the fastest is the floor's; the latter for wide models."""


class _SeenError(Exception):
    pass


def padded(texts: Texts) -> dict[str, torch.Tensor]:
    width = max(len(text) for text in texts)
    ids = torch.zeros(len(texts), width, dtype=torch.long)
    mask = torch.zeros_like(ids)
    for row, text in enumerate(texts):
        ids[row, : len(text)] = torch.tensor(text)
        mask[row, : len(text)] = 1
    return {"input_ids": ids, "attention_mask": mask}


def by_length(texts: Texts, **limits: int) -> list[list[list[int]]]:
    plan = length_sorted_batches([len(text) for text in texts], **limits)
    return [[texts[i] for i in places] for places in plan]


def blocks_of(hf: Any) -> Any:
    """The blocks of the benchmark's own models."""
    base = hf.base_model
    return base.h if hasattr(base, "h") else base.layers


@contextmanager
def folder(where: Path) -> Generator[Path]:
    path = Path(tempfile.mkdtemp(dir=where, prefix="bench-"))
    try:
        yield path
    finally:
        shutil.rmtree(path)


def bare(hf: Any, texts: Texts, budget: int) -> Way:
    """F: forward passes without LM head, over batches of like length, cut as well as ours are."""

    def way(path: Path) -> None:
        with torch.no_grad():
            for batch in by_length(texts, batch_tokens=budget, pass_tokens=budget // 16):
                hf.base_model(**padded(batch), use_cache=False)

    return way


def raw_write(size: int) -> Way:
    """W: so many bytes to a file, and to the disk."""
    data = np.random.default_rng(0).integers(0, 255, 16 << 20, dtype=np.uint8).data

    def way(path: Path) -> None:
        with (path / "raw").open("wb", buffering=0) as file:
            for at in range(0, size, len(data)):
                file.write(data[: min(len(data), size - at)])
            os.fsync(file.fileno())

    return way


def hooks(hf: Any, texts: Texts) -> Way:
    """A good loop by hand: sorted, 16 rows, hooks, an early stop, one ``np.save`` a batch."""
    blocks = blocks_of(hf)
    seen: list[torch.Tensor] = []

    def keep(module: Any, args: Any, output: Any) -> None:
        seen.append((output if isinstance(output, torch.Tensor) else output[0]).detach())
        if len(seen) == len(blocks):
            raise _SeenError

    def way(path: Path) -> None:
        handles = [block.register_forward_hook(keep) for block in blocks]
        try:
            with torch.no_grad():
                for place, batch in enumerate(by_length(texts, batch_size=16)):
                    inputs = padded(batch)
                    with suppress(_SeenError):
                        hf.base_model(**inputs, use_cache=False)
                    real = inputs["attention_mask"].bool()
                    rows = torch.stack([tensor[real] for tensor in seen])
                    np.save(path / f"{place}.npy", rows.numpy())
                    seen.clear()
        finally:
            for handle in handles:
                handle.remove()

    return way


def naive(hf: Any, texts: Texts) -> Way:
    """What a first script does: hidden states of 16 texts in the order they come in."""

    def way(path: Path) -> None:
        with torch.no_grad():
            for at in range(0, len(texts), 16):
                inputs = padded(texts[at : at + 16])
                states = hf(**inputs, output_hidden_states=True).hidden_states
                np.save(path / f"{at}.npy", torch.stack(states[1:]).numpy())

    return way


def prompts(texts: Texts) -> Texts:
    """32 of them, of at most 64 tokens."""
    return [text[:64] for text in texts[:32]]


def bare_generation(hf: Any, texts: Texts) -> Way:
    """``generate`` of 50 tokens each, padded on the left."""
    hf.generation_config.eos_token_id = []
    mirrored = padded([text[::-1] for text in texts])
    inputs = {name: tensor.flip(1) for name, tensor in mirrored.items()}

    def way(path: Path) -> None:
        with torch.no_grad():
            hf.generate(**inputs, max_new_tokens=50, do_sample=False, pad_token_id=0)

    return way


def our_generation(hf: Any, texts: Texts) -> Way:
    """The same with ``resid_post`` of all layers and tokens."""
    hf.generation_config.eos_token_id = []
    model = wrap_model(hf, None)

    def way(path: Path) -> None:
        model.generate(texts, 50, temperature=0, sites="resid_post", batch_tokens=1 << 20)

    return way


def ours(model: Any, texts: Texts, **what: Any) -> Way:
    """A whole run: probe, plan, passes, checksums, statistics, fsync, commit records."""

    def way(path: Path) -> None:
        run(model, texts, path, **what)

    return way


def run(
    model: Any,
    texts: Texts,
    path: Path,
    *,
    sites: Any = "resid_post",
    layers: Any = "all",
    strategy: str | None = None,
    **options: Any,
) -> Any:
    extractor = ActivationExtractor(model, layers, strategy, sites=sites)
    chosen = CaptureOptions(**options)
    runner = DatasetRunner(texts, None, extractor, ShardStorage(path), options=chosen)
    return runner.run(run_id="run")
