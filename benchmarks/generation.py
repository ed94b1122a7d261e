"""Activations of answers: how far decoding moves them, and which way to take them is cheaper.

    python benchmarks/generation.py [--out benchmarks/results/generation.json]

**Noise.** Plain Hugging Face code, no actscope: one text through the model in one pass, and the
same text token by token from the cache; the largest difference of any row of any block, relative to
the row's largest value. Beside it the same figure for ``capture="live"`` against
``capture="replay"``, over a ragged batch.

**Cost.** Answers alone, answers with live capture and answers with replay, interleaved, several
times each, in CPU seconds of one thread, which other work on the machine disturbs least: medians,
and what each capture adds to the answers alone.
"""

from __future__ import annotations

import argparse
import copy
import json
import statistics
import time
from pathlib import Path
from typing import Any

import numpy as np
import torch
from rich.console import Console
from rich.table import Table

from actscope import load_model, wrap_model
from actscope.core.provenance import environment
from actscope.testing.tiny_models import VOCAB, tiny_model

FAMILIES = (
    "gpt2", "llama", "qwen3", "phi3", "gemma2", "gpt_neox", "bloom", "opt", "olmo2", "granite",
    "cohere2", "olmoe",
)  # fmt: skip
DTYPES = {"float32": torch.float32, "bfloat16": torch.bfloat16}
NEW, RUNS = 48, 11


def relative(a: torch.Tensor, b: torch.Tensor) -> float:
    """Largest difference of a row relative to the row's largest value."""
    x, y = a.double(), b.double()
    return float(((x - y).abs() / x.abs().amax(-1, keepdim=True)).max())


def noise(hf: Any, ids: list[int], prompt: int) -> float:
    """Hugging Face alone: one pass against the prompt in one pass and the rest from the cache."""
    twin = copy.deepcopy(hf)  # asking for hidden states leaves hooks behind
    tokens = torch.tensor([ids])
    with torch.no_grad():
        whole = twin(tokens, output_hidden_states=True, use_cache=False).hidden_states
        out = twin(tokens[:, :prompt], output_hidden_states=True, use_cache=True)
        parts = [out.hidden_states]
        for i in range(prompt, len(ids)):
            out = twin(
                tokens[:, i : i + 1], past_key_values=out.past_key_values,
                output_hidden_states=True, use_cache=True,
            )  # fmt: skip
            parts.append(out.hidden_states)
    decoded = [torch.cat(layer, 1) for layer in zip(*parts, strict=True)]
    return max(relative(a, b) for a, b in zip(whole, decoded, strict=True))


def live_against_replay(model: Any, prompts: list[list[int]]) -> tuple[float, list[int], int]:
    """The figure, and a text to measure noise on: its tokens and the length of its prompt."""
    made = {
        how: model.generate(prompts, 24, temperature=0, sites="resid_post", capture=how)
        for how in ("live", "replay")
    }
    rows = made["replay"].rows
    assert [r.token_ids.tolist() for r in made["live"].rows] == [r.token_ids.tolist() for r in rows]
    live, replay = made["live"].activations, made["replay"].activations
    worst = max(
        relative(a, b)
        for site in replay.sites
        for a, b in zip(replay[site], live[site], strict=True)
    )
    return worst, rows[0].token_ids.tolist(), len(prompts[0])


def noises() -> list[dict[str, Any]]:
    rng = np.random.default_rng(1)
    prompts = [rng.integers(8, VOCAB, size=n).tolist() for n in (24, 9, 3)]
    found: list[dict[str, Any]] = []
    for dtype, kind in DTYPES.items():
        models = {family: wrap_model(tiny_model(family, kind)) for family in FAMILIES}
        models["demo"] = load_model("demo", dtype=dtype)
        for name, model in models.items():
            model.hf.generation_config.eos_token_id = []  # never stops of its own accord
            worst, ids, prompt = live_against_replay(model, prompts)
            plain = noise(model.hf, ids, prompt)
            found.append({"model": name, "dtype": dtype, "noise": plain, "live_replay": worst})
    return found


def llama() -> Any:
    return wrap_model(
        tiny_model(
            "llama", vocab_size=4096, hidden_size=256, num_hidden_layers=8, head_dim=64,
            intermediate_size=768, max_position_embeddings=1024,
        ),
        name="llama, 8 blocks of 256",
    )  # fmt: skip


def timed(model: Any, prompts: list[list[int]], **how: Any) -> float:
    began = time.process_time()
    model.generate(prompts, NEW, temperature=0, **how)
    return time.process_time() - began


def cost(model: Any, name: str, rows: int) -> dict[str, Any]:
    rng = np.random.default_rng(2)
    lengths = rng.integers(16, 64, size=rows)
    prompts = [rng.integers(8, 900, size=n).tolist() for n in lengths]
    model.hf.generation_config.eos_token_id = []
    ways = {
        "alone": {},
        "live": {"sites": "resid_post", "capture": "live"},
        "replay": {"sites": "resid_post", "capture": "replay"},
    }
    for how in ways.values():
        timed(model, prompts, **how)  # warm: thread pools, and the check of live at first use
    taken: dict[str, list[float]] = {way: [] for way in ways}
    for _ in range(RUNS):
        for way, how in ways.items():
            taken[way].append(timed(model, prompts, **how))
    # What disturbs the machine disturbs neighbours in time alike: compare within each round.
    added = {
        way: statistics.median(
            t / alone - 1 for t, alone in zip(taken[way], taken["alone"], strict=True)
        )
        for way in ("live", "replay")
    }
    return {
        "model": name, "rows": rows, "new_tokens": NEW, "runs": RUNS,
        "cpu_seconds": {way: statistics.median(times) for way, times in taken.items()},
        "added": added, "all_cpu_seconds": taken,
    }  # fmt: skip


def noise_table(results: list[dict[str, Any]]) -> Table:
    view = Table(title="Largest difference of a row, relative to its largest value")
    for name in ("model", "dtype", "HF: decode vs one pass", "live vs replay"):
        view.add_column(name, justify="left" if name in ("model", "dtype") else "right")
    for r in results:
        view.add_row(r["model"], r["dtype"], f"{r['noise']:.1e}", f"{r['live_replay']:.1e}")
    return view


def cost_table(results: list[dict[str, Any]]) -> Table:
    view = Table(
        title=f"{NEW} new tokens a prompt, all blocks captured; CPU time, median of {RUNS}"
    )
    for name in ("model", "prompts", "answers alone", "live adds", "replay adds"):
        view.add_column(name, justify="left" if name == "model" else "right")
    for r in results:
        view.add_row(r["model"], str(r["rows"]), f"{r['cpu_seconds']['alone'] * 1e3:.0f} ms",
                     f"{r['added']['live']:.1%}", f"{r['added']['replay']:.1%}")  # fmt: skip
    return view


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--out", type=Path)
    out = parser.parse_args().out
    torch.set_num_threads(1)
    found = noises()
    console = Console(width=120)
    console.print(noise_table(found))
    demo, larger = load_model("demo"), llama()
    costs = [cost(model, name, rows) for rows in (1, 8)
             for model, name in ((demo, "demo"), (larger, "llama, 8 blocks of 256"))]  # fmt: skip
    console.print(cost_table(costs))
    if out:
        out.parent.mkdir(parents=True, exist_ok=True)
        record = {"environment": environment(), "noise": found, "cost": costs}
        out.write_text(json.dumps(record, indent=1) + "\n")


if __name__ == "__main__":
    main()
