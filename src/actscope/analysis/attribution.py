"""Direct logit attribution: how much each part of the residual stream says for a token.

The stream at the end is a sum of parts: what entered the first block, and what each attention and
MLP added. The final norm divides by a scale that depends on all of them; with that scale held fixed
the norm is linear, the unembedding is too, and a logit is the sum of what the parts contribute
(Elhage et al., "A mathematical framework for transformer circuits", 2021; "direct logit
attribution" in Wang et al., "Interpretability in the wild", 2022).
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np
import numpy.typing as npt

from actscope.core.errors import BadInputError

__all__ = ["Attribution", "FinalNorm", "Readout", "direct_logit_attribution"]

Float64 = npt.NDArray[np.float64]


@dataclass(frozen=True)
class FinalNorm:
    """A norm whose scale s is held fixed: ``x -> s * gain * (x - mean(x)) + bias``.

    Attributes:
        gain: ``[d]``.
        bias: ``[d]``, zeros where there is none.
        centred: Whether the mean over the d values is subtracted: a LayerNorm does, an RMSNorm does
            not.
    """

    gain: npt.ArrayLike
    bias: npt.ArrayLike
    centred: bool

    def centre(self, rows: Float64) -> Float64:
        """``[..., d]`` as the norm sees them before it scales."""
        return rows - rows.mean(axis=-1, keepdims=True) if self.centred else rows


@dataclass(frozen=True)
class Readout:
    """From the final norm's output to the number that is explained: ``weights . normed + bias``.

    Attributes:
        weights: ``[d]`` a row of the unembedding, or the difference of two.
        bias: Likewise of its bias.
        value: The model's own number.
        atol: By how much the sum may differ from it: rounding in the model's dtype.
        note: What the number is, where that needs saying, such as ``before the soft-cap``.
    """

    weights: npt.ArrayLike
    bias: float
    value: float
    atol: float
    note: str = ""


@dataclass(frozen=True, repr=False)
class Attribution:
    """Parts that sum to a logit or a difference of two.

    Attributes:
        names: Of the parts, in the order of the model.
        contributions: ``[parts]`` what each adds to the number.
        rest: What the stream holds beyond the sum of the parts: rounding, or what somebody added.
        bias: What is there whatever the stream says: the norm's bias and the unembedding's.
        value: The model's own number; ``sum(contributions) + rest + bias`` up to rounding.
        error: ``value`` minus that sum.
        scale: The final norm's scale that was held fixed.
        note: What the number is, where that needs saying.
    """

    names: tuple[str, ...]
    contributions: Float64
    rest: float
    bias: float
    value: float
    error: float
    scale: float
    note: str = ""

    def __getitem__(self, name: str) -> float:
        return float(self.contributions[self.names.index(name)])

    def ranked(self) -> list[tuple[str, float]]:
        """Parts with their contributions, largest magnitude first."""
        order = np.argsort(-np.abs(self.contributions), kind="stable")
        return [(self.names[i], float(self.contributions[i])) for i in order]

    def __repr__(self) -> str:
        return f"<Attribution {len(self.names)} parts of {self.value:+.4g}{self._noted()}>"

    def __str__(self) -> str:
        lines = [f"{self.value:+.4f}{self._noted()} ="]
        lines += [f"  {value:+.4f}  {name}" for name, value in self.ranked()]
        lines += [f"  {self.bias:+.4f}  biases", f"  {self.rest:+.4f}  rest"]
        return "\n".join(lines)

    def _noted(self) -> str:
        return f" ({self.note})" if self.note else ""


def direct_logit_attribution(
    parts: Mapping[str, npt.ArrayLike],
    resid: npt.ArrayLike,
    normed: npt.ArrayLike,
    norm: FinalNorm,
    readout: Readout,
) -> Attribution:
    """Attribute a logit, or a difference of logits, to the parts of the stream at one token.

    With ``c`` for the norm's centring, the scale is the s that solves
    ``normed = s * gain * c(resid) + bias``, and a part p contributes ``s * (w * gain) . c(p)``.

    Args:
        parts: Name -> ``[d]``; together they should be ``resid``.
        resid: ``[d]`` the stream that the final norm reads.
        normed: ``[d]`` what it makes of it.
        norm: The norm.
        readout: What is read from it.

    Raises:
        BadInputError: shapes that do not fit, values that are not finite, a norm that is not linear
            at a fixed scale, or a sum that is not the model's number.
    """
    d = np.asarray(resid).shape[-1] if np.ndim(resid) == 1 else 0
    end, out = (_vector(x, name, d) for x, name in ((resid, "resid"), (normed, "normed")))
    gain, bias = _vector(norm.gain, "gain", d), _vector(norm.bias, "bias", d)
    weights = _vector(readout.weights, "weights", d)
    rows = np.array([_vector(part, name, d) for name, part in parts.items()]).reshape(-1, d)
    scale = _scale(gain * norm.centre(end), out - bias)
    reading = scale * gain * weights
    contributions = norm.centre(rows) @ reading
    rest = float(norm.centre(end - rows.sum(axis=0)) @ reading)
    constant = float(bias @ weights) + readout.bias
    error = readout.value - (float(contributions.sum()) + rest + constant)
    if not abs(error) <= readout.atol:
        raise BadInputError(
            "the parts do not sum to the model's logits",
            got=f"{readout.value:.6g} less {error:.3g}",
            expected=f"within {readout.atol:.3g}",
        )
    return Attribution(
        tuple(parts), contributions, rest, constant, readout.value, error, scale, readout.note
    )


def _vector(values: Any, name: str, d: int) -> Float64:
    found = np.asarray(values).astype(np.float64)
    if found.shape != (d,) or not d:
        raise BadInputError(
            f"{name} must be one vector as wide as the stream",
            got=f"shape {list(found.shape)}",
            expected=f"[{d}]" if d else "[d]",
        )
    if not np.isfinite(found).all():
        raise BadInputError(f"{name} has values that are not finite")
    return found


def _scale(unscaled: Float64, scaled: Float64) -> float:
    """The s of ``scaled = s * unscaled``, by least squares; it must fit to 2 % of the row.

    Rounding of bfloat16 is 0.4 % of a value; another kind of norm is off by more than that.
    """
    length = float(unscaled @ unscaled)
    s = float(unscaled @ scaled) / length if length else 0.0
    off = float(np.linalg.norm(scaled - s * unscaled))
    if not length or off > 0.02 * float(np.linalg.norm(scaled)):
        raise BadInputError(
            "the final norm is not linear at a fixed scale: gain times stream is not its output",
            got=f"{off:.3g} away",
        )
    return s
