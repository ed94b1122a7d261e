"""Weights in fewer bits, chosen at load: the names that ``load_model(quantization=...)`` takes."""

from __future__ import annotations

from importlib.util import find_spec
from typing import Any

import torch

from actscope.core.errors import BadInputError, ModelLoadError, UnknownNameError

__all__ = ["QUANTIZATIONS", "quantization_options"]

QUANTIZATIONS = {
    "int8": "torchao, weights in int8 by output channel; any device",
    "bnb-8bit": "bitsandbytes LLM.int8(); CUDA only",
    "bnb-4bit": "bitsandbytes NF4; CUDA only",
}
"""What each name means. Activations stay in the compute dtype in all of them."""


def quantization_options(
    name: str | None, config: Any, device: torch.device, dtype: torch.dtype
) -> dict[str, Any]:
    """Options of ``from_pretrained`` for a quantisation.

    Args:
        name: A name of ``QUANTIZATIONS``, or None to load the checkpoint as it is.
        config: The checkpoint's configuration.
        device: Where the model will run.
        dtype: Compute dtype.

    Raises:
        UnknownNameError: no such quantisation.
        BadInputError: the checkpoint is quantised already, or the device cannot run it.
        ModelLoadError: its package is not installed.
    """
    if name is None:
        return {}
    if name not in QUANTIZATIONS:
        raise UnknownNameError("quantization", name, QUANTIZATIONS)
    existing = getattr(config, "quantization_config", None)
    if existing is not None:
        raise BadInputError(
            "the checkpoint is quantised already",
            got=str(existing)[:120],
            next_step="leave quantization out: it is loaded as it was saved",
        )
    if name == "int8":
        return {"quantization_config": _torchao_int8()}
    return {"quantization_config": _bitsandbytes(name, device, dtype), "device_map": {"": device}}


def _torchao_int8() -> Any:
    if find_spec("torchao") is None:
        raise ModelLoadError(
            "quantization 'int8' needs the package torchao",
            next_step="pip install 'actscope[quantization]'",
        )
    from torchao.quantization import Int8WeightOnlyConfig
    from transformers import TorchAoConfig

    return TorchAoConfig(Int8WeightOnlyConfig())


def _bitsandbytes(name: str, device: torch.device, dtype: torch.dtype) -> Any:
    if device.type != "cuda":
        raise BadInputError(
            f"quantization {name!r} runs on CUDA devices only",
            got=f"device {device}",
            next_step="use quantization='int8', which runs anywhere, or a CUDA device",
        )
    if find_spec("bitsandbytes") is None:
        raise ModelLoadError(
            f"quantization {name!r} needs the package bitsandbytes",
            next_step="pip install bitsandbytes",
        )
    from transformers import BitsAndBytesConfig

    if name == "bnb-8bit":
        return BitsAndBytesConfig(load_in_8bit=True)
    return BitsAndBytesConfig(
        load_in_4bit=True, bnb_4bit_quant_type="nf4", bnb_4bit_compute_dtype=dtype
    )
