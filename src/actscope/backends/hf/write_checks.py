"""See a change arrive before anybody relies on it: by value, on the resolver's probe.

A known vector is added at a site for one token of each of two prompts. The same site, captured
meanwhile, must be the plain one plus that vector on these tokens and the plain one on the others;
the model's answer must change; and the residual sums of the blocks around it must close again.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import numpy as np
import torch

from actscope.backends.hf.probe import PROBE_TOKENS, probe_ids, reading_probe
from actscope.backends.hf.writing import WritePoint, install, working
from actscope.core.activations import ActivationBatch, Batch
from actscope.core.errors import SiteUnavailableError
from actscope.core.sites import Site

if TYPE_CHECKING:
    from actscope.backends.hf.model import HFModel

__all__ = ["check_write"]

TOKENS = (1, PROBE_TOKENS + 4)
"""One of each prompt, as rows of the flattened batch."""

ULPS = 4  # of the row's largest value

Tensor = torch.Tensor


def check_write(model: HFModel, site: Site, point: WritePoint) -> None:
    """Change a site on the probe and compare.

    Raises:
        SiteUnavailableError: the change did not arrive as it should, with what was seen.
    """
    ids = probe_ids(model.hf)[0].tolist()
    batch = reading_probe(model.hf, Batch.from_ids([ids, ids[::-1]]))
    sites = _watched(model, site)
    plain = model.capture(batch, sites=sites)
    rows = _rows(plain, site)
    vector = _vector(rows)
    handles: list[Any] = []
    try:
        install(model.hf, [(point, lambda tensor: _moved(tensor, vector))], handles)
        changed = model.capture(batch, sites=sites)
    finally:
        for handle in handles:
            handle.remove()
    problem = (
        _arrives(rows, _rows(changed, site), vector, _eps(changed, site))
        or _has_effect(plain, changed, Site("resid_post", model.n_layers - 1))
        or _links(changed, site)
        or _sums(plain, changed, site, vector)
    )
    if problem:
        raise SiteUnavailableError(
            f"site {site} can be read but not changed on {model.identity.name}",
            got=problem,
            next_step="change another site of the same layer",
        )


def _watched(model: HFModel, site: Site) -> list[Site]:
    """The site, the ends of the model, and all parts of the two blocks around it."""
    verified = [s for s, status in model.sites().items() if status.verified]
    layers = {site.layer, None if site.layer is None else site.layer + 1}
    if site.kind == "resid_pre" and site.layer:
        layers.add(site.layer - 1)
    last = Site("resid_post", model.n_layers - 1)
    ends = {last, Site("ln_final"), Site("logits"), Site("pooler")}
    parts = ("resid_pre", "resid_mid", "resid_post", "attn_out", "mlp_out")
    around = [s for s in verified if s in ends or (s.kind in parts and s.layer in layers)]
    return list(dict.fromkeys([site, *around]))


def _rows(batch: ActivationBatch, site: Site) -> Tensor:
    """``[rows, width]``, heads side by side."""
    found = batch[site]
    rows = found if isinstance(found, torch.Tensor) else torch.cat(found)
    return working(rows.flatten(1))


def _vector(rows: Tensor) -> Tensor:
    """Half as long as the rows are, in a random direction that is always the same."""
    noise = np.random.default_rng(0).standard_normal(rows.shape[-1])
    unit = torch.from_numpy(noise / np.linalg.norm(noise)).to(rows.dtype)
    return unit * rows.norm(dim=-1).mean() / 2


def _moved(tensor: Tensor, vector: Tensor) -> Tensor:
    flat = tensor.reshape(-1, tensor.shape[-1]).clone()
    for token in TOKENS:
        row = working(flat[token]) + vector.to(flat.device)
        flat[token] = row.to(flat.dtype)
    return flat.reshape(tensor.shape)


def _expected(rows: Tensor, vector: Tensor) -> Tensor:
    expected = rows.clone()
    expected[list(TOKENS)] += vector
    return expected


def _close(a: Tensor, b: Tensor, size: Tensor, eps: float) -> bool:
    """Equal up to rounding of values as large as ``size`` in each row."""
    return bool(((a - b).abs().amax(-1) <= ULPS * eps * size.abs().amax(-1)).all())


def _eps(batch: ActivationBatch, site: Site) -> float:
    """Rounding of the dtype that the model computes the site in."""
    name = str(batch.arrays[site].dtype)
    return float(torch.finfo(getattr(torch, name)).eps)


def _arrives(before: Tensor, after: Tensor, vector: Tensor, eps: float) -> str:
    expected = _expected(before, vector)
    others = [i for i in range(len(before)) if i not in TOKENS]
    if not torch.equal(before[others], after[others]):
        return "other tokens than the chosen ones changed there"
    if torch.equal(before[list(TOKENS)], after[list(TOKENS)]):
        return "the site itself did not change"
    size = torch.maximum(expected.abs(), before.abs())
    if not _close(after, expected, size, eps):
        return "the site changed by another vector than the one that was added"
    return ""


def _has_effect(plain: ActivationBatch, changed: ActivationBatch, last: Site) -> str:
    """Logits, or the last block's output where the model has none, are other ones."""
    heads = [s for s in plain.sites if s.kind in ("ln_final", "logits")]
    ends = heads or [s for s in plain.sites if s in (last, Site("pooler"))]
    if all(torch.equal(_rows(plain, s), _rows(changed, s)) for s in ends):
        return "the model's answer does not depend on it"
    return ""


def _links(changed: ActivationBatch, site: Site) -> str:
    """What leaves a block is what enters the next, also when it was changed."""
    for layer in range(1 + max((s.layer or 0) for s in changed.sites)):
        post, pre = Site("resid_post", layer), Site("resid_pre", layer + 1)
        if {post, pre} <= set(changed.sites) and not torch.equal(
            _rows(changed, post), _rows(changed, pre)
        ):
            return f"{post} and {pre} are no longer the same"
    return ""


def _sums(plain: ActivationBatch, changed: ActivationBatch, site: Site, vector: Tensor) -> str:
    """Each sum that closes in a plain block does, with the vector where it came after the parts."""
    added_in = {
        "resid_mid": site.layer,
        "resid_post": site.layer,
        "resid_pre": site.layer - 1 if site.layer else None,
    }.get(site.kind)
    for layer in changed.layers:
        parts = [Site(k, layer) for k in ("resid_pre", "attn_out", "mlp_out", "resid_post")]
        if not set(parts) <= set(changed.sites):
            continue
        pre, attn, mlp, post = (_rows(changed, part) for part in parts)
        mid, eps = Site("resid_mid", layer), _eps(changed, parts[-1])
        sums: list[tuple[Tensor, bool]] = []
        if _close(*_plain_sum(plain, parts[:3], parts[3]), post, eps):
            sums.append((pre + attn + mlp, layer == added_in))
        if mid in changed.sites and _close(
            *_plain_sum(plain, [mid, parts[2]], parts[3]), post, eps
        ):
            late = layer == added_in and site.kind != "resid_mid"
            sums.append((_rows(changed, mid) + mlp, late))
        for total, moved in sums:
            wanted = _expected(total, vector) if moved else total
            size = torch.stack([x.abs() for x in (pre, attn, mlp, post, wanted)]).amax(0)
            if not _close(wanted, post, size, eps):
                return f"the residual sum of block {layer} does not close any more"
    return ""


def _plain_sum(plain: ActivationBatch, terms: list[Site], whole: Site) -> tuple[Tensor, Tensor]:
    """A sum of sites and what it should be, in the pass without a change."""
    rows = [_rows(plain, term) for term in terms]
    return torch.stack(rows).sum(0), _rows(plain, whole)
