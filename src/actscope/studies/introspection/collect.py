"""Ask every question in every pass, and keep answers and activations, unit by unit."""

from __future__ import annotations

import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from actscope.analysis.choices import read_letters
from actscope.capture.ahead import PassesAhead
from actscope.capture.assembly import Assembly, UnitMemory
from actscope.capture.batches import PlannedBatch, batches_of
from actscope.capture.disk import free_disk, refuse_bytes, refuse_unwritable
from actscope.capture.interrupt import CaptureInterrupted, GracefulStop, StopRequested
from actscope.capture.oom import Limits, LimitsByKind
from actscope.capture.progress import Progress, Silent
from actscope.core.activations import ActivationBatch, ExampleRecord, TokenRow
from actscope.core.arrays import Array, to_torch
from actscope.core.errors import RunError
from actscope.core.protocols import CaptureSession
from actscope.core.sites import Site
from actscope.core.spec import unit_id
from actscope.studies.introspection.job import SITE, Asked, Budget, Job, resolve
from actscope.studies.introspection.layer_files import left_padded
from actscope.studies.introspection.params import CollectParams
from actscope.studies.introspection.record import (
    UNITS,
    adopt,
    committed,
    read_config,
    unit_record,
    write_json,
)
from actscope.studies.introspection.rows import rows_of_pass

if TYPE_CHECKING:
    from actscope.backends.hf import HFModel

__all__ = ["Collected", "collect", "dry_run"]

UNEMBEDDED_ROWS = 64
"""Rows that become logits at once: a vocabulary is wide."""
PACED = 8
"""Questions that are timed."""


@dataclass(frozen=True)
class Collected:
    """What a collection did.

    Attributes:
        path: Its folder.
        questions: In the range.
        captured: Questions of this call.
        resumed: Questions that were on disk before.
        tokens: Tokens of this call.
        bytes: Of the layer files.
        seconds: Wall clock of this call.
    """

    path: Path
    questions: int
    captured: int
    resumed: int
    tokens: int
    bytes: int
    seconds: float


def dry_run(model: HFModel, params: CollectParams) -> Budget:
    """Count, measure and time without writing anything.

    Raises:
        RunMismatchError: the folder holds a collection with other options.
    """
    job = resolve(model, params)
    stored = read_config(params.output_dir)
    safe: set[str] = set()
    if stored is not None:
        job = adopt(job)
        safe = committed(params.output_dir)
    missing = [unit for unit in job.plan.units() if unit_id(*unit) not in safe]
    return job.budget(_pace(job) if missing else None, missing)


def collect(model: HFModel, params: CollectParams, progress: Progress | None = None) -> Collected:
    """Collect what is missing; the same call again goes on where it stopped.

    Args:
        model: A causal model with a tokenizer, its adapter switched on or off.
        params: What to collect.
        progress: Told after every batch.

    Raises:
        RunMismatchError: the folder holds a collection with other options.
        OutputFolderError: nothing can be written there.
        NotEnoughDiskError: it cannot fit.
        NumericRangeError: a value does not fit float16.
        CaptureInterrupted: Ctrl-C or SIGTERM; every finished unit is safe.
    """
    began = time.perf_counter()
    refuse_unwritable(params.output_dir)
    job = resolve(model, params)
    if read_config(params.output_dir) is None:
        need = sum(files.bytes for files in job.files().values())
        refuse_bytes(need, free_disk(params.output_dir), params.output_dir)
    job = adopt(job)
    begun = bool(committed(params.output_dir))
    for files in job.files().values():
        files.create(begun=begun)
    work = _Work(job, progress or Silent())
    wanted = params.num_questions
    if wanted is not None and wanted > len(job.questions):
        work.progress.notice(f"{params.dataset} has {len(job.questions)} of {wanted} questions")
    if job.not_shared and params.share_prefix == "auto" and len(job.passes) > 1:
        work.progress.notice(
            f"what the passes have in common is computed for each: {job.not_shared}"
        )
    work.run()
    return Collected(
        path=params.output_dir,
        questions=len(job.questions),
        captured=work.captured,
        resumed=len(job.questions) - work.captured,
        tokens=work.tokens,
        bytes=sum(files.bytes for files in job.files().values()),
        seconds=time.perf_counter() - began,
    )


@dataclass
class _Work:
    """One call of ``collect``."""

    job: Job
    progress: Progress
    captured: int = 0
    tokens: int = 0
    halved: list[int] = field(default_factory=list[int])
    memory: UnitMemory = field(default_factory=UnitMemory)
    limits: LimitsByKind = field(default_factory=lambda: LimitsByKind(Limits))

    def run(self) -> None:
        """Every unit that is missing, then the metadata of all."""
        job = self.job
        folder = job.params.output_dir
        units = job.plan.units()
        safe = committed(folder)
        missing = [unit for unit in units if unit_id(*unit) not in safe]
        total = len(job.questions)
        done = total - sum(stop - start for start, stop in missing)
        self.progress.started(total * len(job.passes), done * len(job.passes))
        stop = GracefulStop(self.progress.notice)
        try:
            with stop, job.model.open(job.selection) as session:
                for start, end in missing:
                    stop.check()
                    self._unit(start, end, session, stop)
                    self.captured += end - start
        except StopRequested:
            _write_metadata(job)
            raise CaptureInterrupted(folder, done + self.captured, total) from None
        _write_metadata(job)  # a kill may have left what Ctrl-C wrote before the last units

    def _unit(self, start: int, stop: int, session: CaptureSession, stopping: GracefulStop) -> None:
        """Forward passes, activations to their places, then the record that makes them count."""
        job, began = self.job, time.perf_counter()
        asked = job.of_unit(start, stop)
        self.halved.clear()

        def advanced(prompts: int, tokens: int) -> None:
            self.tokens += tokens
            self.progress.advanced(prompts, tokens)
            stopping.check()

        rows = [one.row for one in asked]
        batches = batches_of(rows, job.plan, job.groups(len(rows)))
        batch = forward_passes(
            session, rows, batches, advanced, self.halved, self.memory, self.limits
        )
        rows_by_pass = self._rows(asked, batch)
        sums = self._store(start - job.plan.start, asked, batch)
        record: dict[str, Any] = {
            "unit": unit_id(start, stop),
            "fingerprint": job.fingerprint,
            "rows": rows_by_pass,
            "checksums": sums,
            "seconds": round(time.perf_counter() - began, 3),
            "halved_batches": list(self.halved),
        }
        write_json(job.params.output_dir / UNITS / f"{record['unit']}.json", record)

    def _rows(self, asked: Sequence[Asked], batch: ActivationBatch) -> dict[str, list[Any]]:
        job = self.job
        last = batch.arrays[Site(SITE, job.model.n_layers - 1)][batch.offsets[1:] - 1]
        logits = _logits(job.model, last)
        found: dict[str, list[Any]] = {}
        for which in job.passes:
            places = [i for i, one in enumerate(asked) if one.which == which]
            ours = [asked[i] for i in places]
            letters = read_letters(logits[places], job.letters[which.name])
            texts = None
            if job.params.generate is not None:
                answers = job.model.generate_rows([a.row for a in ours], job.params.generate)
                texts = [answer.text for answer in answers]
            found[which.folder] = rows_of_pass(job, ours, letters, texts)
        return found

    def _store(self, place: int, asked: Sequence[Asked], batch: ActivationBatch) -> dict[str, str]:
        job = self.job
        bounds = list(zip(batch.offsets[:-1].tolist(), batch.offsets[1:].tolist(), strict=True))
        sums: dict[str, str] = {}
        blocks: list[tuple[str, int, Array]] = []
        for which in job.passes:
            ours = [i for i, one in enumerate(asked) if one.which == which]
            for layer in job.layers:
                names = {"layer": layer, "ids": [asked[i].row.id for i in ours]}
                rows = batch.arrays[Site(SITE, layer)]
                seq = job.seq_len[which.folder]
                block = left_padded(rows, [bounds[i] for i in ours], seq, job.params.dtype, names)
                blocks.append((which.folder, layer, block))
        files = job.files()  # every value fits: only now is anything of the unit written
        for folder, layer, block in blocks:
            sums[f"{folder}/{layer:02d}"] = files[folder].write(layer, place, block)
        return sums


def forward_passes(
    session: CaptureSession,
    rows: Sequence[TokenRow],
    batches: Sequence[PlannedBatch],
    advanced: Callable[[int, int], None],
    halved: list[int],
    memory: UnitMemory | None = None,
    limits: LimitsByKind | None = None,
) -> ActivationBatch:
    """All prompts of a unit through the model, in the order given.

    Args:
        session: Open on the layers wanted.
        rows: The prompts.
        batches: How they go through the model.
        advanced: Told prompts and tokens after each batch.
        halved: Gets the size of every batch that did not fit memory, or was cut beforehand.
        memory: Where the result lies, to be used again for the next unit.
        limits: What memory was found to hold before.

    Raises:
        RunError: a prompt does not fit memory even alone.
    """
    whole = Assembly(rows, [len(row) for row in rows], memory)
    limits = LimitsByKind(Limits) if limits is None else limits  # an empty one is false
    passes = PassesAhead(rows, whole, session.begin, limits, halved, advanced)
    for planned in batches:
        for place in passes.run(planned):
            raise RunError(
                f"the prompt {rows[place].id!r} does not fit memory even alone",
                got=f"{len(rows[place])} tokens",
                next_step="a smaller dtype of the model, --quantization, or another device",
            )
    passes.take_all()
    records = [ExampleRecord(row.id, i, len(row), len(row)) for i, row in enumerate(rows)]
    return whole.batch(records)


def _logits(model: HFModel, last: Array) -> Array:
    """``[n, d_vocab]`` float32 of the last block's rows."""
    pieces = [
        model.unembed(to_torch(np.ascontiguousarray(last[i : i + UNEMBEDDED_ROWS])))
        for i in range(0, len(last), UNEMBEDDED_ROWS)
    ]
    return np.concatenate([piece.float().numpy() for piece in pieces])


def _write_metadata(job: Job) -> None:
    """``metadata.json`` of each pass: the rows of every unit that is safe, in order."""
    folder = job.params.output_dir
    safe = committed(folder)
    rows: dict[str, list[Any]] = {which.folder: [] for which in job.passes}
    for unit in job.plan.unit_ids():
        if unit not in safe:
            break
        record = unit_record(folder, unit)
        for name, found in record["rows"].items():
            rows[name] += found
    for name, found in rows.items():
        write_json(folder / name / "metadata.json", found)


def _pace(job: Job) -> float | None:
    """Seconds a token, of some questions asked a second time."""
    if not job.asked:
        return None
    some = [one.row for one in job.asked[: PACED * len(job.passes)]]
    batches = batches_of(some, job.plan, job.groups(len(some)))

    def once() -> None:
        forward_passes(session, some, batches, lambda prompts, tokens: None, [])

    with job.model.open(job.selection) as session:
        once()
        began = time.perf_counter()
        once()
        return (time.perf_counter() - began) / sum(map(len, some))
