"""Tables of ``actscope introspect``."""

from __future__ import annotations

import time
from collections.abc import Iterator, Mapping, Sequence
from types import TracebackType
from typing import TYPE_CHECKING, Any

from actscope.cli._console import complain, counted, figures, table

if TYPE_CHECKING:
    from rich.console import Console

    from actscope.studies.introspection.analyze import Analysed
    from actscope.studies.introspection.collect import Collected
    from actscope.studies.introspection.comparison import Comparison
    from actscope.studies.introspection.data import Collection
    from actscope.studies.introspection.inspection import Inspection
    from actscope.studies.introspection.job import Budget

__all__ = [
    "Steps",
    "print_analysed",
    "print_budget",
    "print_collected",
    "print_comparison",
    "print_examples",
    "print_inspection",
]


def print_budget(out: Console, budget: Budget) -> None:
    """What a collection would cost."""
    from actscope.capture.sizes import readable_bytes

    rows = [
        (name, f"{budget.tokens[name]:,}", readable_bytes(budget.bytes[name]))
        for name in budget.tokens
    ]
    title = f"{counted(budget.questions, 'question')}, {counted(budget.units, 'unit')}"
    out.print(table(title, ["pass", "tokens#", "on disk#"], rows))
    fits = "fits" if budget.to_write <= budget.free_bytes else "DOES NOT FIT"
    pairs: list[tuple[str, object]] = [
        ("units on disk", f"{budget.done} of {budget.units}"),
        ("on disk in all", readable_bytes(budget.total_bytes)),
        ("still to write", readable_bytes(budget.to_write)),
        ("free", f"{readable_bytes(budget.free_bytes)}: {fits}"),
        ("tokens shared by the passes", f"{budget.shared:.0%}, {_computed(budget)}"),
    ]
    if budget.seconds is not None:
        pairs.append(("time of the model", f"about {budget.seconds:,.0f} s"))
    out.print(figures("", pairs))


def _computed(budget: Budget) -> str:
    if budget.not_shared:
        return f"computed for each: {budget.not_shared}"
    return "computed once"


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
    out.print(f"Collected in {done.path}", soft_wrap=True, markup=False, style="bold")
    out.print(figures("", pairs))
    following = f"actscope introspect inspect --data-dir {done.path}"
    out.print(f"next: {following}", soft_wrap=True, markup=False)


def print_inspection(out: Console, collection: Collection, found: Inspection) -> None:
    """Everything about one pass; what is wrong comes last, in yellow."""
    out.print(f"{collection.path}/{found.folder}", soft_wrap=True, markup=False, style="bold")
    out.print(figures("", _facts(collection, found)))
    out.print()
    rows = [
        (
            f"{s.layer:02d}",
            "x".join(map(str, s.shape)),
            s.dtype,
            f"{s.norm:.3g}",
            s.non_finite,
            s.empty,
            s.altered,
        )
        for s in found.layers
    ]
    columns = ["layer#", "shape", "dtype", "median norm#", "non-finite#", "empty#", "altered#"]
    out.print(table("Activations (norm: at the answer position)", columns, rows))
    right = found.right_letters
    letters = [
        (letter or "none", f"{share:.1%}", f"{right[letter]:.1%}" if letter in right else "-")
        for letter, share in found.letters.items()
    ]
    out.print(table("Letters", ["letter", "answered#", "right#"], letters))
    if found.confidence:
        bins = [(f"{name} %", count, "#" * _bar(count, found)) for name, count in
                found.confidence.items()]  # fmt: skip
        out.print(table("Stated confidence", ["bin", "questions#", ""], bins))
    for problem in found.problems:
        complain(problem, colour="yellow")


def _bar(count: int, found: Inspection) -> int:
    return round(40 * count / max(*found.confidence.values(), 1))


def _facts(collection: Collection, found: Inspection) -> Iterator[tuple[str, object]]:
    config = collection.config
    yield "model", collection.name
    yield "adapter", config["lora_checkpoint"] or "none"
    yield "questions", f"{found.n:,} of {found.n + found.missing:,}"
    yield "duplicates", f"{len(found.duplicates)} ids, {len(found.repeated)} questions"
    yield "missing values", sum(found.absent.values())
    yield "values not finite", sum(found.non_finite.values())
    if found.accuracy is not None:
        yield "accuracy", found.accuracy
    if found.stated is not None:
        yield "mean expected confidence (%)", found.stated
    if found.entropy:
        low, q1, median, q3, high = found.entropy
        yield (
            "entropy (nats)",
            f"median {median:.3f}, quartiles {q1:.3f} to {q3:.3f}, {low:.3f} to {high:.3f} of at "
            f"most {found.most:.3f}",
        )


def print_examples(out: Console, shown: Sequence[Mapping[str, Any]]) -> None:
    """Rows as a reader wants them."""
    for number, one in enumerate(shown, start=1):
        out.print(figures(f"Example {number}", one.items()))
        out.print()


def print_comparison(out: Console, found: Comparison) -> None:
    """Figures side by side, and how alike the activations are."""
    one, other = found.names
    rows = [
        (m.name, m.one, m.other, m.difference, "yes" if m.difference.excludes_zero else "no")
        for m in found.measures
    ]
    columns = ["figure", one, other, "difference", "excludes 0"]
    out.print(table(f"{found.n:,} questions in both, paired by id", columns, rows))
    rows = [
        (like.folder, f"{layer:02d}", f"{cosine:.4f}", f"{low:.4f}", f"{cka:.4f}")
        for like in found.likeness
        for layer, cosine, low, cka in zip(
            like.layers, like.cosine, like.cosine_low, like.cka, strict=True
        )
    ]
    columns = ["pass", "layer#", "mean cosine#", "2.5th percentile#", "debiased CKA#"]
    out.print(table("Activations at the answer position", columns, rows))
    for caveat in found.caveats:
        complain(caveat, colour="yellow")


def print_analysed(out: Console, found: Analysed) -> None:
    """The findings, one line each, what bears on them, and where the report is."""
    rows = [(one.name.replace("_", " "), one.title) for one in found.findings]
    out.print(table("Findings", ["analysis", "what was found"], rows))
    for sentence in found.warned:
        complain(sentence, colour="yellow")
    out.print(f"report: {found.report}", soft_wrap=True, markup=False, style="bold")


class Steps:
    """Says what is being done: a spinner on a terminal, else a line a step.

    Args:
        console: Where.
    """

    def __init__(self, console: Console) -> None:
        from rich.status import Status

        self._console = console
        self._status = Status("begin", console=console)
        self._began = time.perf_counter()

    def __enter__(self) -> Steps:
        if self._console.is_terminal:
            self._status.start()
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        value: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        self._status.stop()

    def __call__(self, name: str) -> None:
        """Show the next step."""
        said = f"{time.perf_counter() - self._began:6.1f} s  {name}"
        if self._console.is_terminal:
            self._status.update(said)
        else:
            self._console.print(said, markup=False)
