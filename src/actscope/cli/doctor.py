"""``actscope doctor``: what is verified on a model, what is not, and why."""

from __future__ import annotations

from collections.abc import Iterable
from itertools import groupby
from typing import TYPE_CHECKING

import click

from actscope.cli._console import console, figures, table
from actscope.cli._models import describe, load
from actscope.core.protocols import BackendModel, SiteStatus
from actscope.core.provenance import environment

if TYPE_CHECKING:
    from actscope.backends.hf import HFModel

__all__ = ["COMMAND"]


@click.command(
    "doctor",
    short_help="Say which sites are verified on a model, and why others are not.",
    epilog="Example: actscope doctor --model demo",
)
@click.option("--model", default="demo", show_default=True, help="Hub id, folder, or `demo`.")
@click.option("--device", default="auto", show_default=True)
@click.option("--dtype", default="auto", show_default=True, help="Compute dtype.")
@click.option("--revision", help="Branch, tag or commit on the hub.")
@click.option("--adapter", help="LoRA adapter to switch on: folder, local checkpoint, or hub id.")
@click.option("--stack", type=click.Choice(["encoder", "decoder"]), help="Of an encoder-decoder.")
def doctor(
    model: str,
    device: str,
    dtype: str,
    revision: str | None,
    adapter: str | None,
    stack: str | None,
) -> None:
    """Verify every site of a model on a small probe and print the result."""
    loaded = load(
        model, device=device, dtype=dtype, revision=revision, adapter=adapter, stack=stack
    )
    out = console()
    out.print(figures("Model", _facts(loaded, describe(loaded))))
    out.print()
    rows = _site_rows(loaded.sites().values())
    out.print(table("Sites", ["site", "layers", "status", "how, or why not"], rows))
    out.print(figures("Environment", environment().items()))
    out.print()
    out.print(_conclusion(loaded), soft_wrap=True, markup=False)


def _facts(model: HFModel, line: str) -> list[tuple[str, object]]:
    identity, tokenizer = model.identity, model.tokenizer
    if tokenizer is None:
        marks = "no tokenizer: token ids only"
    else:
        bos = getattr(tokenizer, "bos_token", None)
        pad = getattr(tokenizer, "pad_token", None)
        marks = f"bos: {bos or 'none'}, pad: {pad or 'none'}"
    return [
        ("model", line),
        ("revision", identity.revision),
        *_adapter_facts(model),
        ("context", model.context_length or "no limit known"),
        ("tokenizer", marks),
        ("chat template", "yes" if identity.chat_template else "none"),
    ]


def _adapter_facts(model: HFModel) -> list[tuple[str, object]]:
    if model.active_adapter is None:
        return []
    adapter = model.adapters[model.active_adapter]
    checked = "off: the base's numbers, bitwise; on: they differ, and every site is verified"
    return [
        ("adapter", f"{adapter.identity} from {adapter.source}"),
        ("adapter trained on", adapter.trained_on or "not recorded"),
        ("adapter changes", f"{len(adapter.modules)} modules, such as {adapter.modules[0]}"),
        ("adapter checked", checked),
    ]


def _site_rows(statuses: Iterable[SiteStatus]) -> list[tuple[str, str, str, str]]:
    """One row per kind and reason, layers gathered; module names differ by layer only."""
    ordered = sorted(statuses, key=lambda s: (s.site.kind, not s.verified, s.site.layer or 0))
    rows: list[tuple[str, str, str, str]] = []
    for (kind, verified, reason), group in groupby(ordered, key=_same_row):
        layers = [s.site.layer for s in group if s.site.layer is not None]
        rows.append((kind, _ranges(layers), "verified" if verified else "unavailable", reason))
    return sorted(rows, key=lambda row: row[2] == "unavailable")


def _same_row(status: SiteStatus) -> tuple[str, bool, str]:
    layer = status.site.layer
    reason = status.reason if layer is None else status.reason.replace(f".{layer}.", ".{layer}.")
    return status.site.kind, status.verified, reason


def _ranges(layers: list[int]) -> str:
    """``0-3, 5`` for 0, 1, 2, 3, 5."""
    runs = groupby(enumerate(sorted(layers)), key=lambda pair: pair[1] - pair[0])
    parts: list[str] = []
    for _, run in runs:
        members = [layer for _, layer in run]
        parts.append(str(members[0]) if len(members) == 1 else f"{members[0]}-{members[-1]}")
    return ", ".join(parts)


def _conclusion(model: BackendModel) -> str:
    statuses = list(model.sites().values())
    verified = {s.site.kind for s in statuses if s.verified}
    missing = sorted({s.site.kind for s in statuses if not s.verified})
    text = f"{model.identity.name} can be captured: {len(verified)} kinds of site are verified"
    return text + (f"; not (everywhere) available: {', '.join(missing)}." if missing else ".")


COMMAND = doctor
