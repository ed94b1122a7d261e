"""Collect what a direct logit attribution needs: the parts of the stream, the norm, the readout.

Nothing is read by name. The final norm is asked what it does to known inputs, the unembedding gives
its rows as derivatives, and both must explain the model's own numbers.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import numpy as np
import numpy.typing as npt
import torch
from torch import nn

from actscope.analysis.attribution import (
    Attribution,
    FinalNorm,
    Readout,
    direct_logit_attribution,
)
from actscope.backends.hf.trace import evaluation_mode
from actscope.backends.hf.unembedding import Unembedding
from actscope.core.activations import Batch, TokenRow
from actscope.core.errors import BadInputError, SiteUnavailableError
from actscope.core.sites import Site, resolve_layer
from actscope.core.text import Span

if TYPE_CHECKING:
    from actscope.backends.hf.model import HFModel

__all__ = ["Ends", "attribute_logit"]

Float64 = npt.NDArray[np.float64]

_LARGE = 1024.0
"""Beside its square the epsilon of a norm vanishes; a power of two, exact in any dtype."""


@dataclass(frozen=True)
class Ends:
    """The final norm and the unembedding of a model.

    Attributes:
        norm: The norm's module.
        head: The unembedding's module.
        unembedding: How logits come from it.
    """

    norm: nn.Module
    head: nn.Module
    unembedding: Unembedding


def attribute_logit(
    model: HFModel, ends: Ends, row: TokenRow, position: int, tokens: tuple[int, int | None]
) -> Attribution:
    """Attribute the logit of a token, or of one minus another, at a position.

    Raises:
        BadInputError: no such position, or parts that do not sum to the logit.
        SiteUnavailableError: a part is not verified, or the unembedding is not linear.
    """
    position = _checked_position(position, len(row))
    names = {Site("resid_pre", 0): "embed"}
    for layer in range(model.n_layers):
        names |= {Site(kind, layer): f"{kind}.{layer}" for kind in ("attn_out", "mlp_out")}
    ends_sites = [Site("resid_post", model.n_layers - 1), Site("ln_final"), Site("logits")]
    found = model.capture(
        Batch((row,)), [*names, *ends_sites], span=Span("range", position, position + 1)
    )
    rows = {site: found.arrays[site][0].astype(np.float64) for site in found.sites}
    resid, normed, logits = (rows[site] for site in ends_sites)
    with evaluation_mode(model.hf), model.interventions.suspended():
        norm = _probed_norm(ends.norm, len(resid), model.device)
        readout = _readout(model, ends, normed, logits, tokens)
    parts = {name: rows[site] for site, name in names.items()}
    attribution = direct_logit_attribution(parts, resid, normed, norm, readout)
    if not model.interventions.describe():
        _refuse_a_large_rest(model, attribution, parts)
    return attribution


def _refuse_a_large_rest(
    model: HFModel, attribution: Attribution, parts: Mapping[str, Float64]
) -> None:
    """Without interventions the stream is the sum of the parts but for rounding, or parts miss."""
    dtype = model.site_dtype(Site("resid_post", model.n_layers - 1))
    eps = float(torch.finfo(torch.promote_types(dtype, torch.bfloat16)).eps)
    eps = max(eps, float(torch.finfo(torch.float32).eps))
    terms = [abs(attribution.value), *(abs(float(x)) for x in attribution.contributions)]
    sizes = [float(np.abs(part).max()) for part in parts.values()]
    rounding = len(parts) * eps * sum(terms) * max(1.0, max(sizes) / (min(sizes) or 1.0))
    if abs(attribution.rest) > max(64 * rounding, 1e-3 * abs(attribution.value)):
        raise SiteUnavailableError(
            f"the stream of {model.identity.name} holds more than embed, attn_out and mlp_out",
            got=f"{attribution.rest:.4g} of {attribution.value:.4g} comes from elsewhere",
            expected="parts that sum to the stream, as in a decoder without an encoder",
            next_step="use model.gradients, or module paths as sites",
        )


def _checked_position(position: int, length: int) -> int:
    try:
        return resolve_layer(position, length)
    except BadInputError:
        raise BadInputError(
            f"the prompt has no token {position}", expected=f"-{length} to {length - 1}"
        ) from None


def _probed_norm(module: nn.Module, d: int, device: torch.device) -> FinalNorm:
    """Gain, bias and centring, from what the norm makes of known rows.

    Zeros give the bias. A row of plus and minus one large number gives the gain, under either
    hypothesis about the mean; the one that also explains a second row is right.
    """
    weights = {name: p.detach().float() for name, p in module.named_parameters()}

    def normed(row: Float64) -> Float64:
        given = torch.from_numpy(row).float().to(device).reshape(1, 1, -1)
        with torch.no_grad():
            output = torch.func.functional_call(module, weights, (given,))
        return output.reshape(-1).double().cpu().numpy()

    signs = np.where(np.arange(d) % 2 == 0, _LARGE, -_LARGE)
    other = np.random.default_rng(0).standard_normal(d) * _LARGE + _LARGE
    bias = normed(np.zeros(d))
    for centred in (False, True):
        guess = FinalNorm(np.ones(d), bias, centred)
        gain = (normed(signs) - bias) / _scaled(guess.centre(signs))
        if np.allclose(gain * _scaled(guess.centre(other)) + bias, normed(other), 1e-3, 1e-3):
            return FinalNorm(gain, bias, centred)
    raise SiteUnavailableError(
        "the final norm is neither a LayerNorm nor an RMSNorm: it is not linear at a fixed scale",
        got=type(module).__name__,
    )


def _scaled(row: Float64) -> Float64:
    return row / np.sqrt((row**2).mean())


def _readout(
    model: HFModel, ends: Ends, normed: Float64, logits: Float64, tokens: tuple[int, int | None]
) -> Readout:
    """The unembedding's rows of the tokens, with the model's own scale."""
    dtype = next(ends.head.parameters()).dtype
    rows = [_row_of(ends, normed, token, dtype, model) for token in tokens if token is not None]
    factor = _factor(ends.unembedding.transform)
    if factor is None:
        values = [row.value for row in rows]
        note = f"before the soft-cap: {ends.unembedding.how.split(' == ')[0]}"
    else:
        values = [float(logits[token]) for token in tokens if token is not None]
        note = ""
    factor = 1.0 if factor is None else factor
    signs = (1.0, -1.0)[: len(rows)]
    size = sum(abs(factor) * float(np.abs(normed) @ np.abs(row.weights)) for row in rows)
    eps = float(torch.finfo(torch.promote_types(dtype, torch.bfloat16)).eps)
    eps = max(eps, float(torch.finfo(torch.float32).eps))  # norms compute in float32
    return Readout(
        weights=factor * sum(s * row.weights for s, row in zip(signs, rows, strict=True)),
        bias=factor * sum(s * row.bias for s, row in zip(signs, rows, strict=True)),
        value=sum(s * value for s, value in zip(signs, values, strict=True)),
        atol=8 * eps * (size + sum(abs(value) for value in values)),
        note=note,
    )


@dataclass(frozen=True)
class _Row:
    weights: Float64
    bias: float
    value: float


def _row_of(ends: Ends, normed: Float64, token: int, dtype: Any, model: HFModel) -> _Row:
    """A token's row as the derivative of its logit, the same everywhere if the head is linear."""
    rows: list[Float64] = []
    values: list[float] = []
    for point in (normed, np.zeros_like(normed), -2 * normed):
        given = torch.from_numpy(point).to(model.device, dtype).reshape(1, 1, -1)
        with torch.enable_grad():
            logit = ends.unembedding.read(ends.head, given.requires_grad_())[..., token].sum()
            (gradient,) = torch.autograd.grad(logit, given)
        rows.append(gradient.reshape(-1).double().cpu().numpy())
        values.append(float(logit.detach()))
    if not (np.array_equal(rows[0], rows[1]) and np.array_equal(rows[0], rows[2])):
        raise SiteUnavailableError(
            f"the unembedding of {model.identity.name} is not linear in ln_final",
            got=type(ends.head).__name__,
            next_step="a logit is then no sum of parts; use model.gradients instead",
        )
    return _Row(rows[0], values[1], values[0])


def _factor(transform: Callable[[torch.Tensor], torch.Tensor] | None) -> float | None:
    """The constant that a model multiplies its logits with, or None where it does more."""
    assert transform is not None
    x = torch.tensor([0.0, 1.0, 1e4], dtype=torch.float64)
    zero, one, large = transform(x).tolist()
    return one if zero == 0 and abs(large - 1e4 * one) <= 1e-9 * abs(large) else None
