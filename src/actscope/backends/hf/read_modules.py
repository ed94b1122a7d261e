"""Read any module of a model in one pass over any inputs: towers for images, audio, heads."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

import torch

from actscope.backends.hf.exclusive import OneThread, alone
from actscope.backends.hf.trace import evaluation_mode, first_tensor
from actscope.core.errors import BadInputError, UnknownNameError

if TYPE_CHECKING:
    from actscope.backends.hf.model import HFModel

__all__ = ["read_modules"]


def read_modules(
    model: HFModel, paths: Sequence[str], inputs: dict[str, Any]
) -> dict[str, list[torch.Tensor]]:
    """What modules return in one forward pass, call by call, on the CPU in the model's dtype.

    Args:
        model: The wrapped model.
        paths: Module paths.
        inputs: What the Hugging Face model is called with; tensors go to its device.

    Raises:
        UnknownNameError: no such module.
        BadInputError: nothing was asked for, or a module did not run on these inputs.
    """
    modules = dict(model.hf.named_modules())
    for path in paths:
        if path not in modules:
            raise UnknownNameError("module", path, [name for name in modules if name])
    if not paths:
        raise BadInputError("no module was asked for", next_step="pass module paths of model.hf")
    found: dict[str, list[torch.Tensor]] = {path: [] for path in paths}

    thread = OneThread()

    def keep(path: str, output: object) -> None:
        tensor = first_tensor(output) if thread.here else None
        if tensor is not None:
            found[path].append(tensor.detach().to("cpu", copy=True))

    given = {k: v.to(model.device) if isinstance(v, torch.Tensor) else v for k, v in inputs.items()}
    handles = [
        modules[path].register_forward_hook(lambda m, a, out, p=path: keep(p, out))
        for path in found
    ]
    try:
        with alone(model.hf), torch.no_grad(), evaluation_mode(model.hf):
            model.hf(**given)
    finally:
        for handle in handles:
            handle.remove()
    silent = [path for path, tensors in found.items() if not tensors]
    if silent:
        raise BadInputError(
            f"the module {silent[0]} returned no floating-point tensor on these inputs",
            got=", ".join(sorted(inputs)),
            next_step="pass what it needs, such as pixel_values for an image tower",
        )
    return found
