"""Captured activations under TransformerLens' names, read-only."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Mapping
from typing import TYPE_CHECKING

from actscope.core.aliases import from_transformer_lens, to_transformer_lens
from actscope.core.errors import ActscopeError, UnknownNameError
from actscope.core.sites import Site, captured_site

if TYPE_CHECKING:
    import torch

__all__ = ["ActivationCache"]

_SHORT = {"pre": "mlp.hook_pre", "post": "mlp.hook_post"}
_IN_ATTENTION = ("q", "k", "v", "z", "pattern", "rot_q", "rot_k")


class ActivationCache(Mapping[str, "torch.Tensor"]):
    """A mapping from hook names to tensors, like TransformerLens' class of that name.

    ``cache["blocks.3.attn.hook_z"]``, ``cache["z", 3]`` and the site key ``cache["blocks.3.z"]``
    are the same tensor. Sites TransformerLens has no name for keep their key. Tensors are read when
    asked for.

    Args:
        sites: What was captured.
        read: Gives the tensor of a site.
        n_layers: How many blocks the model has, 0 where unknown: what negative layers count from.
    """

    def __init__(
        self, sites: Iterable[Site], read: Callable[[Site], torch.Tensor], n_layers: int = 0
    ) -> None:
        self._names = {to_transformer_lens(site) or str(site): site for site in sites}
        self._read = read
        self._n_layers = n_layers

    def __repr__(self) -> str:
        return f"ActivationCache with {len(self)} tensors: {', '.join(self)}"

    def __len__(self) -> int:
        return len(self._names)

    def __iter__(self) -> Iterator[str]:
        return iter(self._names)

    def __contains__(self, key: object) -> bool:
        try:
            self._site(key)
        except (ActscopeError, KeyError):
            return False
        return True

    def __getitem__(self, key: str | tuple[str, int] | tuple[str, int, str]) -> torch.Tensor:
        return self._read(self._site(key))

    def _site(self, key: object) -> Site:
        """The site of a hook name, a short form or a site key.

        Raises:
            UnknownNameError: it was not captured, or there is no such hook.
            BadInputError: ``hook_q`` or ``hook_k``, which are before rotary embedding.
            KeyError: the key is neither a text nor a name with a layer.
        """
        if isinstance(key, tuple) and 2 <= len(key) <= 3 and isinstance(key[1], int):  # pyright: ignore[reportUnknownArgumentType]
            name, layer = str(key[0]), key[1]  # pyright: ignore[reportUnknownArgumentType]
            layer = layer + self._n_layers if layer < 0 else layer
            hook = _SHORT.get(name, f"{'attn.' * (name in _IN_ATTENTION)}hook_{name}")
            key = f"blocks.{layer}.{hook}"
        if not isinstance(key, str):
            raise KeyError(key)
        if key in self._names:
            return self._names[key]
        if "hook_" in key:
            return captured_site(self._names.values(), from_transformer_lens(key))
        try:
            return captured_site(self._names.values(), key)
        except UnknownNameError:
            raise UnknownNameError("captured activation", key, self._names) from None
