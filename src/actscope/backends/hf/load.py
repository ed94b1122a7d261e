"""Load a Hugging Face model and its tokenizer: hub id, local folder, or the bundled ``demo``."""

from __future__ import annotations

import logging
from collections.abc import Generator, Mapping
from contextlib import contextmanager
from importlib import resources
from pathlib import Path
from typing import Any

import torch
from torch import nn

from actscope.backends.hf.model import HFModel
from actscope.backends.hf.quantization import quantization_options
from actscope.backends.hf.stacks import chosen_stack
from actscope.core.errors import BadInputError, ModelLoadError, UnknownNameError

__all__ = ["HFBackend", "load_model", "wrap_model"]

logger = logging.getLogger(__name__)

_DTYPES = {
    "float32": torch.float32,
    "bfloat16": torch.bfloat16,
    "float16": torch.float16,
    "float64": torch.float64,
}


def load_model(  # noqa: PLR0913  (what a user may say of a model, each by name)
    model_name: str,
    device: str = "auto",
    *,
    dtype: str = "auto",
    revision: str | None = None,
    adapter: str | None = None,
    adapters: Mapping[str, str] | None = None,
    quantization: str | None = None,
    stack: str | None = None,
) -> HFModel:
    """Load a model and verify its sites.

    Args:
        model_name: A hub id, a local folder, or ``demo`` for the bundled model.
        device: ``auto`` (cuda, else mps, else cpu) or a torch device.
        dtype: Compute dtype. ``auto`` is the checkpoint's own on an accelerator or a CPU with
            native bfloat16, and float32 on a CPU that only emulates it.
        revision: Branch, tag or commit on the hub.
        adapter: A LoRA adapter to switch on: a folder, a name under ``local_checkpoints/``, a hub
            id, ``demo-lora``, or a key of ``adapters``. Never merged.
        adapters: Further LoRA adapters by the names to call them, left off.
        quantization: ``int8``, ``bnb-8bit`` or ``bnb-4bit``; None loads what the checkpoint holds.
        stack: ``encoder`` or ``decoder`` of an encoder-decoder; None for every other model.

    Raises:
        ModelLoadError: the model, its files or an adapter cannot be loaded, with what to do.
        UnknownNameError: no such dtype or quantisation.
    """
    source, name = _locate(model_name)
    config = _load_config(source, revision)
    where = _device(device)
    compute, reason = _dtype(dtype, config, where)
    options = quantization_options(quantization, config, where, compute)
    with _without_bars():
        hf = _load_weights(source, config, compute, {"revision": revision, **options}).eval()
    if "device_map" not in options:
        hf = hf.to(where)
    tokenizer = _load_tokenizer(source, revision)
    logger.info("%s computes in %s: %s", name, compute, reason)
    commit = getattr(config, "_commit_hash", None)
    model = _wrapped(hf, tokenizer, stack, name=name, revision=commit, dtype_reason=reason)
    _load_adapters(model, adapter, adapters or {})
    return model


def _load_adapters(model: HFModel, adapter: str | None, adapters: Mapping[str, str]) -> None:
    for name, source in adapters.items():
        model.load_adapter(source, name=name)
    if adapter is not None:
        name = adapter if adapter in adapters else model.load_adapter(adapter).name
        model.switch_adapter(name)


def _wrapped(hf: nn.Module, tokenizer: Any, stack: str | None, **known: Any) -> HFModel:
    """The model, or one stack of it under a name of its own."""
    chosen = chosen_stack(hf, stack)
    if stack is not None:
        known["name"] += f" ({stack})"
    return HFModel(chosen, tokenizer, **known)


def wrap_model(
    hf_model: Any, tokenizer: Any = None, *, name: str | None = None, stack: str | None = None
) -> HFModel:
    """Use a model that is already in memory; it is not changed.

    Args:
        hf_model: A Hugging Face model, or any module that takes ``input_ids`` and passes a
            residual stream through a ``ModuleList``.
        tokenizer: Its tokenizer, or None for token id input only.
        name: What to call it in records; its configuration's name or its class by default.
        stack: ``encoder`` or ``decoder`` of an encoder-decoder; None for every other model.

    Raises:
        ModelLoadError: it is no such module, or its tensors lie on different devices.
    """
    if not isinstance(hf_model, nn.Module):
        raise ModelLoadError(
            "wrap_model takes a torch module",
            got=type(hf_model).__name__,
            next_step="actscope.load_model(name) loads one by name",
        )
    config = getattr(hf_model, "config", None)
    given = name or getattr(config, "_name_or_path", "") or type(hf_model).__name__
    reason = "the wrapped model's own"
    return _wrapped(hf_model, tokenizer, stack, name=given, dtype_reason=reason)


class HFBackend:
    """Loads Hugging Face models. Known to users as ``actscope.ModelBackend``."""

    def load_model(self, model_name: str, device: str = "cpu", **options: Any) -> HFModel:
        """See ``actscope.load_model``."""
        return load_model(model_name, device, **options)

    def wrap_model(self, hf_model: nn.Module, tokenizer: Any = None) -> HFModel:
        """See ``actscope.wrap_model``."""
        return wrap_model(hf_model, tokenizer)


@contextmanager
def _without_bars() -> Generator[None]:
    """A bar that fills in an instant is noise in a notebook; the user's setting comes back."""
    from transformers.utils import logging as settings

    shown = settings.is_progress_bar_enabled()
    settings.disable_progress_bar()
    try:
        yield
    finally:
        if shown:
            settings.enable_progress_bar()


def _locate(model_name: str) -> tuple[str, str]:
    """(what transformers loads from, the name on record)."""
    if model_name == "demo":
        return str(resources.files("actscope") / "demo" / "model"), "demo"
    folder = Path(model_name).expanduser()
    if folder.is_dir():
        if not (folder / "config.json").is_file():
            raise ModelLoadError(
                f"the folder {model_name} is no model: it has no config.json",
                got=", ".join(sorted(p.name for p in folder.iterdir())[:8]) or "an empty folder",
                next_step="point to the folder that save_pretrained wrote",
            )
        return str(folder), folder.absolute().name or str(folder)
    if folder.is_file() or model_name.startswith((".", "/", "~")):
        raise ModelLoadError(
            f"there is no model folder {model_name}", next_step="check the path, or give a hub id"
        )
    return model_name, model_name


def _load_config(source: str, revision: str | None) -> Any:
    from transformers import AutoConfig

    try:
        return AutoConfig.from_pretrained(source, revision=revision)
    except (OSError, ValueError, KeyError) as error:
        raise ModelLoadError(
            f"the model {source!r} cannot be loaded",
            got=str(error).strip().splitlines()[0],
            next_step="check the name and the network, or give a local folder; "
            "'demo' is the bundled model",
        ) from error


def _load_weights(source: str, config: Any, dtype: torch.dtype, further: Mapping[str, Any]) -> Any:
    from transformers import (
        AutoModel,
        AutoModelForCausalLM,
        AutoModelForImageTextToText,
        AutoModelForSeq2SeqLM,
    )

    loader: Any = AutoModelForCausalLM if _is_causal_lm(config) else AutoModel
    if getattr(config, "is_encoder_decoder", False):
        loader = AutoModelForSeq2SeqLM
    elif _reads_images(config):
        loader = AutoModelForImageTextToText
    options = {"config": config, "dtype": dtype, **further}
    hf, absent = _from_pretrained(loader, source, options)
    if absent and all(name.startswith("pooler.") for name in absent):
        # A checkpoint of a masked language model has no pooler; a random one must not be captured.
        hf, absent = _from_pretrained(loader, source, {**options, "add_pooling_layer": False})
    if absent:
        raise ModelLoadError(
            f"the checkpoint of {source!r} lacks weights of {type(hf).__name__}",
            got=f"{len(absent)} missing or of another shape: {', '.join(absent[:5])}",
            next_step="get the whole checkpoint: weights that are missing would be random numbers",
        )
    return hf


def _from_pretrained(loader: Any, source: str, options: dict[str, Any]) -> tuple[Any, list[str]]:
    """The model, and the names of weights that the checkpoint does not have in this shape."""
    try:
        hf, info = loader.from_pretrained(source, output_loading_info=True, **options)
    except Exception as error:  # safetensors, pickle and torch each raise their own kinds
        raise ModelLoadError(
            f"the weights of {source!r} cannot be loaded",
            got=str(error).strip().splitlines()[0],
            next_step="check that the download or the copy is complete",
        ) from error
    absent = [*info["missing_keys"], *(name for name, *_ in info["mismatched_keys"])]
    return hf, sorted(absent)


def _is_causal_lm(config: Any) -> bool:
    """Whether the checkpoint was saved with a causal LM head (an encoder was not)."""
    from transformers.models.auto.modeling_auto import (
        MODEL_FOR_CAUSAL_LM_MAPPING_NAMES,
        MODEL_FOR_MASKED_LM_MAPPING_NAMES,
    )

    causal = MODEL_FOR_CAUSAL_LM_MAPPING_NAMES.get(config.model_type)
    names: list[str] = getattr(config, "architectures", None) or []
    if names:
        return names[0] == causal
    return causal is not None and config.model_type not in MODEL_FOR_MASKED_LM_MAPPING_NAMES


def _reads_images(config: Any) -> bool:
    """Whether the checkpoint was saved as a vision-language model, with its head."""
    from transformers.models.auto.modeling_auto import MODEL_FOR_IMAGE_TEXT_TO_TEXT_MAPPING_NAMES

    name = MODEL_FOR_IMAGE_TEXT_TO_TEXT_MAPPING_NAMES.get(config.model_type)
    architectures: list[str] = getattr(config, "architectures", None) or []
    return bool(architectures) and architectures[0] == name


def _load_tokenizer(source: str, revision: str | None) -> Any:
    from transformers import AutoTokenizer

    try:
        return AutoTokenizer.from_pretrained(source, revision=revision)
    except (OSError, ValueError, KeyError, TypeError, AttributeError) as error:
        reason = str(error).strip().splitlines()[0]
        logger.info("%s has no tokenizer that loads (%s): token ids only", source, reason)
        return None


def _device(device: str) -> torch.device:
    if device != "auto":
        try:
            found = torch.device(device)
        except RuntimeError as error:
            raise BadInputError(
                "unknown device", got=device, expected="auto, cpu, cuda, cuda:1 or mps"
            ) from error
        if found.type == "cuda" and not torch.cuda.is_available():
            raise BadInputError(
                "there is no CUDA device here", got=device, next_step="use --device cpu or auto"
            )
        return found
    if torch.cuda.is_available():
        return torch.device("cuda")
    return torch.device("mps" if torch.backends.mps.is_available() else "cpu")


def _dtype(dtype: str, config: Any, device: torch.device) -> tuple[torch.dtype, str]:
    if dtype != "auto":
        if dtype not in _DTYPES:
            raise UnknownNameError("dtype", dtype, [*_DTYPES, "auto"])
        return _DTYPES[dtype], "asked for"
    stored: Any = getattr(config, "dtype", None) or torch.float32
    if isinstance(stored, str):
        stored = _DTYPES.get(stored.removeprefix("torch."), torch.float32)
    if device.type != "cpu" or stored in (torch.float32, torch.float64):
        return stored, "the checkpoint's own"
    if stored is torch.bfloat16 and _cpu_has_bfloat16():
        return stored, "the checkpoint's own, which this CPU computes natively"
    name = str(stored).removeprefix("torch.")
    return torch.float32, f"this CPU only emulates the checkpoint's {name}, which is far slower"


def _cpu_has_bfloat16() -> bool:
    info: Mapping[str, Any] = torch.cpu.get_capabilities()
    return bool(info.get("amx_bf16") or info.get("avx512_bf16") or info.get("bf16"))
