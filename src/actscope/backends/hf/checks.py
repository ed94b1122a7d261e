"""What is checked before a model runs: what fits its context, and what would mislead."""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any

from torch import nn

from actscope.backends.hf.forward import text_config
from actscope.core.errors import BadInputError
from actscope.core.protocols import Selection
from actscope.core.sites import Site
from actscope.core.text import Span

__all__ = [
    "check_cls_span",
    "check_pattern_strategy",
    "check_pooler_sites",
    "context_length",
]

_CONTEXT_FIELDS = ("max_position_embeddings", "n_positions", "max_sequence_length", "seq_length")


def check_pooler_sites(sites: Iterable[Site]) -> None:
    """The first row of another site is not the pooler's output and must not pass for it."""
    others = [str(site) for site in sites if site.kind != "pooler"]
    if others:
        raise BadInputError(
            "the strategy 'pooler' reads the site 'pooler' alone",
            got=", ".join(others),
            next_step="ask for sites='pooler', or use 'cls' for the first token of a layer",
        )


def check_pattern_strategy(selection: Selection) -> None:
    """Queries and keys are two token axes: averaging over tokens would have two meanings."""
    patterns = [str(site) for site in selection.sites if site.layout == "blocks"]
    if patterns and selection.strategy.pools:
        raise BadInputError(
            f"the strategy {selection.strategy.name!r} cannot pool an attention pattern",
            got=", ".join(patterns),
            expected="strategy 'none' for patterns",
            next_step="choose queries by the span (last:1), or capture patterns in a run of their "
            "own",
        )


def check_cls_span(span: Span) -> None:
    """Another token must not pass for CLS, which stands first and is a special token."""
    if span.exclude_special or span.kind not in ("all", "prompt"):
        raise BadInputError(
            "the strategy 'cls' needs the CLS token in its span",
            got=str(span),
            expected="the span all or prompt, special tokens included",
            next_step="use 'first' for the first token that the span keeps",
        )


def context_length(hf: nn.Module, tokenizer: Any) -> int | None:
    """Longest input in tokens by configuration and tokenizer; None where neither sets a limit."""
    config = text_config(hf)
    limits = [getattr(config, name, None) for name in _CONTEXT_FIELDS]
    known = [int(x) for x in limits if isinstance(x, int) and x > 0]
    told = getattr(tokenizer, "model_max_length", None)
    if isinstance(told, int) and told < 10**9:  # transformers writes 1e30 for "unknown"
        known.append(told)
    return min(known) if known else None
