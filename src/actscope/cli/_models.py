"""Load a model for a verb, quietly."""

from __future__ import annotations

import logging
import os
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from actscope.backends.hf import HFModel

__all__ = ["describe", "load"]


def load(
    name: str,
    *,
    device: str,
    dtype: str,
    revision: str | None,
    adapter: str | None = None,
    stack: str | None = None,
) -> HFModel:
    """Load a model; its libraries keep their progress bars and remarks to themselves."""
    os.environ.setdefault("TRANSFORMERS_VERBOSITY", "error")
    os.environ.setdefault("HF_HUB_DISABLE_PROGRESS_BARS", "1")
    os.environ.setdefault("TOKENIZERS_PARALLELISM", "false")
    from actscope.backends.hf import load_model

    for library in ("torchao", "torch.utils._pytree"):  # peft imports torchao where it is there
        logging.getLogger(library).setLevel(logging.ERROR)
    return load_model(name, device, dtype=dtype, revision=revision, adapter=adapter, stack=stack)


def describe(model: HFModel) -> str:
    """One line: what it is, where it runs and in what, and why."""
    identity = model.identity
    reason = f" ({model.dtype_reason})" if model.dtype_reason else ""
    name = identity.name
    if identity.adapter:
        name += f" with the adapter {identity.adapter}"
    return (
        f"{name}: {identity.model_type}, {model.n_layers} layers of {model.d_model}, "
        f"on {model.device} in {model.dtype}{reason}"
    )
