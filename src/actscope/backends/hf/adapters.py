"""LoRA adapters on one base model: applied with peft, never merged, switched by swapping modules.

peft wraps each target module in a layer that holds the original. Those layers are put in place when
an adapter is switched on and the originals when it is switched off, so that a model whose adapter
is off is the plain model itself: its modules, state dict and hooks are what they were.
"""

from __future__ import annotations

import logging
import warnings
from collections.abc import Generator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, replace
from types import MappingProxyType
from typing import TYPE_CHECKING, Any, cast

import torch
from torch import nn

from actscope.backends.hf.adapter_checks import check_effect, check_map, probe_output
from actscope.backends.hf.adapter_files import AdapterFiles, read_adapter
from actscope.backends.hf.placement import is_offloaded
from actscope.backends.hf.resolve import ModelMap, resolve
from actscope.core.errors import BadInputError, ModelLoadError, UnknownNameError
from actscope.core.spec import ModelIdentity

if TYPE_CHECKING:
    from actscope.backends.hf.intervening import Interventions
    from actscope.backends.hf.model import HFModel

__all__ = ["Adaptable", "Adapter"]

logger = logging.getLogger(__name__)

_PEFT_NAME = "default"
"""What peft calls an adapter inside a layer; each of our layers holds exactly one."""
_PEFT_PREFIX = "base_model.model."
"""peft names tensors as they lie in its own wrapper; there is no wrapper here."""


@dataclass(frozen=True)
class Adapter:
    """A LoRA adapter that has been verified on its base.

    Attributes:
        name: What ``model.adapter(name)`` calls it.
        identity: ``NAME@DIGEST``: where it came from and a digest of its content. On record in
            every run.
        source: The folder it was read from.
        trained_on: The base that its configuration names, or None.
        note: What is worth knowing, such as another base's name; empty if nothing is.
        modules: Paths of the modules it changes.
    """

    name: str
    identity: str
    source: str
    trained_on: str | None
    note: str
    modules: tuple[str, ...]


@dataclass(frozen=True)
class _Swap:
    """One module that an adapter replaces, and the order of the plain one's parameters."""

    path: str
    parent: nn.Module
    child: str
    plain: nn.Module
    adapted: nn.Module
    parameters: tuple[str, ...]


@dataclass(frozen=True)
class _State:
    """What a model is while an adapter, or none, is on."""

    swaps: tuple[_Swap, ...]
    map: ModelMap
    identity: ModelIdentity


class Adaptable:
    """The adapters of a model. ``HFModel`` is one."""

    hf: nn.Module
    _identity: ModelIdentity
    _map: ModelMap

    def __init__(self) -> None:
        self._adapters: dict[str, Adapter] = {}
        self._states: dict[str | None, _State] = {}
        self._active: str | None = None

    @property
    def adapters(self) -> Mapping[str, Adapter]:
        """The loaded adapters by name, on or off."""
        return MappingProxyType(self._adapters)

    @property
    def active_adapter(self) -> str | None:
        """The adapter that is on, or None for the plain base."""
        return self._active

    def load_adapter(self, adapter: str, *, name: str | None = None) -> Adapter:
        """Read a LoRA adapter, verify it on this base, and leave it off.

        Verified: the base computes bitwise what it did before; with the adapter on, the output
        differs and every site of the base is verified again.

        Args:
            adapter: A folder, a name under ``local_checkpoints/``, a hub id, or ``demo-lora``.
            name: What to call it; its folder's name or hub id by default.

        Raises:
            ModelLoadError: it cannot be read, does not fit this base, or changes nothing.
            BadInputError: the name is taken.
        """
        _require_peft()
        if is_offloaded(self.hf):
            raise ModelLoadError(
                "an adapter cannot be loaded on a model whose weights are offloaded",
                got="weights that are only on the device while their module runs",
                next_step="load the base on one device (device='cpu' is one)",
            )
        files = read_adapter(adapter)
        name = name or files.name
        if name in self._adapters:
            raise BadInputError(
                f"an adapter named {name!r} is loaded already", next_step="pass another name="
            )
        with self.adapter(None), self._interventions().suspended():
            self._states.setdefault(None, _State((), self._map, self._identity))
            state = self._verified(files)
        found = Adapter(
            name=name,
            identity=str(state.identity.adapter),
            source=files.source,
            trained_on=files.base,
            note=_other_base(files.base, self._identity.name),
            modules=tuple(swap.path for swap in state.swaps),
        )
        if found.note:
            logger.warning("adapter %s: %s", name, found.note)
        self._adapters[name] = found
        self._states[name] = state
        return found

    @contextmanager
    def adapter(self, name: str | None) -> Generator[None]:
        """Everything inside runs with this adapter, or with none; afterwards it is as before.

        ``model.hf``, ``model.identity`` and ``model.sites()`` are those of the adapted model too,
        and interventions that are in place act on it.

        Args:
            name: A key of ``model.adapters``, or None for the plain base.

        Raises:
            UnknownNameError: no adapter of that name is loaded.
        """
        before = self._active
        self.switch_adapter(name)
        try:
            yield
        finally:
            self.switch_adapter(before)

    def switch_adapter(self, name: str | None) -> None:
        """Switch for good; ``with model.adapter(name)`` switches for a block.

        Raises:
            UnknownNameError: no adapter of that name is loaded.
            SiteUnavailableError: an intervention in place cannot follow; nothing was switched.
        """
        if name is not None and name not in self._adapters:
            raise UnknownNameError("adapter", name, self._adapters, "model.load_adapter loads one")
        if name == self._active:
            return
        before = self._active
        self._interventions().lift()
        self._put_on(name)
        try:
            self._interventions().follow()
        except BaseException:
            self._put_on(before)
            self._interventions().follow()
            raise

    def _interventions(self) -> Interventions:
        return cast("HFModel", self).interventions

    def _put_on(self, name: str | None) -> None:
        _detach(self._states[self._active].swaps)
        state = self._states[name]
        _attach(state.swaps)
        self._map, self._identity, self._active = state.map, state.identity, name

    def _verified(self, files: AdapterFiles) -> _State:
        """Inject, check against the base, take out again. The base is on."""
        plain = probe_output(self.hf)
        swaps = _inject(self.hf, files)
        if not torch.equal(plain, probe_output(self.hf)):
            raise ModelLoadError(
                f"reading the adapter {files.name!r} changed the base model's own numbers",
                expected="bitwise the same with the adapter off",
                next_step="load the base again, without this adapter",
            )
        _attach(swaps)
        try:
            check_effect(plain, probe_output(self.hf), files)
            found = resolve(self.hf)
            check_map(self.hf, self._map, found, [swap.path for swap in swaps], files.name)
        finally:
            _detach(swaps)
        mark = f"{files.name}@{files.digest[:16]}"
        return _State(tuple(swaps), found, replace(self._identity, adapter=mark))


def _require_peft() -> None:
    try:
        import peft  # noqa: F401 # pyright: ignore[reportUnusedImport]
    except ImportError as error:
        raise ModelLoadError(
            "LoRA adapters need the package peft", next_step="pip install 'actscope[lora]'"
        ) from error


def _attach(swaps: tuple[_Swap, ...] | list[_Swap]) -> None:
    for swap in swaps:
        setattr(swap.parent, swap.child, swap.adapted)


def _detach(swaps: tuple[_Swap, ...] | list[_Swap]) -> None:
    for swap in swaps:
        setattr(swap.parent, swap.child, swap.plain)
        # peft registers an expert's parameter anew in every pass, behind the others.
        if _parameter_names(swap.plain) != swap.parameters:
            for name in swap.parameters:
                parameter = getattr(swap.plain, name)
                delattr(swap.plain, name)
                swap.plain.register_parameter(name, parameter)


def _parameter_names(module: nn.Module) -> tuple[str, ...]:
    return tuple(name for name, _ in module.named_parameters(recurse=False))


def _inject(hf: nn.Module, files: AdapterFiles) -> list[_Swap]:
    """Let peft build and fill its layers, then take them out; the model is as it was.

    Raises:
        ModelLoadError: the adapter does not fit this model.
    """
    before = dict(hf.named_modules(remove_duplicate=False))
    flags = [(tensor, tensor.requires_grad) for tensor in hf.parameters()]
    attribute = vars(hf).get("peft_config")
    try:
        _build(hf, files)
    except (ValueError, RuntimeError, KeyError, TypeError, AttributeError) as error:
        raise ModelLoadError(
            f"the adapter {files.name!r} does not fit this base",
            got=_first_complaint(error),
            expected=f"an adapter of {files.base}" if files.base else "the base it was trained on",
            next_step="load the base that the adapter was trained on",
        ) from error
    finally:
        swaps = _changed_modules(hf, before)
        _detach(swaps)
        for tensor, flag in flags:
            tensor.requires_grad = flag
        if attribute is None:
            vars(hf).pop("peft_config", None)
        else:
            vars(hf)["peft_config"] = attribute
    for swap in swaps:
        _freeze(swap)
    return swaps


def _build(hf: nn.Module, files: AdapterFiles) -> None:
    """Wrap the target modules and load the weights.

    Weights that find no place, and places that find no weights, are what peft warns about only:
    such an adapter would be applied in part, or at random.
    """
    from peft import LoraConfig, inject_adapter_in_model, set_peft_model_state_dict
    from peft.tuners.tuners_utils import cast_adapter_dtype

    ours = {id(tensor) for tensor in (*hf.parameters(), *hf.buffers())}
    config: Any = LoraConfig.from_peft_type(**{**files.settings, "inference_mode": True})
    with warnings.catch_warnings(record=True) as said, torch.random.fork_rng(devices=[]):
        warnings.simplefilter("always")
        inject_adapter_in_model(config, hf, _PEFT_NAME)
        cast_adapter_dtype(hf, _PEFT_NAME)  # as PeftModel does: LoRA itself computes in float32
        bare = {key.removeprefix(_PEFT_PREFIX): t for key, t in files.weights.items()}
        result: Any = set_peft_model_state_dict(hf, bare, _PEFT_NAME)
    for warning in said:
        logger.warning("adapter %s: %s", files.name, warning.message)
    tensors = hf.state_dict(keep_vars=True)
    missing = [key for key in result.missing_keys if id(tensors[key]) not in ours]
    if missing or result.unexpected_keys:
        raise ValueError(
            f"{len(result.unexpected_keys)} of its {len(files.weights)} tensors have no place here "
            f"and {len(missing)} places have no tensor, such as "
            f"{', '.join([*result.unexpected_keys, *missing][:2])}"
        )


def _changed_modules(hf: nn.Module, before: Mapping[str, nn.Module]) -> list[_Swap]:
    """Every module that another one stands for now, outermost ones only."""
    swaps: list[_Swap] = []
    for path, plain in before.items():
        above, _, child = path.rpartition(".")
        parent = before.get(above)
        if not path or parent is None or any(path.startswith(s.path + ".") for s in swaps):
            continue
        now: Any = getattr(parent, child)
        if now is not plain:
            swaps.append(_Swap(path, parent, child, plain, now, _parameter_names(plain)))
    return swaps


def _freeze(swap: _Swap) -> None:
    """The new layers are not trained here, and follow the base between training and evaluation."""
    plain = {id(module) for module in swap.plain.modules()}
    base = {id(tensor) for tensor in swap.plain.parameters()}
    for module in swap.adapted.modules():
        if id(module) not in plain:
            module.training = swap.plain.training
    for tensor in swap.adapted.parameters():
        if id(tensor) not in base:
            tensor.requires_grad = False


def _first_complaint(error: Exception) -> str:
    """Of torch, which lists every tensor of another size, the first one says enough."""
    lines = [line.strip() for line in str(error).splitlines() if line.strip()]
    sizes = [line for line in lines if "size mismatch" in line]
    return (sizes or lines or [type(error).__name__])[0]


def _other_base(trained_on: str | None, name: str) -> str:
    """A remark where the adapter names another base; a folder and a hub id agree by last name."""
    if trained_on is None or trained_on.rstrip("/").rpartition("/")[2] == name.rpartition("/")[2]:
        return ""
    return f"its configuration says it was trained on {trained_on}; this base is {name}"
