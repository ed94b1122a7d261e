"""The probe: seven tokens, and the same with one token altered, with all that modules returned."""

from __future__ import annotations

from dataclasses import dataclass, replace

import torch
from torch import nn

from actscope.backends.hf.attention_probe import AttentionProbe, probing_attention
from actscope.backends.hf.constants import numbers_of
from actscope.backends.hf.forward import forward, token_embedding
from actscope.backends.hf.placement import input_device
from actscope.backends.hf.stacks import EncoderText, reads_two_texts
from actscope.backends.hf.trace import Trace, trace_forward
from actscope.core.activations import Batch
from actscope.core.errors import ModelLoadError
from actscope.families import facts_for

__all__ = [
    "ALTERED",
    "PROBE_TOKENS",
    "READ_TOKENS",
    "Probe",
    "probe_encoder",
    "probe_ids",
    "reading_probe",
    "take_probe",
]

PROBE_TOKENS = 7
READ_TOKENS = 5
ALTERED = 3


@dataclass(frozen=True)
class Probe:
    """What a model did on the probe.

    Attributes:
        model: The model.
        ids: ``[1, PROBE_TOKENS]``.
        plain: The forward pass.
        altered: The same with another token at ``ALTERED``.
        attention: What was seen of attention in either pass.
        numbers: Every positive number of the configuration, and the family's.
    """

    model: nn.Module
    ids: torch.Tensor
    plain: Trace
    altered: Trace
    attention: tuple[AttentionProbe, AttentionProbe]
    numbers: tuple[float, ...]

    def run(self) -> Trace:
        """One more forward pass over the plain ids, with the hooks that are in place now."""
        return _traced(self.model, self.ids)

    def run_on_another_text(self) -> Trace:
        """The same with another text for the encoder of an encoder-decoder."""
        read, mask = probe_encoder(self.model) or (self.ids, self.ids)
        return _traced(self.model, self.ids, (read.flip(-1), mask))


def take_probe(model: nn.Module) -> Probe:
    """Run the two passes.

    Raises:
        ModelLoadError: the probe does not run.
    """
    config = getattr(model, "config", None)
    ids = probe_ids(model)
    changed = ids.clone()
    changed[0, ALTERED] = ids[0, ALTERED - 1]
    family = facts_for(str(getattr(config, "model_type", "")))
    numbers = (*numbers_of(config), *family.constants)
    with probing_attention(model) as seen:
        plain = _traced(model, ids)
    with probing_attention(model) as seen_altered:
        altered = _traced(model, changed)
    return Probe(model, ids, plain, altered, (seen, seen_altered), numbers)


def probe_ids(model: nn.Module) -> torch.Tensor:
    """Seven token ids of the vocabulary, ``[1, 7]``, always the same for one model."""
    embedding = token_embedding(model)
    vocab = int(embedding.weight.shape[0])
    generator = torch.Generator().manual_seed(0)
    # Low ids are often padding, BOS and other marks that embeddings treat apart.
    low = min(8, max(vocab - PROBE_TOKENS - 1, 0))
    ids = low + torch.randperm(max(vocab - low, 1), generator=generator)[:PROBE_TOKENS]
    return ids.unsqueeze(0).to(input_device(model))


def probe_encoder(model: nn.Module, n: int = 1) -> EncoderText | None:
    """Five tokens for the encoder of an encoder-decoder, ``[n, 5]``; None for other models.

    Fewer than the decoder's, so that neither stack's tensors can pass for the other's.
    """
    if not reads_two_texts(model):
        return None
    ids = probe_ids(model)[:, :READ_TOKENS].flip(-1).expand(n, -1)
    return ids, torch.ones_like(ids)


def reading_probe(model: nn.Module, batch: Batch) -> Batch:
    """Rows of the decoder of an encoder-decoder with the probe's text for the encoder."""
    encoder = probe_encoder(model)
    if encoder is None:
        return batch
    read = encoder[0][0].cpu().numpy()
    return replace(batch, rows=tuple(replace(row, encoder_ids=read) for row in batch.rows))


def _traced(model: nn.Module, ids: torch.Tensor, encoder: EncoderText | None = None) -> Trace:
    encoder = encoder or probe_encoder(model)
    mask = torch.ones_like(ids)
    try:
        return trace_forward(model, lambda: forward(model, ids, mask, encoder=encoder))
    except (TypeError, ValueError, RuntimeError, IndexError, KeyError, AttributeError) as error:
        raise ModelLoadError(
            f"a probe of {ids.shape[-1]} tokens does not run through {type(model).__name__}",
            got=f"{type(error).__name__}: {str(error).splitlines()[0] if str(error) else ''}",
            expected="a model that takes input_ids and an attention mask",
        ) from error
