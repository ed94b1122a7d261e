"""Where a model's weights lie and how its modules are called: what can be hooked, and what cannot.

A forward hook sees a module's tensors if the module is called as such, on a device that is known.
Compiled modules break the first condition; several accelerators break the second: they are refused.
"""

from __future__ import annotations

from collections.abc import Generator, Iterator
from contextlib import ExitStack, contextmanager
from typing import Any

import torch
from torch import nn

from actscope.backends.hf.forward import token_embedding
from actscope.core.errors import ModelLoadError

__all__ = ["check_model", "fetched", "input_device", "is_offloaded", "offloaded_value"]


def check_model(hf: nn.Module) -> None:
    """Refuse what cannot be captured faithfully, with the reason.

    Raises:
        ModelLoadError: it is compiled, wrapped by peft, quantised in a way that mixes a batch, or
            spread over devices.
    """
    _refuse_compiled(hf)
    _refuse_peft(hf)
    _refuse_scaled_over_the_batch(hf)
    _refuse_several_accelerators(hf)
    _refuse_scattered(hf)


def is_offloaded(hf: nn.Module) -> bool:
    """Whether accelerate brings some weights to the device only while their module runs."""
    return any(_offloads(module) for module in hf.modules())


def input_device(hf: nn.Module) -> torch.device:
    """Where token ids go: where the embedding computes, not where its weight waits.

    Raises:
        ModelLoadError: there is no embedding, or it cannot run without the whole model.
    """
    weight = token_embedding(hf).weight
    if weight.device.type != "meta":
        return weight.device
    name = next(name for name, parameter in hf.named_parameters() if parameter is weight)
    hook, relative = _offloading_hook(hf, name)
    if "." in relative:
        raise ModelLoadError(
            "the model's weights are fetched all at once: no module of it can run by itself",
            got=f"one offload hook for {relative} and all around it",
            expected="offloading by module or by block",
            next_step="leave preload_module_classes out, or name the class of the blocks",
        )
    return torch.device(hook.execution_device)


def offloaded_value(hf: nn.Module, name: str) -> torch.Tensor:
    """A weight or buffer by its name in the state dict, fetched if accelerate keeps it elsewhere.

    Raises:
        ModelLoadError: it has no value anywhere.
    """
    hook, relative = _offloading_hook(hf, name)
    return hook.weights_map[relative]


@contextmanager
def fetched(hf: nn.Module, path: str) -> Generator[nn.Module]:
    """A module that can be called by itself: with the weights that a module above it fetches.

    With offloading by block the hook that fetches is on the block, and a call of a part of it would
    find no weights.
    """
    with ExitStack() as stack:
        for above, _ in list(_holders(path))[::-1]:
            holder = hf.get_submodule(above)
            if _offloads(holder):
                hook: Any = holder._hf_hook
                hook.pre_forward(holder)
                stack.callback(hook.post_forward, holder, None)
        yield hf.get_submodule(path)


def _offloading_hook(hf: nn.Module, name: str) -> tuple[Any, str]:
    """(accelerate's hook that fetches a weight, the weight's name inside the hook's module)."""
    for path, relative in _holders(name):
        module = hf.get_submodule(path)
        if _offloads(module):
            return module._hf_hook, relative
    raise ModelLoadError(f"the weight {name} has no value: it is on the meta device")


def _holders(name: str) -> Iterator[tuple[str, str]]:
    """(module, name inside it) of every module around a weight, the nearest first."""
    parts = name.split(".")
    for end in range(len(parts) - 1, -1, -1):
        yield ".".join(parts[:end]), ".".join(parts[end:])


def _offloads(module: nn.Module) -> bool:
    return bool(getattr(getattr(module, "_hf_hook", None), "offload", False))


def _execution_device(module: nn.Module) -> Any:
    return getattr(getattr(module, "_hf_hook", None), "execution_device", None)


def _refuse_compiled(hf: nn.Module) -> None:
    for path, module in hf.named_modules():
        where = f"the module {path}" if path else "the model"
        if any(name == "_orig_mod" for name, _ in module.named_children()):
            step = "wrap the model it was made from, which shares its weights: model._orig_mod"
        elif getattr(module, "_compiled_call_impl", None) is not None:  # module.compile()
            step = "load the model again and wrap it without compile()"
        elif hasattr(vars(module).get("forward"), "_torchdynamo_orig_callable"):
            step = "take the compiled forward off: del model.forward"
        else:
            continue
        raise ModelLoadError(
            f"{where} is compiled by torch.compile",
            got="fused kernels, in which hooks do not see a module's tensors and values are "
            "rounded in another order",
            expected="a model that runs module by module",
            next_step=step,
        )


def _refuse_peft(hf: nn.Module) -> None:
    for module in hf.modules():
        if type(module).__module__.partition(".")[0] == "peft":
            raise ModelLoadError(
                "the model is wrapped by peft",
                got=type(module).__name__,
                expected="the plain base: which adapter is on must be known to every run",
                next_step="save_pretrained(folder) the adapter, wrap_model(peft_model.unload(), "
                "tokenizer), then model.load_adapter(folder)",
            )


def _refuse_scaled_over_the_batch(hf: nn.Module) -> None:
    for path, module in hf.named_modules():
        if type(module).__module__.startswith("torch.ao.nn.quantized"):
            raise ModelLoadError(
                f"the module {path} scales its input over the whole batch",
                got=f"{type(module).__module__}.{type(module).__qualname__}",
                expected="rows that do not depend on other tokens and other examples",
                next_step="quantise weights only: load_model(..., quantization='int8')",
            )


def _refuse_several_accelerators(hf: nn.Module) -> None:
    devices = {_execution_device(m) for m in hf.modules()} - {None, "cpu", torch.device("cpu")}
    named = sorted({f"cuda:{d}" if isinstance(d, int) else str(d) for d in devices})
    if len(named) > 1:
        raise ModelLoadError(
            "the model is spread over several accelerators",
            got=", ".join(named),
            expected="one accelerator, with the rest offloaded to CPU memory or disk",
            next_step=f"load it with a device map of {named[0]} and cpu",
        )


def _refuse_scattered(hf: nn.Module) -> None:
    """All weights on one device, but for those that accelerate fetches."""
    places: dict[str, str] = {}
    fetched = {path for path, module in hf.named_modules() if _offloads(module)}
    for name, tensor in [*hf.named_parameters(), *hf.named_buffers()]:
        if tensor.device.type == "meta" and any(path in fetched for path, _ in _holders(name)):
            continue
        places.setdefault(str(tensor.device), name)
    if len(places) > 1 or "meta" in places:
        where = "; ".join(f"{name} is on {device}" for device, name in places.items())
        raise ModelLoadError(
            "the model's tensors do not lie on one device with their values",
            got=where,
            next_step="move the whole model first: model.to(device)",
        )
