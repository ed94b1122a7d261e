"""Residuals and ends: hooks on the type's own layers, Hugging Face's hidden states, the ends."""

from __future__ import annotations

import copy
from typing import Any

import torch
from coverage_subject import (
    ABSENT,
    LENGTHS,
    UNAVAILABLE,
    VERIFIED,
    WRONG,
    Hooks,
    Subject,
    Tensor,
    Verdict,
    batch_for,
    batch_of,
    equal,
    flow,
    layer_numbers,
    run,
    unpadded,
)
from torch import nn
from transformers import PreTrainedModel

from actscope import Batch


def hidden_states(subject: Subject, batch: Batch) -> list[list[Tensor]]:
    """Hugging Face's own, as unpadded rows; asking for them leaves hooks behind, so from a copy."""
    twin = copy.deepcopy(subject.hf)
    try:
        states = run(twin, batch, output_hidden_states=True).hidden_states
    except (TypeError, AttributeError, ValueError):
        return []
    found = [unpadded(t, batch) for t in states or () if isinstance(t, Tensor)]
    return [rows for rows in found if rows is not None]


def residuals(subject: Subject) -> dict[str, Verdict]:
    """Plain hooks, Hugging Face's hidden states, and both padding sides."""
    batch = batch_for(subject)
    seen, model = flow(subject, batch), subject.model
    states = hidden_states(subject, batch)
    verdicts = {}
    own = list(range(len(subject.layers)))
    index = layer_numbers(subject)
    captured = model.capture(batch, sites=["resid_pre", "resid_post"])
    for kind, tensors in (("resid_pre", seen.entered), ("resid_post", seen.left)):
        wrong = [i for i in own if not equal(captured[kind, index[i]], unpadded(tensors[i], batch))]
        told = [
            i for i in own
            if not states or any(equal(captured[kind, index[i]], rows) for rows in states)
        ]  # fmt: skip
        # Some tuples begin behind the first block, most end behind the final norm, and where a
        # model rescales the stream between two blocks they hold what the second one receives.
        ends = own[:1] if kind == "resid_pre" else own[-1:]
        cut = [i for i in own[:-1] if not torch.equal(seen.left[i], seen.entered[i + 1])]
        excused = {*ends, *(cut if kind == "resid_post" else ())}
        untold = [i for i in own if i not in told and i not in excused]
        if wrong or len(own) > model.n_layers:
            verdicts[kind] = Verdict(WRONG, f"hooks on the type's own layers differ in {wrong}")
        elif untold:
            verdicts[kind] = Verdict(
                WRONG, f"not among Hugging Face's hidden_states: layers {untold}"
            )
        else:
            verdicts[kind] = padding(subject, kind)
    return verdicts


def residuals_by_hidden_states(subject: Subject) -> dict[str, Verdict]:
    """For types whose layers are no modules."""
    batch = batch_for(subject)
    states = hidden_states(subject, batch)
    captured = subject.model.capture(batch, sites=["resid_pre", "resid_post"])
    verdicts = {}
    for kind in ("resid_pre", "resid_post"):
        shift = 0 if kind == "resid_pre" else 1
        wrong = [
            i for i in range(subject.model.n_layers)
            if not states or not equal(captured[kind, i], states[i + shift])
        ]  # fmt: skip
        if wrong:
            verdicts[kind] = Verdict(WRONG, f"differs from hidden_states in layers {wrong}")
        else:
            verdicts[kind] = padding(subject, kind)
    return verdicts


def padding(subject: Subject, kind: str) -> Verdict:
    """Each text alone, beside others padded on the right, and padded on the left."""
    together = subject.model.capture(batch_of(LENGTHS), sites=[kind])
    try:
        left = subject.model.capture(batch_of(LENGTHS, "left"), sites=[kind])
    except Exception as error:  # a refusal is an answer; what it says goes into the table
        if type(error).__name__ not in ("BadInputError", "SiteUnavailableError"):
            raise
        left = None
    batch = batch_of(LENGTHS)
    for i, row in enumerate(batch.rows):
        alone = subject.model.capture(Batch.from_ids([row.token_ids]), sites=[kind])
        for name, other in (("right", together), ("left", left)):
            for site in alone.sites if other is not None else ():
                a, b = alone[site][0], other[site][i]
                allowed = 0.1 if a.dtype != torch.float32 else 2e-4
                if not torch.allclose(a, b, rtol=allowed, atol=allowed / 2 * float(a.abs().max())):
                    return Verdict(WRONG, f"{site} moves with padding on the {name}")
    return Verdict(VERIFIED, "" if left is not None else "padding on the left is refused")


def ends(subject: Subject) -> dict[str, Verdict]:
    """The embedding's own output, the base model's last hidden state, and the logits."""
    batch, model, hf = batch_for(subject), subject.model, subject.hf
    embedding = hf.get_input_embeddings()
    embedding = embedding[0] if isinstance(embedding, nn.ModuleList) else embedding
    decoder = hf.get_decoder() if callable(getattr(hf, "get_decoder", None)) else None
    named = getattr(hf, getattr(hf, "base_model_prefix", "") or "", None)
    parts = (decoder, named, getattr(hf, "model", None))
    bases = [m for m in parts if isinstance(m, PreTrainedModel) and m is not hf] or [hf]
    caught: dict[Any, Tensor] = {}
    with Hooks() as hooks:
        for module in {embedding, *bases}:

            def keep(tensor: Tensor, module: Any = module) -> None:
                caught[module] = tensor.clone()

            hooks.output(module, keep)
        result = run(hf, batch)
    last = next((caught[m] for m in bases if m in caught), None)
    statuses = {s.kind: status for s, status in model.sites().items() if s.layer is None}
    logits = getattr(result, "logits", None)
    return {
        "embed": one_end(subject, "embed", statuses, caught.get(embedding), batch),
        "ln_final": final_norm(subject, statuses, last, batch),
        "logits": Verdict(ABSENT, "built without a head") if logits is None
        else one_end(subject, "logits", statuses, logits, batch),
    }  # fmt: skip


def one_end(
    subject: Subject, kind: str, statuses: Any, theirs: Tensor | None, batch: Batch
) -> Verdict:
    if not statuses[kind].verified:
        return Verdict(UNAVAILABLE, statuses[kind].reason)
    ours = subject.model.capture(batch, sites=[kind])[kind]
    rows = None if theirs is None else unpadded(theirs, batch)
    return (
        Verdict(VERIFIED) if equal(ours, rows) else Verdict(WRONG, "differs from the model's own")
    )


def final_norm(subject: Subject, statuses: Any, base: Tensor | None, batch: Batch) -> Verdict:
    """The base model's last hidden state is behind the final norm, if there is one."""
    if base is None:
        return Verdict(UNAVAILABLE, "no base model to compare with")
    theirs = unpadded(base, batch)
    stream = subject.model.capture(batch, sites=["resid_post"], layers=[-1])[
        "resid_post", subject.model.n_layers - 1
    ]
    if not statuses["ln_final"].verified:
        if theirs is not None and equal(stream, theirs):
            return Verdict(ABSENT, "nothing normalises the last block's output")
        return Verdict(UNAVAILABLE, statuses["ln_final"].reason)
    return one_end(subject, "ln_final", statuses, base, batch)
