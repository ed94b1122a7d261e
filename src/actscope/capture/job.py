"""A run with everything resolved: what, of what, in which units, where to."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any

from actscope.capture import estimate
from actscope.capture.budget import choose_budget, unit_tokens
from actscope.capture.disk import free_disk, refuse_bytes, refuse_unwritable
from actscope.capture.dry_run import UNIT_OVERHEAD
from actscope.capture.extractor import ActivationExtractor
from actscope.capture.long_prompts import refuse_too_long
from actscope.capture.options import AUTO, CaptureOptions
from actscope.capture.plan import Footprint, adopt, choose_unit_size, dataset_range, make_plan
from actscope.capture.prepare import Prepared, prompt_limit
from actscope.core.errors import BadInputError
from actscope.core.protocols import RunWriter, Source, Storage
from actscope.core.spec import CaptureSpec, UnitPlan, unit_id
from actscope.core.whole_numbers import whole_number

__all__ = ["Job", "Request", "examples_in", "resolve"]

EXACT_COUNT = 2_000
"""Up to so many examples are tokenised beforehand to know the exact size; more are sampled."""


@dataclass(frozen=True)
class Request:
    """What a user asked for."""

    source: Source
    batch_size: int | None
    extractor: ActivationExtractor
    storage: Storage
    options: CaptureOptions
    run_id: str | None


@dataclass(frozen=True)
class Job:
    """A run, ready to begin or to go on.

    Attributes:
        request: What was asked for.
        run_id: Its name in the storage.
        path: Where it is or would be.
        exists: Whether it was begun before.
        spec: What its numbers are.
        plan: How it is cut: the stored plan where it exists.
        items: The first examples of the dataset, to measure and to time with.
        cost: Bytes of a row of each site.
        notices: What was asked for in vain, and what the model does not allow.
    """

    request: Request
    run_id: str
    path: Path
    exists: bool
    spec: CaptureSpec
    plan: UnitPlan
    items: list[Prepared]
    cost: estimate.RowCost
    notices: tuple[str, ...]

    def open(self) -> RunWriter:
        """Create or resume the run."""
        storage = self.request.storage
        return storage.open_run(self.run_id, self.spec.to_json(), self.plan.to_json())

    def agreed(self) -> Job:
        """The same by the plan of another worker, where one began the run in the meantime.

        Two workers that look for the fastest batches at once may find different ones; what was
        written first counts for both.
        """
        _, stored = _existing(self.request.storage, self.run_id)
        if stored is None or self.request.options.batch_tokens != AUTO:
            return self
        plan, _ = adopt(stored, self.plan, str(self.path))
        return replace(self, plan=plan, exists=True)

    def missing(self) -> list[tuple[int, int]]:
        """Units not yet on disk; a run that does not exist is not created for the answer."""
        if not self.exists:
            return self.plan.units()
        writer = self.open()
        try:
            return self.left(writer)
        finally:
            writer.close()

    def left(self, writer: RunWriter) -> list[tuple[int, int]]:
        """Units that an open run has not committed."""
        done = writer.committed()
        return [bounds for bounds in self.plan.units() if unit_id(*bounds) not in done]

    def count(self, units: Sequence[tuple[int, int]]) -> estimate.Counts:
        """Tokenise units and count."""
        request = self.request
        return estimate.count(request.extractor, request.source, request.options, units, self.plan)

    def check(self) -> None:
        """Stop before the first unit if a later one would stop the run.

        Raises:
            OutputFolderError: nothing can be written where the run would be.
            ExampleError: a prompt is too long and the policy is ``error``.
            NotEnoughDiskError: with both figures.
        """
        units = self.missing()
        if not units:
            return
        request = self.request
        if _tells_path(request.storage):
            refuse_unwritable(self.path)
        refuse_too_long(request.extractor.model, request.options, request.source, units)
        self._refuse_if_too_large(units)

    def _refuse_if_too_large(self, units: Sequence[tuple[int, int]]) -> None:
        chosen = _spread(units)
        plain = replace(self, plan=replace(self.plan, share_prefix=False))  # the bytes are the same
        counts = plain.count(chosen).scaled(examples_in(units) / examples_in(chosen))
        need = sum(counts.bytes_by_site(self.cost).values()) + len(units) * UNIT_OVERHEAD
        need += counts.table_bytes(self.cost, keep_text=self.request.options.keep_text)
        refuse_bytes(need, free_disk(self.path), self.path)


def resolve(request: Request) -> Job:
    """Work out the spec, the plan and the place of a run.

    Raises:
        BadInputError: what was asked for can hold nothing, or not in this storage.
        RunMismatchError: the run exists with another spec or range.
    """
    r = request
    _refuse_in_vain(r)
    items = estimate.sample(r.extractor, r.source, r.options)
    cost = estimate.measure_rows(r.extractor, items, r.options, r.storage.keeps_bfloat16)
    footprint = estimate.mean_footprint(r.extractor, items, r.options, cost)
    bounds = dataset_range(len(r.source), r.options)
    spec = _spec(r)
    name = r.run_id or _default_id(spec, bounds, len(r.source))
    path, stored = _existing(r.storage, name)
    if stored is not None:
        r.storage.open_run(name, spec.to_json(), None).close()  # another spec is refused first
    plan = _plan(r, bounds, footprint, stored, items)
    plan, ignored = adopt(stored, plan, str(path))
    if r.options.unit_size is None:
        ignored = [word for word in ignored if word != "unit_size"]
    notices = tuple(
        f"the run keeps the {word} it was begun with, {getattr(plan, word)}; "
        "another needs a run of its own"
        for word in ignored
    )
    notices += _replayed(r)
    if r.options.share_prefix == "auto" and (reason := _no_sharing(r)):
        notices += (f"texts that begin alike do not share that part: {reason}",)
    return Job(r, name, path, stored is not None, spec, plan, items, cost, notices)


def _plan(
    request: Request,
    bounds: tuple[int, int],
    footprint: Footprint,
    stored: UnitPlan | None,
    items: list[Prepared],
) -> UnitPlan:
    """The plan asked for; what is left open is as the run was begun, or is found out now."""
    r = request
    open_choice = r.batch_size is None and r.options.batch_tokens == AUTO
    share = r.options.share_prefix == "auto" and not _no_sharing(r)
    found = 0
    if open_choice and stored is None:
        found = choose_budget(r.extractor, items, r.options, bounds[1] - bounds[0])
    size = r.options.unit_size or choose_unit_size(
        footprint, _pass_tokens(r, footprint, found), unit_tokens(r.extractor.model)
    )
    made = make_plan(bounds, size, r.options, r.batch_size, found, share_prefix=share)
    if not open_choice or stored is None:
        return made
    return replace(
        made,
        batch_tokens=stored.batch_tokens,
        batch_size=stored.batch_size,
        pass_tokens=stored.pass_tokens,
    )


def _pass_tokens(request: Request, footprint: Footprint, found: int) -> float:
    """Tokens of a forward pass, about."""
    if request.batch_size is not None:
        return whole_number("batch_size", request.batch_size, 1, instead="None") * footprint.tokens
    asked = request.options.batch_tokens
    return found if isinstance(asked, str) else asked


def _no_sharing(request: Request) -> str:
    """Why texts of this run cannot share their beginnings; empty where they can."""
    if request.options.generation is not None:
        return "answers are generated"
    extractor = request.extractor
    return extractor.model.prefix_refusal(extractor.selection)


def _refuse_in_vain(request: Request) -> None:
    options, storage = request.options, request.storage
    kind = request.extractor.selection.span.kind
    if kind in ("response", "think") and options.generation is None:
        raise BadInputError(
            f"the span is {kind}, but there is no answer to take it from",
            next_step="--generate N answers the prompts (CaptureOptions(generation=...)), or "
            "choose another --span",
        )
    if options.storage_dtype == "bfloat16" and not storage.keeps_bfloat16:
        raise BadInputError(
            f"{type(storage).__name__} has no bfloat16",
            next_step="--storage-dtype float16 or float32, or --store shards",
        )
    if options.codec is not None and not getattr(storage, "takes_codecs", False):
        raise BadInputError(
            f"{type(storage).__name__} keeps plain values only",
            got=f"codec {options.codec}",
            next_step="leave --codec out, or use --store shards",
        )


def examples_in(units: Sequence[tuple[int, int]]) -> int:
    """How many examples some units hold."""
    return sum(stop - start for start, stop in units)


def _spec(request: Request) -> CaptureSpec:
    extractor, options = request.extractor, request.options
    return CaptureSpec(
        model=extractor.model.identity,
        dataset=request.source.fingerprint(),
        sites=tuple(str(site) for site in extractor.sites),
        span=str(extractor.selection.span),
        strategy={"name": extractor.strategy.name, "params": dict(extractor.strategy.params)},
        storage_dtype=options.storage_dtype,
        on_too_long=options.on_too_long,
        max_length=prompt_limit(extractor.model, options),
        chat=options.chat,
        generation=_generation(request),
        keep_text=options.keep_text,
        codec=options.codec,
    )


def _generation(request: Request) -> dict[str, Any] | None:
    """Parameters of generation for the spec, with what ``auto`` came to."""
    params = request.options.generation
    if params is None:
        return None
    how = request.extractor.model.answer_capture(params, request.extractor.selection)
    return {**asdict(params), "capture": how.mode}


def _replayed(request: Request) -> tuple[str, ...]:
    """Why answers are replayed although nobody asked for it."""
    params = request.options.generation
    if params is None or params.capture != "auto":
        return ()
    how = request.extractor.model.answer_capture(params, request.extractor.selection)
    if how.mode == "live":
        return ()
    return (f"answers are captured in a pass of their own: {how.reason}",)


def _default_id(spec: CaptureSpec, bounds: tuple[int, int], size: int) -> str:
    """A name that the same work has every time; a part of the dataset names its range too."""
    name = f"run-{spec.fingerprint[:12]}"
    start, stop = bounds
    return name if bounds == (0, size) else f"{name}-{start}-{stop}"


def _existing(storage: Any, run_id: str) -> tuple[Path, UnitPlan | None]:
    """Where a run is or would be, and its plan if it exists.

    A storage from outside may answer neither question; its runs then are where the writer says, and
    their plans are checked by ``open_run`` alone.
    """
    from actscope.stores import as_folder

    plan = getattr(storage, "stored_plan", None)
    path = as_folder(storage.run_path(run_id)) if _tells_path(storage) else Path()
    stored = plan(run_id) if plan else None
    return path, None if stored is None else UnitPlan.from_json(stored)


def _tells_path(storage: object) -> bool:
    return callable(getattr(storage, "run_path", None))


def _spread(units: Sequence[tuple[int, int]]) -> list[tuple[int, int]]:
    """All units where they hold few examples; else evenly spaced ones."""
    return list(units[:: -(-examples_in(units) // EXACT_COUNT)])
