"""What must hold before an adapter counts as loaded: it does something, and sites keep meaning."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import nn

from actscope.backends.hf.adapter_files import AdapterFiles
from actscope.backends.hf.forward import forward
from actscope.backends.hf.probe import probe_encoder, probe_ids
from actscope.backends.hf.resolve import ModelMap
from actscope.backends.hf.trace import evaluation_mode, first_tensor
from actscope.core.errors import ModelLoadError
from actscope.core.sites import Site

__all__ = ["check_effect", "check_map", "probe_output"]


def probe_output(hf: nn.Module) -> torch.Tensor:
    """What the model returns for the probe: logits, or the last hidden states of an encoder."""
    ids = probe_ids(hf)
    with torch.no_grad(), evaluation_mode(hf):
        output = first_tensor(forward(hf, ids, torch.ones_like(ids), encoder=probe_encoder(hf)))
    assert output is not None  # the resolver has seen it
    return output.detach().clone()


def check_effect(plain: torch.Tensor, adapted: torch.Tensor, files: AdapterFiles) -> None:
    """The adapter changes the output, and the output is finite.

    An adapter without effect is an error and no remark: its run would hold the base's numbers under
    the adapter's name, and nearly always something is wrong with the adapter. Who wants the base's
    numbers can capture the base.
    """
    if not torch.isfinite(adapted).all():
        raise ModelLoadError(
            f"with the adapter {files.name!r} on, the model's output is not finite",
            got=f"{int((~torch.isfinite(adapted)).sum())} of {adapted.numel()} values",
            next_step="try dtype='float32', or an earlier checkpoint of the adapter",
        )
    if not torch.equal(plain, adapted):
        return
    added = [t for key, t in files.weights.items() if "lora_B" in key or "lora_embedding_B" in key]
    untrained = bool(added) and not any(t.count_nonzero() for t in added)
    dtype = str(plain.dtype).removeprefix("torch.")
    raise ModelLoadError(
        f"the adapter {files.name!r} changes nothing: the output is bitwise the base's",
        got="every lora_B is zero: it was never trained"
        if untrained
        else f"weights that are not zero, and changes below the rounding of {dtype}",
        next_step="capture the base instead; it gives the same numbers"
        if untrained
        else "try dtype='float32', or a later checkpoint of the adapter",
    )


def check_map(
    hf: nn.Module, base: ModelMap, adapted: ModelMap, changed: Sequence[str], name: str
) -> None:
    """Every site verified on the base is verified with the adapter on.

    ``adapted`` is corrected where the resolver found the token embedding inside a layer of the
    adapter: what enters the model is that layer's output.
    """
    _place_embedding(hf, base, adapted, changed)
    if adapted.blocks.paths != base.blocks.paths:
        raise ModelLoadError(
            f"the adapter {name!r} changes the chain of blocks",
            got=f"{len(adapted.blocks.paths)} blocks",
            expected=f"the base's {len(base.blocks.paths)}",
        )
    for site, status in base.statuses.items():
        if status.verified and not adapted.statuses[site].verified:
            raise ModelLoadError(
                f"with the adapter {name!r} on, site {site} means something else",
                got=adapted.statuses[site].reason,
                expected=f"as on the base: {status.reason}",
                next_step="merge the adapter into a checkpoint of its own and load that",
            )


def _place_embedding(
    hf: nn.Module, base: ModelMap, adapted: ModelMap, changed: Sequence[str]
) -> None:
    site = Site("embed")
    tap = base.taps.get(site)
    if tap is None or tap.path not in changed:
        return
    ids = probe_ids(hf)
    with torch.no_grad(), evaluation_mode(hf):
        output = first_tensor(hf.get_submodule(tap.path)(ids))
    assert output is not None  # the plain one returned a tensor
    how = f"the adapter's layer around the embedding, which is {base.statuses[site].reason}"
    adapted.verified(site, tap, output, how)
