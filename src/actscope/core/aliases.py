"""What other libraries call the same tensors, both ways, with the off-by-ones spelled out.

============  ===========================  =======================  ==============  ==========
site          TransformerLens              nnterp                   hidden_states   vLLM layer
============  ===========================  =======================  ==============  ==========
resid_pre.L   blocks.L.hook_resid_pre      layers_input[L]          L               L
resid_post.L  blocks.L.hook_resid_post     layers_output[L]         L + 1 (not n)   L + 1
ln_final      ln_final.hook_normalized     --                       n, mostly       --
============  ===========================  =======================  ==============  ==========

``n`` is the number of blocks. Hugging Face's ``hidden_states`` has n + 1 entries: entry 0 enters
block 0, entry L + 1 leaves block L, but the last entry is *after* the final norm in most families
and before it in others. vLLM's ``eagle_aux_hidden_state_layer_ids`` count the same way, entry L
being what enters layer L, and there entry n leaves the last block, never normed.

The other rows are in ``ALIASES``. A name may differ in what it means; then ``note`` says how.
"""

from __future__ import annotations

import re
from dataclasses import dataclass
from typing import TYPE_CHECKING

from actscope.core.errors import BadInputError, UnknownNameError

if TYPE_CHECKING:
    from actscope.core.sites import Site

__all__ = [
    "ALIASES",
    "Alias",
    "from_hidden_state",
    "from_nnterp",
    "from_transformer_lens",
    "from_vllm_layer",
    "to_hidden_state",
    "to_nnterp",
    "to_transformer_lens",
    "to_vllm_layer",
]


@dataclass(frozen=True)
class Alias:
    """What one kind of site is called elsewhere; ``{layer}`` stands for the layer.

    Attributes:
        transformer_lens: Hook name, empty where there is none.
        nnterp: Accessor of ``StandardizedTransformer``, empty where there is none.
        note: Where the other library's tensor is not always the same one.
    """

    transformer_lens: str = ""
    nnterp: str = ""
    note: str = ""


_OUTPUT = "nnterp's is the module's own output, before a post-norm (gemma2, olmo2) or a scale"
_ROTARY = "hook_q and hook_k are before rotary embedding; a model without has only those"
_GATED = "in a gated MLP the gate; hook_pre_linear is the other factor"

ALIASES: dict[str, Alias] = {
    "embed": Alias("hook_embed", "token_embeddings", "hidden_states[0] is resid_pre.0, not this"),
    "resid_pre": Alias("blocks.{layer}.hook_resid_pre", "layers_input[{layer}]"),
    "resid_mid": Alias("blocks.{layer}.hook_resid_mid"),
    "resid_post": Alias("blocks.{layer}.hook_resid_post", "layers_output[{layer}]"),
    "attn_out": Alias("blocks.{layer}.hook_attn_out", "attentions_output[{layer}]", _OUTPUT),
    "mlp_out": Alias("blocks.{layer}.hook_mlp_out", "mlps_output[{layer}]", _OUTPUT),
    "q": Alias("blocks.{layer}.attn.hook_rot_q", "", _ROTARY),
    "k": Alias("blocks.{layer}.attn.hook_rot_k", "", _ROTARY),
    "v": Alias("blocks.{layer}.attn.hook_v"),
    "pattern": Alias("blocks.{layer}.attn.hook_pattern", "attention_probabilities[{layer}]"),
    "z": Alias("blocks.{layer}.attn.hook_z"),
    "mlp_pre": Alias("blocks.{layer}.mlp.hook_pre", "", _GATED),
    "mlp_post": Alias("blocks.{layer}.mlp.hook_post"),
    "router": Alias(),
    "ln_final": Alias(
        "ln_final.hook_normalized", "", "before the weight, in TransformerLens' RMS norms"
    ),
    "logits": Alias("", "logits"),
    "pooler": Alias(),
}
"""One row a kind of site."""

_BEFORE_ROTARY = re.compile(r"^blocks\.-?\d+\.attn\.hook_[qk]$")


def to_transformer_lens(site: Site) -> str | None:
    """The hook name of a site, or None where TransformerLens has none."""
    return _written(ALIASES[site.kind].transformer_lens, site) if site.kind in ALIASES else None


def from_transformer_lens(name: str) -> str:
    """The site key of a hook name.

    Raises:
        UnknownNameError: there is no site of that name.
        BadInputError: ``hook_q`` or ``hook_k``, which are before rotary embedding.
    """
    if _BEFORE_ROTARY.match(name):
        raise BadInputError(
            f"{name} is the tensor before rotary embedding, which is no site",
            expected=name.replace("hook_", "hook_rot_") + ": as attention multiplies it",
            next_step="in a model without rotary embedding the two are equal",
        )
    return _read(name, "TransformerLens hook", {k: a.transformer_lens for k, a in ALIASES.items()})


def to_nnterp(site: Site) -> str | None:
    """The accessor of a site, or None where nnterp has none."""
    return _written(ALIASES[site.kind].nnterp, site) if site.kind in ALIASES else None


def from_nnterp(name: str) -> str:
    """The site key of an accessor such as ``layers_output[3]``.

    Raises:
        UnknownNameError: there is no site of that name.
    """
    return _read(name, "nnterp accessor", {k: a.nnterp for k, a in ALIASES.items()})


def to_hidden_state(site: Site, n_layers: int, *, last_is_normed: bool) -> int:
    """The index in Hugging Face's ``hidden_states`` that holds a site.

    Args:
        site: ``resid_pre``, ``resid_post`` or ``ln_final``.
        n_layers: How many blocks the model has.
        last_is_normed: Whether the family's last entry is after the final norm. Most are; compare
            ``ln_final`` with ``last_hidden_state`` to be sure.

    Raises:
        BadInputError: no entry holds it.
    """
    if site.parts:
        raise BadInputError("hidden_states holds whole rows", got=site)
    if site.kind == "resid_pre" and site.layer is not None and site.layer < n_layers:
        return site.layer
    if site.kind == "resid_post" and site.layer is not None and site.layer < n_layers:
        if site.layer + 1 < n_layers or not last_is_normed:
            return site.layer + 1
        raise BadInputError(
            "hidden_states does not hold the last block's output",
            got=site,
            expected="ln_final: the last entry is after the final norm",
        )
    if site.kind == "ln_final" and last_is_normed:
        return n_layers
    raise BadInputError(f"no entry of hidden_states holds {site}", expected=f"0 to {n_layers}")


def from_hidden_state(index: int, n_layers: int, *, last_is_normed: bool) -> str:
    """The site key of an entry of ``hidden_states``; negative ones count from the end.

    Raises:
        BadInputError: there is no such entry.
    """
    place = index + n_layers + 1 if index < 0 else index
    if place == n_layers and last_is_normed:
        return "ln_final"
    return _entering(place, index, n_layers, "entry of hidden_states")


def to_vllm_layer(site: Site, n_layers: int) -> int:
    """The id in vLLM's ``eagle_aux_hidden_state_layer_ids`` that gives a site.

    Raises:
        BadInputError: no id gives it.
    """
    inside = site.layer is not None and site.layer < n_layers and not site.parts
    if site.layer is not None and inside and site.kind in ("resid_pre", "resid_post"):
        return site.layer + (site.kind == "resid_post")
    raise BadInputError(
        f"no vLLM layer id gives {site}", expected="resid_pre or resid_post of a layer"
    )


def from_vllm_layer(layer_id: int, n_layers: int) -> str:
    """The site key of a vLLM layer id: what enters that layer, or leaves the last one.

    Raises:
        BadInputError: there is no such id.
    """
    return _entering(layer_id, layer_id, n_layers, "vLLM layer id")


def _entering(place: int, asked: int, n_layers: int, what: str) -> str:
    if not 0 <= place <= n_layers:
        raise BadInputError(f"there is no such {what}", got=asked, expected=f"0 to {n_layers}")
    return f"blocks.{place - 1}.resid_post" if place == n_layers else f"blocks.{place}.resid_pre"


def _written(template: str, site: Site) -> str | None:
    if not template:
        return None
    name = template.format(layer=site.layer)
    return name + str(site).removeprefix(str(site.whole))


def _read(name: str, what: str, templates: dict[str, str]) -> str:
    for kind, template in templates.items():
        if not template:
            continue
        pattern = re.escape(template).replace(re.escape("{layer}"), r"(?P<layer>-?\d+)")
        match = re.fullmatch(pattern, name)
        if match:
            layer = match.groupdict().get("layer")
            return kind if layer is None else f"blocks.{layer}.{kind}"
    known = [template.format(layer="L") for template in templates.values() if template]
    raise UnknownNameError(what, name, known)
