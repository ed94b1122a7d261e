"""Gradients of a scalar with respect to activations.

At each site a tensor of zeros is added where an intervention would change it, and the loss is
differentiated with respect to these zeros. So the gradient is that of the site as it is defined: of
``resid_mid`` through the MLP and through the stream, of ``attn_out`` after the family's scale.
"""

from __future__ import annotations

from collections.abc import Callable, Generator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import numpy as np
import torch
from torch import nn

from actscope.backends.hf.exclusive import alone
from actscope.backends.hf.forward import forward
from actscope.backends.hf.kept_rows import assemble, described, to_array
from actscope.backends.hf.stacks import encoder_text
from actscope.backends.hf.trace import evaluation_mode
from actscope.backends.hf.unembedding import output_logits
from actscope.backends.hf.writing import Change, install, working
from actscope.core.activations import ActivationBatch, Batch
from actscope.core.arrays import Array
from actscope.core.errors import BadInputError, SiteUnavailableError
from actscope.core.protocols import Selection
from actscope.core.sites import Site
from actscope.strategies import NoneStrategy

if TYPE_CHECKING:
    from actscope.backends.hf.model import HFModel

__all__ = ["Gradients", "LogitDifference", "Loss", "gradients_of"]

Loss = Callable[[torch.Tensor, Batch], torch.Tensor]
"""From logits ``[n, pos, d_vocab]`` and the batch to one number."""


@dataclass(frozen=True)
class Gradients:
    """Gradients of a loss with respect to activations.

    Attributes:
        loss: Its value.
        values: Row i is the gradient with respect to the activation at token i.
    """

    loss: float
    values: ActivationBatch

    def __getitem__(self, key: str | tuple[str, int | None] | Site) -> Any:
        """A list of ``[L_i, width]`` torch tensors, one an example."""
        return self.values[key]


@dataclass(frozen=True)
class LogitDifference:
    """The logit of one token minus that of another at each example's last token.

    Summed over the examples, so that each example's gradient is that of its own difference,
    whatever its batch mates.

    Attributes:
        token: The token id whose logit counts up.
        versus: The one whose logit counts down.
    """

    token: int
    versus: int

    def __call__(self, logits: torch.Tensor, batch: Batch) -> torch.Tensor:
        """``[n, pos, d_vocab]`` -> one number, in float32 or float64."""
        left = batch.padding_side == "left"
        last = [logits.shape[1] - 1 if left else len(row) - 1 for row in batch.rows]
        rows = working(logits[torch.arange(len(last), device=logits.device), last])
        return (rows[:, self.token] - rows[:, self.versus]).sum()


def gradients_of(model: HFModel, batch: Batch, sites: Sequence[Site], loss: Loss) -> Gradients:
    """One forward and one backward pass.

    Raises:
        BadInputError: the loss is no finite scalar of the logits.
        SiteUnavailableError: a site that cannot be changed, or a model without logits.
    """
    if torch.is_inference_mode_enabled():
        raise BadInputError(
            "there are no gradients inside torch.inference_mode",
            next_step="leave it, or use torch.no_grad, which this call overrides",
        )
    points = {site: model.interventions.checked_point(site) for site in sites}
    zeros: dict[Site, torch.Tensor] = {}
    handles: list[Any] = []
    try:
        changes = [(point, _adding_zeros(site, zeros)) for site, point in points.items()]
        install(model.hf, changes, handles, first=False)
        with (
            alone(model.hf),
            torch.enable_grad(),
            evaluation_mode(model.hf),
            _frozen(model.hf),
        ):
            value = _checked(loss(_logits(model, batch), batch))
            wanted = [zeros[site] for site in sites]
            found = torch.autograd.grad(value, wanted, materialize_grads=True)
    finally:
        for handle in handles:
            handle.remove()
    arrays = {site: _rows(g, batch) for site, g in zip(sites, found, strict=True)}
    return Gradients(float(value.detach()), _as_batch(model, batch, arrays))


def _adding_zeros(site: Site, zeros: dict[Site, torch.Tensor]) -> Change:
    def change(tensor: torch.Tensor) -> torch.Tensor:
        zeros[site] = torch.zeros_like(tensor, requires_grad=True)
        return tensor + zeros[site]

    return change


def _logits(model: HFModel, batch: Batch) -> torch.Tensor:
    ids, mask = batch.padded(model.pad_id)
    with model.interventions.announced(batch):
        result = forward(
            model.hf,
            torch.from_numpy(ids).to(model.device),
            torch.from_numpy(mask.astype(np.int64)).to(model.device),
            left_padded=batch.padding_side == "left" and not bool(mask.all()),
            encoder=encoder_text(batch, model.pad_id, model.device),
        )
    logits = output_logits(result)
    if logits is None:
        raise SiteUnavailableError(
            f"{model.identity.name} returns no logits: there is nothing to differentiate"
        )
    return logits


def _checked(value: object) -> torch.Tensor:
    if not isinstance(value, torch.Tensor) or value.numel() != 1:
        got = f"shape {list(value.shape)}" if isinstance(value, torch.Tensor) else type(value)
        raise BadInputError("a loss must be one number, as a torch tensor", got=got)
    if not value.requires_grad:
        raise BadInputError(
            "the loss does not depend on the logits",
            next_step="compute it from the logits it is given, without detach or item",
        )
    if not bool(value.isfinite().all()):
        raise BadInputError("the loss is not finite", got=float(value.detach()))
    return value.reshape(())


@contextmanager
def _frozen(hf: nn.Module) -> Generator[None]:
    """No gradient for the weights: nothing is computed or kept for them."""
    learning = [p for p in hf.parameters() if p.requires_grad]
    try:
        for parameter in learning:
            parameter.requires_grad_(False)
        yield
    finally:
        for parameter in learning:
            parameter.requires_grad_(True)


def _rows(gradient: torch.Tensor, batch: Batch) -> Array:
    """``[sum of tokens, width]`` without padding."""
    _, mask = batch.padded(0)
    flat = gradient.detach().reshape(-1, gradient.shape[-1])
    return to_array(flat[torch.from_numpy(mask.reshape(-1)).to(flat.device)].cpu())


def _as_batch(model: HFModel, batch: Batch, arrays: dict[Site, Array]) -> ActivationBatch:
    spans: list[Array | None] = [np.arange(len(row)) for row in batch.rows]
    selection = Selection(tuple(arrays), NoneStrategy())
    everyone = list(range(len(batch.rows)))
    return described(model, assemble(batch, spans, everyone, arrays, selection, ()))
