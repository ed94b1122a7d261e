"""The token embedding, by value."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import nn

from actscope.backends.hf.blocks import differ, same
from actscope.backends.hf.layout import Layout, layout_of
from actscope.backends.hf.placement import offloaded_value
from actscope.backends.hf.probe import ALTERED, Probe
from actscope.backends.hf.trace import Call

__all__ = ["Embedding", "find_embedding"]


@dataclass(frozen=True)
class Embedding:
    """Where tokens become vectors.

    Attributes:
        path: The module.
        tensor: Its rows for the probe's tokens, ``[1, pos, d]``.
        layout: How its own output becomes these rows.
        how: What was checked.
    """

    path: str
    tensor: torch.Tensor
    layout: Layout
    how: str


def find_embedding(probe: Probe) -> Embedding | None:
    """The embedding whose output is its weight's rows for the token ids, times one constant.

    An embedding that does more to its rows (a norm) counts if each row depends on its own token
    alone.
    """
    found = [
        embedding
        for path, module in probe.model.named_modules()
        if isinstance(module, nn.Embedding)
        and (call := probe.plain.single(path)) is not None
        and (embedding := _checked(path, module, call, probe)) is not None
    ]
    return min(found, key=lambda e: e.how.startswith("each row"), default=None)


def _checked(path: str, module: nn.Embedding, call: Call, probe: Probe) -> Embedding | None:
    layout = _layout(path, call, probe)
    if layout is None or call.output is None:
        return None
    tensor = layout.rows(call.output)
    weight = module.weight.detach()
    if weight.device.type == "meta":
        weight = offloaded_value(probe.model, f"{path}.weight" if path else "weight")
    rows = nn.functional.embedding(probe.ids, weight.to(probe.ids.device))
    getter = getattr(probe.model, "get_input_embeddings", None)
    how = ""
    if same(tensor, rows):
        how = "rows of the embedding matrix, bitwise"
    elif scale := _scale(tensor, rows):
        how = f"rows of the embedding matrix times {scale:.4g}"
    elif callable(getter) and getter() is module:
        how = "each row depends on its own token alone; the module does more than look up"
    return Embedding(path, tensor, layout, how) if how else None


def _layout(path: str, call: Call, probe: Probe) -> Layout | None:
    """Where the tokens' rows are: one altered token alters one row."""
    other = probe.altered.single(path)
    if call.output is None or other is None or other.output is None:
        return None
    layout = layout_of(tuple(call.output.shape), 1, probe.ids.shape[1])
    if layout is None or other.output.shape != call.output.shape:
        return None
    output, altered = (layout.arranged(x) for x in (call.output, other.output))
    changed = differ(output, altered)[0].nonzero().flatten().tolist()
    return layout if changed == [layout.before + ALTERED] else None


def _scale(tensor: torch.Tensor, rows: torch.Tensor) -> float:
    """The constant between two tensors, 0 where it is not one constant."""
    if tensor.shape != rows.shape:
        return 0.0
    scale = float(tensor.float().norm() / rows.float().norm().clamp_min(1e-12))
    close = torch.allclose(tensor.float(), rows.float() * scale, rtol=2e-2, atol=1e-6)
    return scale if close else 0.0
