"""Is what a capture returns what the model computed? Judged without the resolver's help.

Residuals are compared with plain hooks on the type's own layers and with Hugging Face's
``hidden_states``; contributions are set to zero, which must change the block's output by exactly
the contribution (``coverage_residuals``, ``coverage_contributions``). Queries, keys, values,
patterns and neurons are compared with the type's own eager attention and exchanged in an untouched
copy (``coverage_attention``, ``coverage_mlp``).
"""

from __future__ import annotations

from typing import Any

from coverage_attention import attention
from coverage_contributions import contributions
from coverage_mlp import MLP_KINDS, mlps, structure
from coverage_residuals import ends, residuals, residuals_by_hidden_states
from coverage_subject import (
    ABSENT,
    UNAVAILABLE,
    UNJUDGED,
    Subject,
    Verdict,
    batch_of,
    own_layers,
)

__all__ = ["KINDS", "Verdict", "judge", "judge_refusal"]

KINDS = (
    "embed",
    "resid_pre",
    "resid_mid",
    "resid_post",
    "attn_out",
    "q",
    "k",
    "v",
    "z",
    "pattern",
    "mlp_out",
    "mlp_pre",
    "mlp_post",
    "router",
    "ln_final",
    "logits",
)

NO_TOKEN_STREAM = {
    "prophetnet": "each token has a second row, which the prediction is made from",
    "reformer": "reversible blocks carry two streams",
    "seq2seq/bart": "two stacks read two texts",
    "seq2seq/t5": "two stacks read two texts",
}
"""Types without one residual row per token, by reading their code."""


def judge_refusal(name: str, hf: Any, message: str) -> dict[str, Verdict]:
    """Verdicts on a type that actscope refuses as a whole."""
    if name in NO_TOKEN_STREAM:
        return {kind: Verdict(ABSENT, NO_TOKEN_STREAM[name]) for kind in KINDS}
    refused = {kind: Verdict(UNAVAILABLE, message) for kind in KINDS}
    return refused | {kind: Verdict(ABSENT, why) for kind, why in absent(hf).items()}


def absent(hf: Any) -> dict[str, str]:
    """Sites inside MLPs that a type has nowhere, by the names of its classes and parts."""
    found = structure(hf, ())
    if found != "experts":
        return {"router": "no block has experts"}
    return {}


def judge(name: str, model: Any) -> dict[str, Verdict]:
    """Verdicts on every kind of site of the table."""
    subject = Subject(name, model)
    subject.layers = own_layers(subject.hf, batch_of((7,)))
    verdicts: dict[str, Verdict] = {}
    if subject.layers and len(subject.layers) < len(subject.model._map.blocks.ran):
        raise AssertionError(
            f"only {len(subject.layers)} of {subject.model.n_layers} own layers found"
        )
    if subject.layers:
        verdicts |= residuals(subject)
        verdicts |= contributions(subject)
        verdicts |= attention(subject)
        verdicts |= mlps(subject)
    else:
        verdicts |= residuals_by_hidden_states(subject)
        kinds = ("resid_mid", "attn_out", "mlp_out", *MLP_KINDS)
        verdicts |= {kind: unjudged_or(subject, kind) for kind in kinds}
        verdicts |= attention(subject)
        nowhere = absent(subject.hf)
        verdicts |= {kind: Verdict(ABSENT, why) for kind, why in nowhere.items()}
    verdicts |= ends(subject)
    return {kind: verdicts[kind] for kind in KINDS}


def unjudged_or(subject: Subject, kind: str) -> Verdict:
    """For kinds that have no oracle here."""
    statuses = [s for site, s in subject.model.sites().items() if site.kind == kind]
    refused = [s.reason for s in statuses if not s.verified]
    return Verdict(UNAVAILABLE, refused[0]) if refused else Verdict(UNJUDGED)
