"""q, k, v, z and pattern, judged by the type's own eager attention and by exchange.

``pattern`` is compared with Hugging Face's own attentions over a ragged batch. ``z`` must be that
pattern times the captured ``v``, and the captured ``v`` what the type's eager function is given;
zeros instead of one head of ``z`` in front of the output projection must change the block's output
by exactly that head's columns of it. ``q`` and ``k`` are held to the pattern's own log-ratios:

    log(p[i, j] / p'[i, j]) = scale * (q_i k_j - q'_i k'_j) + c_i

for two texts and one ``scale``; a bias that does not depend on the tokens falls out.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from functools import cached_property
from typing import Any

import torch
from coverage_eager import Eager, eager_pass
from coverage_exchange import Exchange
from coverage_references import REFERENCES
from coverage_subject import (
    ABSENT,
    UNAVAILABLE,
    UNJUDGED,
    VERIFIED,
    WRONG,
    Flow,
    Subject,
    Tensor,
    Verdict,
    batch_for,
    batch_of,
    flow,
    layer_numbers,
)

from actscope import Batch, Site

__all__ = ["ATTENTION_KINDS", "attention"]

ATTENTION_KINDS = ("q", "k", "v", "z", "pattern")
NO_SOFTMAX = "no softmax over keys runs in any of its blocks"


def attention(subject: Subject) -> dict[str, Verdict]:
    """Verdicts on the sites of attention."""
    judged = Judged(subject)
    return {kind: judged.verdict(kind) for kind in ATTENTION_KINDS}


def tolerance(tensor: Tensor) -> float:
    return 0.05 if tensor.dtype in (torch.bfloat16, torch.float16) else 2e-4


def alike(a: Tensor, b: Tensor, allowed: float) -> bool:
    """Equal within a share of the largest value."""
    if a.shape != b.shape:
        return False
    a, b = a.double(), b.double()
    return bool((a - b).abs().max() <= allowed * b.abs().max().clamp_min(1e-9))


@dataclass
class Seen:
    """One batch, run plainly, under eager attention, and captured."""

    batch: Batch
    plain: Flow | None
    eager: Eager
    captured: Any

    def site(self, kind: str, number: int, example: int) -> Tensor:
        return self.captured[kind, number][example]

    def pattern(self, layer: int, example: int) -> Tensor | None:
        """``[head, query, key]`` of real tokens, by Hugging Face."""
        whole = self.eager.pattern(layer, len(self.batch.rows))
        if whole is None:
            return None
        length = len(self.batch.rows[example])
        return whole[example, :, :length, :length]

    def given(self, layer: int, kind: str, example: int) -> Tensor | None:
        """``[pos, head, d]`` that the type's eager function was given or made."""
        operations = self.eager.operations.get(layer, ())
        if len(operations) != 1:
            return None
        operation, length = operations[0], len(self.batch.rows[example])
        if kind == "z":
            return operation.output[example, :length]
        named = {"q": operation.query, "k": operation.key, "v": operation.value}
        return named[kind][example, :, :length].transpose(0, 1)


@dataclass
class Judged:
    """The attention of one model."""

    subject: Subject

    @cached_property
    def index(self) -> list[int]:
        named = bool(self.subject.layers)
        return layer_numbers(self.subject) if named else list(range(self.subject.model.n_layers))

    @cached_property
    def statuses(self) -> Any:
        return self.subject.model.sites()

    @cached_property
    def ragged(self) -> Seen:
        return self.seen(batch_for(self.subject))

    @cached_property
    def pair(self) -> Seen:
        """Two texts of one length, for log-ratios and exchanges."""
        return self.seen(batch_of((9, 9)))

    def seen(self, batch: Batch) -> Seen:
        plain = flow(self.subject, batch) if self.subject.layers else None
        sites = [
            Site(kind, n)
            for kind in ATTENTION_KINDS
            for n in self.index
            if self.statuses[Site(kind, n)].verified
        ]
        captured = self.subject.model.capture(batch, sites=sites) if sites else None
        return Seen(batch, plain, eager_pass(self.subject, batch, plain), captured)

    @property
    def attending(self) -> list[int]:
        """Own layers that attend."""
        return self.ragged.eager.attending

    def has(self, kind: str, layer: int) -> bool:
        return self.statuses[Site(kind, self.index[layer])].verified

    def verdict(self, kind: str) -> Verdict:
        offered = [i for i in range(len(self.index)) if self.has(kind, i)]
        phantom = [self.index[i] for i in offered if i not in self.attending]
        if phantom:
            return Verdict(WRONG, f"offered in blocks {phantom}, where no softmax over keys runs")
        if not self.attending:
            return Verdict(ABSENT, NO_SOFTMAX)
        unjudged = ""
        for layer in offered:
            problem = getattr(self, f"judge_{kind}")(layer)
            if problem.startswith("?"):
                unjudged = f"layer {self.index[layer]}: {problem[1:]}"
            elif problem:
                return Verdict(WRONG, f"layer {self.index[layer]}: {problem}")
        missing = [self.index[i] for i in self.attending if i not in offered]
        if missing:
            some = "" if not offered else f"in {len(missing)} of {len(self.attending)} blocks: "
            return Verdict(UNAVAILABLE, some + self.statuses[Site(kind, missing[0])].reason)
        if unjudged:
            return Verdict(UNJUDGED, unjudged)
        others = [n for i, n in enumerate(self.index) if i not in self.attending]
        places = ", ".join(map(str, others))
        return Verdict(VERIFIED, f"not in blocks {places}: no attention" if others else "")

    def judge_pattern(self, layer: int) -> str:
        seen, number = self.ragged, self.index[layer]
        for example in range(len(seen.batch.rows)):
            ours, theirs = seen.site("pattern", number, example), seen.pattern(layer, example)
            if theirs is None:
                return "?Hugging Face returns no attentions, and several softmaxes run in the block"
            allowed = 0.05 if theirs.dtype != torch.float32 else 1e-4
            if ours.shape != theirs.shape:
                return f"shape {tuple(ours.shape)}, Hugging Face's {tuple(theirs.shape)}"
            gap = float((ours.double() - theirs.double()).abs().max())
            if not gap <= allowed:
                return f"off Hugging Face's attentions by {gap:.2g}"
        return self.by_reference(layer, "pattern")

    def judge_z(self, layer: int) -> str:
        """The pattern times v, and what the output projection makes of it."""
        seen, number = self.ragged, self.index[layer]
        for example in range(len(seen.batch.rows)):
            z = seen.site("z", number, example)
            made = self.mixed(layer, example)
            given = seen.given(layer, "z", example)
            if made is None and given is None:
                return "?neither v nor the type's own eager attention to compare with"
            for theirs in (made, given):
                if theirs is not None and not alike(z, theirs.reshape(z.shape), tolerance(z)):
                    return "not Hugging Face's pattern times v"
        pair = self.pair
        if pair.plain is None:
            return ""
        z = torch.stack([pair.site("z", number, i) for i in range(2)])
        exchange = Exchange(self.subject, pair.batch, pair.plain, layer)
        return exchange.heads(z) or self.by_reference(layer, "z")

    def mixed(self, layer: int, example: int) -> Tensor | None:
        """``[pos, head, d]``: Hugging Face's pattern times the captured v."""
        pattern = self.ragged.pattern(layer, example)
        if pattern is None or not self.has("v", layer):
            return None
        v = self.ragged.site("v", self.index[layer], example)
        if pattern.shape[0] % v.shape[1]:
            return None
        v = v.repeat_interleave(pattern.shape[0] // v.shape[1], dim=1)
        return torch.einsum("hqk,khd->qhd", pattern.double(), v.double())

    def judge_v(self, layer: int) -> str:
        """Hugging Face's pattern times it is what its attention returns."""
        seen, number = self.ragged, self.index[layer]
        for example in range(len(seen.batch.rows)):
            made, given = self.mixed(layer, example), seen.given(layer, "v", example)
            z = seen.site("z", number, example) if self.has("z", layer) else None
            z = seen.given(layer, "z", example) if z is None else z
            v = seen.site("v", number, example)
            if (made is None or z is None) and given is None:
                return "?neither z nor the type's own eager attention to compare with"
            if made is not None and z is not None and not alike(
                made, z.reshape(made.shape), tolerance(z)
            ):  # fmt: skip
                return "Hugging Face's pattern times it is not what attention returns"
            if given is not None and not alike(v, given, tolerance(v)):
                return "not what the type's own eager attention is given"
        pair = self.pair
        v = torch.stack([pair.site("v", number, i) for i in range(2)])
        problem = ""
        if self.has("z", layer) and pair.plain is not None:
            z = torch.stack([pair.site("z", number, i) for i in range(2)])
            problem = Exchange(self.subject, pair.batch, pair.plain, layer).values(v, z)
        return problem or self.by_reference(layer, "v")

    def judge_q(self, layer: int) -> str:
        return self.by_ratios(layer) or self.as_given(layer, "q") or self.by_reference(layer, "q")

    def judge_k(self, layer: int) -> str:
        return self.by_ratios(layer) or self.as_given(layer, "k") or self.by_reference(layer, "k")

    def as_given(self, layer: int, kind: str) -> str:
        for example in range(len(self.ragged.batch.rows)):
            given = self.ragged.given(layer, kind, example)
            ours = self.ragged.site(kind, self.index[layer], example)
            if given is not None and not alike(ours, given, tolerance(ours)):
                return "not what the type's own eager attention is given"
        return ""

    def by_ratios(self, layer: int) -> str:
        """Whether one scale explains the log-ratios of two texts' patterns."""
        if not (self.has("q", layer) and self.has("k", layer)):
            return "?q or k is not offered"
        number = self.index[layer]
        logs, products = [], []  # of patterns without what the model itself adds to the scores
        for example in range(2):
            pattern = self.pair.pattern(layer, example)
            if pattern is None:
                return "?several softmaxes run in the block: no pattern to compare with"
            q = self.pair.site("q", number, example).double()
            k = self.pair.site("k", number, example).double()
            if q.shape[1] % k.shape[1] or q.shape[1] != pattern.shape[0]:
                return f"{q.shape[1]} and {k.shape[1]} heads for {pattern.shape[0]} patterns"
            if q.shape[-1] != k.shape[-1]:
                return f"queries have {q.shape[-1]} entries a head, keys {k.shape[-1]}"
            k = k.repeat_interleave(q.shape[1] // k.shape[1], dim=1)
            logs.append(pattern.double().clamp_min(1e-30).log() - self.added(layer, example))
            products.append(torch.einsum("qhd,khd->hqk", q, k))
        cap = soft_cap(self.subject)
        return one_scale(logs, products, cap, half=self.subject.dtype != torch.float32)

    def added(self, layer: int, example: int) -> Tensor | float:
        """What the type's eager function is given to add: Doge's mask depends on the tokens."""
        operations = self.pair.eager.operations.get(layer, ())
        mask = operations[0].mask if len(operations) == 1 else None
        if mask is None:
            return 0.0
        part = mask[example if len(mask) > 1 else 0]
        return part.masked_fill(part < -1e4, 0.0)[..., : self.pair.eager.length]

    def by_reference(self, layer: int, kind: str) -> str:
        """A reference written by hand, for the families that have one."""
        reference = REFERENCES.get(self.subject.name)
        plain = self.pair.plain
        if reference is None or plain is None or self.subject.dtype != torch.float32:
            return ""
        pre = plain.entered[layer]
        for example in range(2):
            made = reference(self.subject.hf, layer, pre[example].double().numpy())
            if kind not in made:
                return ""
            ours = self.pair.site(kind, self.index[layer], example)
            if not alike(ours, torch.from_numpy(made[kind]), tolerance(ours)):
                return "not what the reference written by hand computes"
        return ""


def soft_cap(subject: Subject) -> float | None:
    """A cap on attention scores, by the names that configurations give it."""
    config = subject.hf.config.get_text_config()
    for name in ("attn_logit_softcapping", "attention_logit_cap", "attn_logit_softcap"):
        value = getattr(config, name, None)
        if isinstance(value, (int, float)) and value:
            return float(value)
    return None


def one_scale(
    logs: Sequence[Tensor], products: Sequence[Tensor], cap: float | None, *, half: bool
) -> str:
    """Why no one scale makes the log-ratios of two patterns of two products; empty if it does.

    Args:
        logs: ``[head, query, key]``, the logarithm of either text's pattern.
        products: ``q k^T`` of either text.
        cap: ``cap * tanh(score / cap)`` was in the softmax instead of the score.
        half: Whether the patterns come in half precision.
    """
    least = -7.0 if half else -14.0
    visible = (logs[0] > least) & (logs[1] > least)
    y = centred(logs[0] - logs[1], visible)
    spread = float(y.abs().max())
    if spread < 1e-3:
        return "?the patterns of two texts hardly differ"

    def fit(scale: float | None) -> tuple[float, float]:
        """How far off, and the slope that is left."""
        capped = [p if scale is None else cap * torch.tanh(p * scale / cap) for p in products]
        x = centred(capped[0] - capped[1], visible)
        slope = float((x * y).sum() / x.pow(2).sum().clamp_min(1e-30))
        slope = slope if scale is None else 1.0  # a cap leaves no factor outside
        return float((y - slope * x)[visible].abs().max()) / spread, slope

    off, slope = fit(None)
    if cap is not None:
        scales = [1e-3 * 1.05**i for i in range(240)]
        best = min(scales, key=lambda s: fit(s)[0])
        off, slope = min(fit(best * 1.001**i) for i in range(-60, 61))
    allowed = 0.2 if half else 5e-3 if cap is not None else 1e-3
    if half:  # scores are rounded before the softmax, large ones by much, and weights behind it
        largest = max(float((p[visible] * slope).abs().max()) for p in products)
        allowed += (2 + 4 * largest) * torch.finfo(torch.bfloat16).eps / spread
    if slope <= 0 or off > allowed:
        return f"the pattern's log-ratios do not follow from q and k (off by {off:.2g})"
    return ""


def centred(x: Tensor, visible: Tensor) -> Tensor:
    """Less each query's mean over the keys that it sees; 0 elsewhere."""
    count = visible.sum(-1, keepdim=True).clamp_min(1)
    mean = (x * visible).sum(-1, keepdim=True) / count
    return (x - mean) * visible
