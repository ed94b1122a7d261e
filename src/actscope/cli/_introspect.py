"""Tables of ``actscope introspect``."""

from __future__ import annotations

from typing import TYPE_CHECKING

from actscope.cli._console import counted, figures, table

if TYPE_CHECKING:
    from rich.console import Console

    from actscope.studies.introspection.collect import Collected
    from actscope.studies.introspection.job import Budget

__all__ = ["print_budget", "print_collected"]


def print_budget(out: Console, budget: Budget) -> None:
    """What a collection would cost."""
    from actscope.capture.sizes import readable_bytes

    rows = [
        (name, f"{budget.tokens[name]:,}", readable_bytes(budget.bytes[name]))
        for name in budget.tokens
    ]
    title = f"{counted(budget.questions, 'question')}, {counted(budget.units, 'unit')}"
    out.print(table(title, ["pass", "tokens#", "on disk#"], rows))
    fits = "fits" if budget.total_bytes <= budget.free_bytes else "DOES NOT FIT"
    pairs: list[tuple[str, object]] = [
        ("units on disk", f"{budget.done} of {budget.units}"),
        ("on disk in all", readable_bytes(budget.total_bytes)),
        ("free", f"{readable_bytes(budget.free_bytes)}: {fits}"),
        ("tokens shared by the passes", f"{budget.shared:.0%}"),
    ]
    if budget.seconds is not None:
        pairs.append(("time of the model", f"about {budget.seconds:,.0f} s"))
    out.print(figures("", pairs))


def print_collected(out: Console, done: Collected) -> None:
    """What a collection did, and what may come next."""
    from actscope.capture.sizes import readable_bytes

    pairs: list[tuple[str, object]] = [
        ("questions", f"{done.questions:,}"),
        ("collected now", f"{done.captured:,}"),
        ("on disk before", f"{done.resumed:,}"),
        ("tokens", f"{done.tokens:,}"),
        ("activations", readable_bytes(done.bytes)),
        ("time", f"{done.seconds:.1f} s"),
    ]
    out.print(figures(f"Collected in {done.path}", pairs))
    out.print(f"next: actscope introspect inspect --data-dir {done.path}/mcq", markup=False)
