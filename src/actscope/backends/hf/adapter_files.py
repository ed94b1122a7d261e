"""Find, read and judge the files of a LoRA adapter before a model is touched.

An adapter folder holds ``adapter_config.json`` and ``adapter_model.safetensors`` (or ``.bin``, read
through torch's allow-list of plain tensors). What peft itself only warns about, or does to the base
model without a word, is refused here: biases of the base overwritten at load, weights that are not
finite, and options that this version of peft does not know.
"""

from __future__ import annotations

import hashlib
import json
import re
from collections.abc import Mapping
from dataclasses import dataclass
from importlib import resources
from pathlib import Path
from typing import Any

import torch

from actscope.core.errors import ModelLoadError
from actscope.core.provenance import canonical_json

__all__ = ["AdapterFiles", "read_adapter"]

CONFIG = "adapter_config.json"
WEIGHTS = ("adapter_model.safetensors", "adapter_model.bin")
BUNDLED = "demo-lora"
CHECKPOINTS = "local_checkpoints"

_HUB_ID = re.compile(r"[\w.-]+(/[\w.-]+)?")
_DECIDES_NUMBERS = (
    "alpha_pattern", "fan_in_fan_out", "lora_alpha", "lora_bias", "modules_to_save", "r",
    "rank_pattern", "use_dora", "use_rslora",
)  # fmt: skip
_SAYS_WHERE = (
    "exclude_modules", "layers_pattern", "layers_to_transform", "target_modules",
    "target_parameters",
)  # fmt: skip
_WITHOUT_EFFECT_HERE = (
    "auto_mapping", "base_model_name_or_path", "corda_config", "ensure_weight_tying", "eva_config",
    "inference_mode", "init_lora_weights", "loftq_config", "lora_dropout", "lora_ga_config",
    "megatron_core", "peft_type", "peft_version", "qalora_group_size", "revision",
    "runtime_config", "task_type",
)  # fmt: skip
_UNDERSTOOD = {*_DECIDES_NUMBERS, *_SAYS_WHERE, *_WITHOUT_EFFECT_HERE, "bias"}
_LEAVES_THE_BASE = (True, False, None, "gaussian", "eva", "orthogonal")
"""Initialisations after which the base is what it was. PiSSA, OLoRA, CorDA, LoftQ and LoRA-GA
rewrite its weights; once converted, their adapters say ``true``."""


@dataclass(frozen=True)
class AdapterFiles:
    """An adapter's content, checked.

    Attributes:
        name: The folder's name, the hub id, or ``demo-lora``.
        source: The folder it was read from.
        settings: ``adapter_config.json``.
        weights: Its tensors by name, on the CPU.
        digest: Hex digest of every tensor and of each setting that decides a number.
        base: The model it was trained on, as its configuration says, or None.
    """

    name: str
    source: str
    settings: Mapping[str, Any]
    weights: Mapping[str, torch.Tensor]
    digest: str
    base: str | None


def read_adapter(adapter: str) -> AdapterFiles:
    """Find an adapter and read it.

    Args:
        adapter: A folder, the name of a folder under ``local_checkpoints/`` or one level deeper, a
            hub id, or ``demo-lora``; tried in this order.

    Raises:
        ModelLoadError: it is nowhere, not a LoRA adapter, damaged, or does more than LoRA does.
    """
    folder, name = _locate(adapter)
    settings = _settings(folder)
    _refuse_more_than_lora(settings, name)
    weights = _weights(folder, name)
    _refuse_non_finite(weights, name)
    base = settings.get("base_model_name_or_path")
    return AdapterFiles(
        name=name,
        source=str(folder),
        settings=settings,
        weights=weights,
        digest=_digest(settings, weights),
        base=str(base) if base else None,
    )


def _locate(adapter: str) -> tuple[Path, str]:
    """(folder, the name on record)."""
    if adapter == BUNDLED:
        return Path(str(resources.files("actscope") / "demo" / "lora")), BUNDLED
    path = Path(adapter).expanduser()
    if path.is_dir():
        return path, path.absolute().name
    looked = [f"the folder {path.absolute()}"]
    if _is_relative(adapter):
        found = _in_checkpoints(adapter)
        if found is not None:
            return found, found.name
        looked.append(f"{Path(CHECKPOINTS).absolute()}/{adapter} and one level deeper")
        hub, reason = _on_the_hub(adapter)
        if hub is not None:
            return hub, adapter
        looked.append(f"the hub ({reason})")
    raise ModelLoadError(
        f"there is no adapter {adapter!r}",
        got="looked at " + "; ".join(looked),
        next_step="give the folder that save_pretrained of peft wrote, or a hub id",
    )


def _is_relative(adapter: str) -> bool:
    return bool(adapter) and not adapter.startswith((".", "/", "~")) and ".." not in adapter


def _in_checkpoints(adapter: str) -> Path | None:
    root = Path(CHECKPOINTS)
    candidates = [root / adapter, *sorted(p / adapter for p in root.glob("*/"))]
    found = [folder for folder in candidates if (folder / CONFIG).is_file()]
    if len(found) > 1:
        raise ModelLoadError(
            f"the adapter {adapter!r} is there {len(found)} times",
            got=", ".join(map(str, found)),
            next_step="give the path of one of them",
        )
    return found[0] if found else None


def _on_the_hub(adapter: str) -> tuple[Path | None, str]:
    """(its folder in the cache, why not)."""
    from transformers.utils.hub import cached_file

    if not _HUB_ID.fullmatch(adapter):
        return None, "no hub id has this form"
    reason = ""
    for weights in WEIGHTS:
        try:
            cached_file(adapter, weights)
            config = cached_file(adapter, CONFIG)
        except (OSError, ValueError) as error:
            reason = reason or str(error).strip().splitlines()[0]
            continue
        if config is not None:
            return Path(config).parent, ""
    return None, reason


def _settings(folder: Path) -> dict[str, Any]:
    path = folder / CONFIG
    if not path.is_file():
        inside = sorted(p.name for p in folder.iterdir()) if folder.is_dir() else []
        deeper = sorted(p.parent.name for p in folder.glob(f"*/{CONFIG}"))
        hint = f"one of its folders is one: {', '.join(deeper[:6])}" if deeper else ""
        raise ModelLoadError(
            f"the folder {folder} is no adapter: it has no {CONFIG}",
            got=", ".join(inside[:8]) or "an empty folder or none",
            next_step=hint or "point to the folder that save_pretrained of peft wrote",
        )
    try:
        settings = json.loads(path.read_text(encoding="utf-8"))
    except ValueError as error:  # JSON and encoding errors both are
        raise ModelLoadError(f"{path} cannot be read as JSON", got=str(error)) from error
    if not isinstance(settings, dict):
        raise ModelLoadError(f"{path} holds no JSON object", got=type(settings).__name__)
    return settings


def _refuse_more_than_lora(settings: Mapping[str, Any], name: str) -> None:
    kind = str(settings.get("peft_type", "")).rpartition(".")[2]
    if kind != "LORA":
        raise ModelLoadError(
            f"the adapter {name!r} is not LoRA",
            got=f"peft_type {kind or 'missing'}",
            expected="LORA (rsLoRA and DoRA included): it adds to linear layers and leaves the "
            "residual stream's algebra as it is",
            next_step="merge it into a checkpoint of its own and load that as a model",
        )
    init = settings.get("init_lora_weights", True)
    if init not in _LEAVES_THE_BASE:
        raise ModelLoadError(
            f"the adapter {name!r} may be meant for a base that its training rewrote",
            got=f"init_lora_weights {init!r}",
            next_step="save it again with path_initial_model_for_weight_conversion, as peft's "
            "documentation of that initialisation says",
        )
    beyond = {k: v for k, v in settings.items() if k not in _UNDERSTOOD and v}
    if settings.get("bias", "none") != "none":
        beyond["bias"] = settings["bias"]
    if beyond:
        field, value = sorted(beyond.items())[0]
        raise ModelLoadError(
            f"the adapter {name!r} does more than LoRA on linear layers and embeddings",
            got=f"{field}: {json.dumps(value, default=str)[:80]}",
            expected="none of: " + ", ".join(sorted(beyond)),
            next_step="train it without, or merge it into a checkpoint of its own and load that",
        )


def _weights(folder: Path, name: str) -> dict[str, torch.Tensor]:
    from peft.utils.save_and_load import load_peft_weights

    if not any((folder / file).is_file() for file in WEIGHTS):
        raise ModelLoadError(
            f"the adapter {name!r} has no weights",
            got=", ".join(sorted(p.name for p in folder.iterdir())),
            expected=" or ".join(WEIGHTS),
            next_step="copy the whole folder",
        )
    try:
        weights = load_peft_weights(str(folder), device="cpu")
    except Exception as error:  # safetensors and torch each raise their own kinds
        raise ModelLoadError(
            f"the weights of the adapter {name!r} cannot be read",
            got=(str(error).strip() or type(error).__name__).splitlines()[0],
            next_step="check that the download or the copy is complete",
        ) from error
    if not weights:
        raise ModelLoadError(f"the adapter {name!r} has no weights", got="a file without tensors")
    return weights


def _refuse_non_finite(weights: Mapping[str, torch.Tensor], name: str) -> None:
    for key, tensor in weights.items():
        bad = int((~torch.isfinite(tensor)).sum()) if tensor.is_floating_point() else 0
        if bad:
            raise ModelLoadError(
                f"the adapter {name!r} has weights that are not finite",
                got=f"{bad} of {tensor.numel()} values of {key} are NaN or infinite",
                next_step="its training diverged: use an earlier checkpoint",
            )


def _digest(settings: Mapping[str, Any], weights: Mapping[str, torch.Tensor]) -> str:
    """Of the content: neither the place, nor the base's name, nor the order of a set counts."""
    digest = hashlib.sha256()
    chosen = {field: _sorted(settings.get(field)) for field in (*_DECIDES_NUMBERS, *_SAYS_WHERE)}
    digest.update(canonical_json(chosen).encode())
    for key in sorted(weights):
        tensor = weights[key].contiguous()
        digest.update(f"{key}{tuple(tensor.shape)}{tensor.dtype}".encode())
        digest.update(tensor.reshape(-1).view(torch.uint8).numpy().tobytes())
    return digest.hexdigest()


def _sorted(value: Any) -> Any:
    return sorted(value, key=str) if isinstance(value, list) else value
