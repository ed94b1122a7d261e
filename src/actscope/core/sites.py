"""Sites: the closed table of places in a model whose activations have one meaning everywhere.

``str(Site("resid_post", 12)) == "blocks.12.resid_post"`` is the key used in stores, and the parser
reads it back. ``blocks.12.z.head[0,5]`` is two heads of a site that has heads, and
``blocks.12.mlp_post.neuron[7,40]`` two neurons of one that has neurons. A module path of the user's
own model (``model.layers.3.mlp``) is a site too: its meaning is whatever that module returns.
"""

from __future__ import annotations

import re
from collections.abc import Container, Iterable, Sequence
from dataclasses import dataclass, replace
from typing import cast

from actscope.core.aliases import from_transformer_lens
from actscope.core.errors import BadInputError, UnknownNameError

__all__ = [
    "MODULE_KIND",
    "SITE_KINDS",
    "Site",
    "SiteKind",
    "captured_site",
    "expand_sites",
    "resolve_layer",
    "split_sites",
    "takes_layers",
]

MODULE_KIND = "module"


@dataclass(frozen=True)
class SiteKind:
    """What one kind of site means.

    Attributes:
        name: The standard term.
        per_layer: Whether there is one per block.
        axes: The axes of the tensor of one example.
        meaning: One line for a table.
        part: What may be chosen among, ``head`` or ``neuron``; empty where nothing may.
    """

    name: str
    per_layer: bool
    axes: tuple[str, ...]
    meaning: str
    part: str = ""

    @property
    def layout(self) -> str:
        """``rows`` (one a token), ``example`` (one an example) or ``blocks`` (query by key)."""
        if self.axes[-1] == "key_pos":
            return "blocks"
        return "rows" if self.axes[0] == "pos" else "example"


SITE_KINDS: dict[str, SiteKind] = {
    kind.name: kind
    for kind in (
        SiteKind("embed", False, ("pos", "d_model"), "output of the token embedding"),
        SiteKind("resid_pre", True, ("pos", "d_model"), "residual stream entering the block"),
        SiteKind("resid_mid", True, ("pos", "d_model"), "residual stream after attention"),
        SiteKind("resid_post", True, ("pos", "d_model"), "residual stream leaving the block"),
        SiteKind("attn_out", True, ("pos", "d_model"), "what attention adds to the residual"),
        SiteKind("mlp_out", True, ("pos", "d_model"), "what the MLP adds to the residual"),
        SiteKind(
            "q",
            True,
            ("pos", "head", "d_head"),
            "queries as attention multiplies them: after norm and rotary embedding",
            "head",
        ),
        SiteKind(
            "k",
            True,
            ("pos", "head", "d_head"),
            "keys, likewise; one head for every group of query heads that shares it",
            "head",
        ),
        SiteKind("v", True, ("pos", "head", "d_head"), "values; heads as for k", "head"),
        SiteKind(
            "pattern",
            True,
            ("head", "query_pos", "key_pos"),
            "attention probabilities: how much a query takes of each key's value",
            "head",
        ),
        SiteKind(
            "z",
            True,
            ("pos", "head", "d_head"),
            "what each head adds up from the values, before the output projection",
            "head",
        ),
        SiteKind(
            "mlp_pre",
            True,
            ("pos", "d_mlp"),
            "what the MLP's activation function receives (the gate, in gated MLPs)",
            "neuron",
        ),
        SiteKind(
            "mlp_post",
            True,
            ("pos", "d_mlp"),
            "what the MLP's last linear map receives: act(mlp_pre), times up in gated MLPs",
            "neuron",
        ),
        SiteKind(
            "router",
            True,
            ("pos", "n_experts"),
            "router logits of a mixture of experts, before softmax and choice",
        ),
        SiteKind("ln_final", False, ("pos", "d_model"), "output of the final norm"),
        SiteKind("logits", False, ("pos", "d_vocab"), "the model's own logits"),
        SiteKind("pooler", False, ("d_model",), "pooler_output of an encoder, one row an example"),
    )
}

_KEY = re.compile(r"^blocks\.(?P<layer>-?\d+)\.(?P<kind>[a-z_]+)$")
_HOOK = re.compile(r"^(?:(?:blocks|ln_final)\.(?:.*\.)?)?hook_\w+$")
_SHORT = re.compile(r"^(?P<kind>[a-z_]+)\.(?P<layer>-?\d+)$")
_LISTED = re.compile(r"^(?P<kind>[a-z_]+)\[(?P<layers>[^\]]*)\]$")
_MOST_PARTS = 1 << 24
_PARTS = re.compile(r"^(?P<base>.+)\.(?P<word>head|neuron)\[(?P<inside>[^\]]*)\]$")


@dataclass(frozen=True, order=True)
class Site:
    """One place in the model.

    Attributes:
        kind: A name of ``SITE_KINDS``, or ``"module"``.
        layer: The block's index, for the kinds that have one per block.
        path: The module path, for ``"module"`` only.
        parts: Which heads or neurons, ascending; empty for all.
    """

    kind: str
    layer: int | None = None
    path: str | None = None
    parts: tuple[int, ...] = ()

    def __post_init__(self) -> None:
        if self.parts:
            object.__setattr__(self, "parts", _checked_parts(self.kind, self.parts))
        if self.kind == MODULE_KIND:
            if not self.path or self.layer is not None:
                raise BadInputError("a module site needs a path and no layer", got=repr(self.path))
            return
        if self.kind not in SITE_KINDS:
            raise UnknownNameError("site", self.kind, SITE_KINDS)
        if self.path is not None:
            raise BadInputError(f"site {self.kind!r} takes no module path", got=self.path)
        per_layer = SITE_KINDS[self.kind].per_layer
        if per_layer and self.layer is None:
            raise BadInputError(
                f"site {self.kind!r} exists once per layer", next_step=f"write {self.kind}.LAYER"
            )
        if not per_layer and self.layer is not None:
            raise BadInputError(f"site {self.kind!r} has no layers", got=f"layer {self.layer}")

    def __str__(self) -> str:
        if self.kind == MODULE_KIND:
            return str(self.path)
        key = self.kind if self.layer is None else f"blocks.{self.layer}.{self.kind}"
        if not self.parts:
            return key
        return f"{key}.{SITE_KINDS[self.kind].part}[{_short_list(self.parts)}]"

    @property
    def whole(self) -> Site:
        """The site without a choice of heads or neurons."""
        return replace(self, parts=()) if self.parts else self

    @property
    def layout(self) -> str:
        """How its values are laid out, see ``SiteKind.layout``; a module has one row a token."""
        return "rows" if self.kind == MODULE_KIND else SITE_KINDS[self.kind].layout

    @classmethod
    def module(cls, path: str) -> Site:
        """The output of the module at ``path``."""
        return cls(MODULE_KIND, path=path)

    @classmethod
    def parse(cls, key: str) -> Site:
        """Read one key: ``blocks.3.resid_post``, ``resid_post.3``, ``ln_final`` or a module path.

        TransformerLens' hook names work too, see ``core.aliases``.

        Raises:
            UnknownNameError: a bare word that is no site.
            BadInputError: heads or neurons of a site that has none, or a list that is no list.
        """
        chosen = _PARTS.match(key)
        if chosen:
            return _with_parts(cls.parse(chosen["base"]), chosen["word"], chosen["inside"])
        if _HOOK.match(key):
            key = from_transformer_lens(key)
        match = _KEY.match(key) or _SHORT.match(key)
        if match and match["kind"] in SITE_KINDS:
            return cls(match["kind"], int(match["layer"]))
        if key in SITE_KINDS:
            return cls(key)
        if "." in key and not key.startswith("blocks."):
            return cls.module(key)
        raise UnknownNameError(
            "site", match["kind"] if match else key, SITE_KINDS, "a module path works as well"
        )


def resolve_layer(layer: int, n_layers: int) -> int:
    """Turn a possibly negative layer into an index.

    Raises:
        BadInputError: the model has no such layer.
    """
    resolved = layer + n_layers if layer < 0 else layer
    if not 0 <= resolved < n_layers:
        raise BadInputError(
            "layer out of range",
            got=layer,
            expected=f"-{n_layers} to {n_layers - 1}: the model has {n_layers} layers",
        )
    return resolved


def expand_sites(
    sites: str | Sequence[str | Site],
    layers: str | int | Iterable[int] | None,
    n_layers: int,
    modules: Container[str] = (),
) -> tuple[Site, ...]:
    """Turn what a user wrote into a list of sites without repetition, in order of the request.

    Args:
        sites: Names (``"resid_post"``), keys (``"blocks.3.resid_post"``), lists
            (``"resid_post[10,15,-1]"``, ``"resid_post[*]"``), any of these with heads or neurons
            (``"z.head[0,5]"``, ``"mlp_post.3.neuron[0:16]"``), module paths or ``Site`` objects;
            one string may hold several, separated by commas outside brackets.
        layers: ``"all"``, an index or indices (negative: from the end), for the bare names.
        n_layers: How many blocks the model has.
        modules: The model's module paths: one of a single word (``lm_head``) is a site as well.

    Raises:
        UnknownNameError: no such site.
        BadInputError: a layer the model does not have or asked for twice, or nothing asked for.
    """
    if isinstance(layers, int):
        layers = [layers]
    for name, value in (("sites", sites), ("layers", layers)):
        if value is not None and not isinstance(cast("object", value), (str, Iterable, Site)):
            raise BadInputError(
                f"{name} are a name, a number or a list of these", got=repr(value)[:60]
            )
    layers = layers if layers is None or isinstance(layers, str) else list(layers)
    wanted: list[str | Site] = [sites] if isinstance(sites, (str, Site)) else list(sites)
    found: dict[Site, None] = {}
    for item in wanted:
        for part in split_sites(item) if isinstance(item, str) else [item]:
            if isinstance(part, str) and part in modules and part not in SITE_KINDS:
                found.setdefault(Site.module(part))
                continue
            for site in _expand_one(part, layers, n_layers):
                found.setdefault(site)
    if not found:
        raise BadInputError("no site was asked for", expected="for example sites=['resid_post']")
    return tuple(found)


def split_sites(text: str) -> list[str]:
    """The sites named in one text: split at commas that are not inside brackets."""
    return [part.strip() for part in re.split(r",(?![^\[]*\])", text) if part.strip()]


def captured_site(sites: Iterable[Site], name: str, layer: int | None = None) -> Site:
    """The site of that name and layer, or of that key, among those captured.

    ``z`` at layer 3 finds ``blocks.3.z.head[0,5]`` too, where that is the only part of it captured.

    Args:
        sites: What was captured.
        name: A site's name (``resid_post``) or key (``blocks.3.resid_post``).
        layer: The layer of a name, not negative.

    Raises:
        UnknownNameError: it was not captured, or several choices of its heads were.
    """
    key = name if layer is None else f"blocks.{layer}.{name}"
    known = list(sites)
    for site in known:
        if str(site) == key:
            return site
    parts = [site for site in known if site.parts and str(site.whole) == key]
    if len(parts) == 1:
        return parts[0]
    raise UnknownNameError("captured site", key, [str(site) for site in known])


def _checked_parts(kind: str, parts: tuple[int, ...]) -> tuple[int, ...]:
    known = SITE_KINDS.get(kind)
    if known is None or not known.part:
        raise BadInputError(
            f"site {kind!r} has no heads and no neurons to choose from",
            expected="one of " + ", ".join(k.name for k in SITE_KINDS.values() if k.part),
        )
    ordered = tuple(sorted(set(parts)))
    if len(ordered) != len(parts):
        raise BadInputError(f"a {known.part} of {kind} was asked for twice", got=list(parts))
    if ordered[0] < 0:
        raise BadInputError(f"a {known.part} of {kind} is negative", got=list(parts))
    return ordered


def _short_list(parts: tuple[int, ...]) -> str:
    """``0,5`` or, for more than two in a row, ``0:4``."""
    runs: list[list[int]] = []
    for part in parts:
        if runs and part == runs[-1][-1] + 1:
            runs[-1].append(part)
        else:
            runs.append([part])
    short = [f"{r[0]}:{r[-1] + 1}" if len(r) > 2 else ",".join(map(str, r)) for r in runs]
    return ",".join(short)


def _with_parts(site: Site, word: str, inside: str) -> Site:
    """``site`` cut to the heads or neurons of a list such as ``0,5`` or ``0:4,7``."""
    kind = SITE_KINDS.get(site.kind)
    if kind is None or kind.part != word:
        raise BadInputError(
            f"{site} has no {word}s",
            expected="one of " + ", ".join(k.name for k in SITE_KINDS.values() if k.part == word),
        )
    parts: list[int] = []
    for item in inside.split(","):
        first, colon, last = item.partition(":")
        start = _to_int(first, word)
        stop = _to_int(last, word) if colon else start + 1
        if not 0 <= start < stop <= _MOST_PARTS:
            raise BadInputError(
                f"no list of {word}s",
                got=f"{site}.{word}[{inside}]",
                expected=f"{word}s from 0 on, such as {word}[0,5] or {word}[0:4]",
            )
        parts += range(start, stop)
    return replace(site, parts=tuple(parts))


def takes_layers(word: str) -> bool:
    """Whether a site as a user wrote it leaves its layers open: ``z.head[0]``, not ``z.3``."""
    chosen = _PARTS.match(word)
    bare = chosen["base"] if chosen else word
    if "." in bare or "[" in bare:
        return False
    return bare not in SITE_KINDS or SITE_KINDS[bare].per_layer


def _expand_one(part: str | Site, layers: str | Iterable[int] | None, n_layers: int) -> list[Site]:
    if isinstance(part, Site):
        return [_with_resolved_layer(part, n_layers)]
    chosen = _PARTS.match(part)
    if chosen:
        bases = _expand_one(chosen["base"], layers, n_layers)
        return [_with_parts(site, chosen["word"], chosen["inside"]) for site in bases]
    kind = SITE_KINDS.get(part)
    if kind is not None:
        if not kind.per_layer:
            return [Site(part)]
        return [Site(part, index) for index in _layer_list(layers, n_layers)]
    listed = _LISTED.match(part)
    if listed:
        if listed["kind"] not in SITE_KINDS:
            raise UnknownNameError("site", listed["kind"], SITE_KINDS)
        inside = listed["layers"].strip()
        chosen = "all" if inside in ("*", "all") else [_to_int(x) for x in inside.split(",")]
        return [Site(listed["kind"], index) for index in _layer_list(chosen, n_layers)]
    return [_with_resolved_layer(Site.parse(part), n_layers)]


def _with_resolved_layer(site: Site, n_layers: int) -> Site:
    if site.layer is None:
        return site
    return replace(site, layer=resolve_layer(site.layer, n_layers))


def _layer_list(layers: str | Iterable[int] | None, n_layers: int) -> list[int]:
    if layers is None or layers == "all":
        return list(range(n_layers))
    if isinstance(layers, str):
        layers = [_to_int(x) for x in layers.split(",") if x.strip()]
    resolved = [resolve_layer(layer, n_layers) for layer in layers]
    for place, layer in enumerate(resolved):
        if layer in resolved[:place]:
            raise BadInputError(
                f"the layer {layer} was asked for twice", next_step="name each layer once"
            )
    return resolved


def _to_int(text: str, what: str = "layer") -> int:
    layers, parts = 'indices such as 3, -1 or 1,2,3, or "all"', "a list such as 0,5 or 0:4"
    try:
        return int(text)
    except ValueError:
        raise BadInputError(
            f"a {what} must be a whole number",
            got=repr(text.strip()),
            expected=layers if what == "layer" else parts,
        ) from None
