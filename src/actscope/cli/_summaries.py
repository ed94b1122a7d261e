"""What a capture prints when it is done, or would be."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from typing import TYPE_CHECKING

from rich.console import Console

from actscope.capture.sizes import readable_bytes
from actscope.cli._console import counted, figures, table

if TYPE_CHECKING:
    from actscope.capture.dry_run import DryRun
    from actscope.capture.runner import RunResult

__all__ = ["failures_line", "print_dry_run", "print_result"]


def print_result(out: Console, result: RunResult) -> None:
    """A finished capture."""
    pace = result.tokens / result.seconds if result.tokens else 0
    pairs: list[tuple[str, object]] = [
        ("run", result.path),
        ("captured", f"{counted(result.captured, 'example')}, {counted(result.tokens, 'token')}"),
        *([("on disk before", counted(result.resumed, "example"))] if result.resumed else []),
        ("failures", failures_line(result.failures)),
        *(
            [("shared beginnings", "computed once, where texts have them")]
            if result.share_prefix
            else []
        ),
        ("time", f"{result.seconds:.1f} s" + (f", {pace:,.0f} tokens/s" if pace else "")),
    ]
    out.print(figures("Captured", pairs))
    out.print(f"next: actscope runs show {result.path}", soft_wrap=True, markup=False)


def print_dry_run(out: Console, dry: DryRun) -> None:
    """The figures of a capture that was not made.

    Raises:
        NotEnoughDiskError: it would not fit; the figures are printed first.
    """
    from actscope.capture.disk import refuse_bytes

    rows = [(site, dry.dtypes[site], f"{size:,}") for site, size in dry.bytes_by_site.items()]
    out.print(table("Bytes by site", ["site", "dtype", "bytes#"], rows))
    out.print(figures("Dry run: nothing was written", _foreseen(dry)))
    refuse_bytes(dry.total_bytes, dry.free_bytes, dry.path)


def _foreseen(dry: DryRun) -> Iterator[tuple[str, object]]:
    most = "at most " if dry.upper_bound else ""
    plan = dry.plan
    batches = f"{plan.batch_size} examples" if plan.batch_size else f"{plan.batch_tokens} tokens"
    yield "run", dry.path
    yield "examples", f"{dry.examples:,} to capture, {dry.already_done:,} on disk"
    yield "failures", failures_line(dry.failures)
    yield "tokens", f"{most}{dry.tokens:,}"
    if plan.share_prefix:
        left = f"{dry.tokens - dry.saved:,} tokens go through the model"
        yield "shared beginnings", f"{_share(dry.shared, dry.tokens)}, computed once: {left}"
    size = counted(plan.unit_size, "example")
    yield "units", f"{dry.units} of at most {size}, batches of {batches}"
    if dry.alone:
        yield "longer than a batch", f"{counted(dry.alone, 'example')}, each in one of its own"
    yield "padding", f"{dry.padding:.1%} of the tokens"
    yield "arrays", f"{most}{sum(dry.bytes_by_site.values()):,} bytes"
    yield "tables", f"{most}{dry.table_bytes:,} bytes: ids, texts, metadata, tokens, positions"
    yield "disk needed", f"{most}{readable_bytes(dry.total_bytes)}"
    yield "disk free", "unknown" if dry.free_bytes is None else readable_bytes(dry.free_bytes)
    seconds = dry.seconds
    about = "nothing to do" if seconds is None else f"about {_duration(seconds)}, without loading"
    yield "time", about


def _share(part: int, whole: int) -> str:
    return f"{part / max(whole, 1):.0%} of the tokens"


def failures_line(failures: Mapping[str, int]) -> str:
    """``3 too_long, 1 no_tokens``, or ``none``."""
    return ", ".join(f"{n} {kind}" for kind, n in sorted(failures.items())) or "none"


def _duration(seconds: float) -> str:
    if seconds < 100:
        return f"{seconds:.1f} s"
    minutes = seconds / 60
    return f"{minutes:.0f} min" if minutes < 100 else f"{minutes / 60:.1f} h"
