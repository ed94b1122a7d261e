"""How exact is a capture? Compare stored numbers with Hugging Face's own, family by family.

    python benchmarks/exactness.py [--out benchmarks/results/exactness.json]

For every family, built tiny from config with random weights, in float32 and bfloat16, unpadded,
right- and left-padded: values of ``resid_post`` that differ from ``hidden_states`` of the same
batch, whether the residual sums and the unembedding close, whether logits stay bitwise the same
while hooks are in place, and how far rows move (float32) when padding side and batch mates change.
"""

from __future__ import annotations

import argparse
import copy
import inspect
import json
from pathlib import Path
from typing import Any

import numpy as np
import torch
from rich.console import Console
from rich.table import Table

from actscope import Batch, wrap_model
from actscope.core.provenance import environment
from actscope.testing.tiny_models import DECODERS, VOCAB, tiny_model

DTYPES = {"float32": torch.float32, "bfloat16": torch.bfloat16}
LENGTHS = {"unpadded": [40] * 4, "right": [40, 23, 9, 1], "left": [40, 23, 9, 1]}


def batch_of(padding: str) -> Batch:
    rng = np.random.default_rng(1)
    ids = [rng.integers(3, VOCAB, size=n).tolist() for n in LENGTHS[padding]]
    return Batch.from_ids(ids, "left" if padding == "left" else "right")


def hf_outputs(hf: Any, batch: Batch) -> Any:
    ids, mask = batch.padded(0)
    attention = torch.from_numpy(mask.astype(np.int64))
    arguments: dict[str, Any] = {"attention_mask": attention, "use_cache": False}
    takes = inspect.signature(type(hf).forward).parameters
    if batch.padding_side == "left" and "position_ids" in takes:
        arguments["position_ids"] = (attention.cumsum(-1) - 1).clamp_min(0)
    with torch.no_grad():
        return hf(input_ids=torch.from_numpy(ids), **arguments, output_hidden_states=True)


def rows(tensor: torch.Tensor, batch: Batch) -> torch.Tensor:
    _, mask = batch.padded(0)
    return tensor.reshape(*mask.shape, -1)[torch.from_numpy(mask)]


def differing(a: torch.Tensor, b: torch.Tensor) -> int:
    return int((a != b).sum())


def measure(family: str, dtype: str) -> dict[str, Any]:
    hf = tiny_model(family, DTYPES[dtype])
    twin = copy.deepcopy(hf)
    model = wrap_model(hf)
    found = model.sites()
    result: dict[str, Any] = {"family": family, "dtype": dtype, "values": 0, "differing": 0,
                              "logits_values": 0, "logits_differing": 0}  # fmt: skip
    for padding in LENGTHS:
        batch = batch_of(padding)
        reference = hf_outputs(twin, batch)
        captured = model.capture(batch, sites=["resid_post", "ln_final", "logits"])
        pairs = [
            (f"blocks.{layer}.resid_post", reference.hidden_states[layer + 1])
            for layer in range(model.n_layers - 1)
        ]
        pairs.append(("ln_final", reference.hidden_states[-1]))
        for key, theirs in pairs:
            ours = torch.cat(captured[key])
            result["values"] += ours.numel()
            result["differing"] += differing(ours, rows(theirs, batch))
        logits = torch.cat(captured["logits"])
        result["logits_values"] += logits.numel()
        result["logits_differing"] += differing(logits, rows(reference.logits, batch))
    sums = [s for s in found if s.kind == "attn_out"]
    result["sums"] = {
        "bitwise": sum("bitwise" in found[s].reason and found[s].verified for s in sums),
        "blocks": len(sums),
        "parallel": not found[next(s for s in found if s.kind == "resid_mid")].verified,
    }
    result["unembedding"] = found[next(s for s in found if s.kind == "logits")].reason
    result["invariance"] = invariance(model) if dtype == "float32" else None
    return result


def invariance(model: Any) -> float:
    """Largest change of a resid_post row, relative to the row's largest value."""
    worst = 0.0
    together = {side: model.capture(batch_of(side), layers="all") for side in ("right", "left")}
    for i, row in enumerate(batch_of("right").rows):
        alone = model.capture(Batch.from_ids([row.token_ids]), layers="all")
        for captured in together.values():
            for site in alone.sites:
                a, b = captured[site][i], alone[site][0]
                scale = b.abs().amax(-1, keepdim=True)
                worst = max(worst, float(((a - b).abs() / scale).max()))
    return worst


def table(results: list[dict[str, Any]]) -> Table:
    view = Table(title="Exactness against Hugging Face's own outputs")
    for name in ("family", "dtype", "residual values", "differ", "logit values", "differ",
                 "sums bitwise", "unembedding", "moves with batch (fp32)"):  # fmt: skip
        view.add_column(name, justify="left" if name in ("family", "dtype") else "right")
    for r in results:
        sums = f"{r['sums']['bitwise']}/{r['sums']['blocks']}"
        moved = "" if r["invariance"] is None else f"{r['invariance']:.1e}"
        view.add_row(r["family"], r["dtype"], f"{r['values']:,}", str(r["differing"]),
                     f"{r['logits_values']:,}", str(r["logits_differing"]), sums,
                     r["unembedding"], moved)  # fmt: skip
    return view


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--out", type=Path)
    out = parser.parse_args().out
    results = [measure(family, dtype) for family in DECODERS for dtype in DTYPES]
    Console(width=200).print(table(results))
    if out:
        out.parent.mkdir(parents=True, exist_ok=True)
        record = {"environment": environment(), "results": results}
        out.write_text(json.dumps(record, indent=1) + "\n")


if __name__ == "__main__":
    main()
