"""Run a dataset through an extractor into a store: plan, capture, write, resume."""

from __future__ import annotations

import time
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any

from actscope.capture.dataset import as_dataset
from actscope.capture.disk import free_disk
from actscope.capture.dry_run import DryRun, seconds_per_token
from actscope.capture.extractor import ActivationExtractor
from actscope.capture.interrupt import CaptureInterrupted, GracefulStop, StopRequested
from actscope.capture.job import Job, Request, examples_in, resolve
from actscope.capture.options import CaptureOptions
from actscope.capture.progress import Progress, Silent
from actscope.capture.tracking import Tracking, figures_of
from actscope.capture.units import UnitWorker
from actscope.capture.writer import BackgroundWriter
from actscope.core.activations import ActivationBatch
from actscope.core.errors import BadInputError, RunMismatchError
from actscope.core.protocols import RunWriter, Source, Storage, Tracker
from actscope.core.spec import unit_id

if TYPE_CHECKING:
    from actscope.stores import Run

__all__ = ["DatasetRunner", "RunResult"]


@dataclass(frozen=True)
class RunResult:
    """What a run did.

    Attributes:
        path: The run's folder.
        run_id: Its name in the storage.
        fingerprint: The spec's fingerprint.
        captured: Examples captured by this call, each sample of a prompt by itself.
        resumed: Prompts of the range that were on disk before, failures included.
        failures: Failures recorded by this call, by kind.
        tokens: Tokens that went through the model in this call.
        seconds: Wall clock of this call.
        notices: What the user should know, such as an ignored option.
        share_prefix: Whether texts that begin alike computed that part once.
    """

    path: Path
    run_id: str
    fingerprint: str
    captured: int
    resumed: int
    tokens: int
    seconds: float
    failures: Mapping[str, int] = field(default_factory=dict[str, int])
    notices: Sequence[str] = ()
    share_prefix: bool = False

    def open(self) -> Run:
        """The run, for reading."""
        from actscope.stores import open_run

        return open_run(self.path)


class DatasetRunner:
    """Captures a dataset into a store; running it again goes on where it stopped.

    Every argument may be given here or to ``run``. A dataset is an iterable of texts, token id
    lists, dictionaries or examples, a ``Path``, or a source. A committed unit is final: its
    failures are properties of its examples, so a later resume does not try them again.

    Args:
        dataset: The prompts.
        batch_size: Examples in one forward pass; None fills a token budget.
        extractor: What to capture.
        storage: Where to write.
        options: Everything else.
        progress: Who is told how far it is.
        tracker: Who keeps a record of the run besides, such as MLflow; see ``actscope.trackers``.
    """

    def __init__(
        self,
        dataset: object = None,
        batch_size: int | None = None,
        extractor: ActivationExtractor | None = None,
        storage: Storage | None = None,
        *,
        options: CaptureOptions | None = None,
        progress: Progress | None = None,
        tracker: Tracker | None = None,
    ) -> None:
        self._given: dict[str, Any] = {
            "dataset": dataset,
            "batch_size": batch_size,
            "extractor": extractor,
            "storage": storage,
        }
        self._options = options or CaptureOptions()
        self._progress = progress or Silent()
        self._tracking = Tracking(tracker, self._progress.notice)
        self._source: tuple[object, Source] | None = None

    def run(
        self,
        dataset: object = None,
        batch_size: int | None = None,
        extractor: ActivationExtractor | None = None,
        storage: Storage | None = None,
        *,
        run_id: str | None = None,
        tags: Sequence[str] = (),
    ) -> RunResult:
        """Capture what is missing of the dataset.

        Args:
            dataset: The prompts, unless given to the constructor; likewise the next three.
            batch_size: Examples in one forward pass.
            extractor: What to capture.
            storage: Where to write.
            run_id: The run's name. By default it follows from the spec, so that the same work
                finds its own run again.
            tags: Words by which the run is found again; it keeps those it has.

        Raises:
            BadInputError: a word that cannot be a tag.
            RunMismatchError: the run exists with another spec or range.
            OutputFolderError: nothing can be written where it would be.
            NotEnoughDiskError: it cannot fit.
            ExampleError: a prompt is too long and the policy is ``error``.
            CaptureInterrupted: Ctrl-C or SIGTERM; everything committed is safe.
        """
        began = time.perf_counter()
        _check_tags(tags)
        now: dict[str, object] = {"dataset": dataset, "batch_size": batch_size}
        now |= {"extractor": extractor, "storage": storage}
        job = self._resolve(now, run_id)
        for notice in job.notices:
            self._progress.notice(notice)
        job.check()
        job, writer = _opened(job)
        _tag(writer.path, tags)
        self._tracking.started(job.run_id, job.spec.to_json(), self._further(job, writer))
        state = "failed"
        try:
            tally = self._work(job, writer)
            state = "complete"
        except (CaptureInterrupted, KeyboardInterrupt):
            state = "interrupted"
            raise
        finally:
            writer.close()
            self._tracking.finished(state, lambda: _figures(_folder(writer)))
        return RunResult(
            path=_folder(writer),
            run_id=job.run_id,
            fingerprint=job.spec.fingerprint,
            seconds=time.perf_counter() - began,
            notices=job.notices,
            share_prefix=job.plan.share_prefix,
            **asdict(tally),
        )

    def dry_run(self, *, run_id: str | None = None) -> DryRun:
        """Count, measure and time without writing anything.

        Raises:
            ExampleError: a prompt is too long and the policy is ``error``.
        """
        job = self._resolve({}, run_id)
        for notice in job.notices:
            self._progress.notice(notice)
        options = self._options
        missing = job.missing()
        counts = job.count(missing)
        pace = seconds_per_token(job.request.extractor, job.items, job.plan, options)
        return DryRun(
            path=job.path,
            examples=counts.examples,
            already_done=self._samples * (examples_in(job.plan.units()) - examples_in(missing)),
            tokens=counts.tokens,
            bytes_by_site=counts.bytes_by_site(job.cost),
            dtypes=job.cost.dtypes,
            table_bytes=counts.table_bytes(job.cost, keep_text=options.keep_text),
            free_bytes=free_disk(job.path),
            seconds=None if pace is None else pace * (counts.tokens - counts.saved),
            units=len(missing),
            plan=job.plan,
            failures=dict(counts.failures),
            padding=counts.padding / max(counts.tokens, 1),
            alone=counts.alone,
            shared=counts.shared,
            saved=counts.saved,
            upper_bound=options.generation is not None or options.codec == "zstd",
        )

    @staticmethod
    def _further(job: Job, writer: RunWriter) -> dict[str, Any]:
        """What a tracker should know besides the spec."""
        where = {"fingerprint": job.spec.fingerprint, "path": str(writer.path)}
        return {**where, "plan": job.plan.to_json()}

    @property
    def _samples(self) -> int:
        return self._options.generation.n if self._options.generation else 1

    def _resolve(self, now: Mapping[str, Any], run_id: str | None) -> Job:
        """What is asked for now, completed by what the constructor was given."""
        wanted = {
            name: given if now.get(name) is None else now[name]
            for name, given in self._given.items()
        }
        for name, value in wanted.items():
            if value is None and name != "batch_size":
                raise BadInputError(
                    f"DatasetRunner has no {name}",
                    next_step=f"pass {name} to the constructor or to run()",
                )
        dataset = wanted.pop("dataset")
        if self._source is None or self._source[0] is not dataset:
            self._source = (dataset, as_dataset(dataset))  # an iterator can be read only once
        return resolve(Request(self._source[1], **wanted, options=self._options, run_id=run_id))

    def _work(self, job: Job, writer: RunWriter) -> _Tally:
        missing = job.left(writer)
        total = examples_in(job.plan.units())
        tally = _Tally(resumed=total - examples_in(missing))
        self._progress.started(self._samples * total, self._samples * tally.resumed)
        if not missing:
            return tally
        background = BackgroundWriter(writer, self._options.queue_bytes)
        try:
            self._capture(job, missing, background, tally)
        except StopRequested:
            background.finish()
            done = total - examples_in(job.left(writer))
            raise CaptureInterrupted(_folder(writer), done, total) from None
        except KeyboardInterrupt:
            background.abandon()
            raise
        except BaseException:
            _finish_quietly(background)
            raise
        return tally

    def _capture(
        self,
        job: Job,
        missing: Sequence[tuple[int, int]],
        background: BackgroundWriter,
        tally: _Tally,
    ) -> None:
        extractor = job.request.extractor
        stop = GracefulStop(self._progress.notice)
        worker = UnitWorker(
            extractor, job.request.source, self._options, job.plan, self._progress, stop.check
        )
        again = getattr(background.writer, "copies_arrays", False)
        with stop, extractor.opened():
            for bounds in missing:
                stop.check()
                unit = worker.capture(*bounds)
                tally.add(unit.batch)
                written = unit.release if again else _keep
                background.submit(unit_id(*bounds), unit.batch, unit.metadata, written)
                del unit, written
            background.finish()


@dataclass
class _Tally:
    captured: int = 0
    resumed: int = 0
    tokens: int = 0
    failures: dict[str, int] = field(default_factory=dict[str, int])

    def add(self, batch: ActivationBatch) -> None:
        self.captured += len(batch)
        self.tokens += sum(record.n_tokens for record in batch.examples)
        for failure in batch.failures:
            self.failures[failure.kind] = self.failures.get(failure.kind, 0) + 1


def _folder(writer: RunWriter) -> Path:
    from actscope.stores import as_folder

    return as_folder(writer.path)


def _figures(path: Path) -> dict[str, float]:
    from actscope.stores import open_run

    with open_run(path) as run:
        return figures_of(run.summary())


def _check_tags(tags: Sequence[str]) -> None:
    if tags:
        from actscope.stores import checked_tag

        for tag in tags:
            checked_tag(tag)


def _tag(path: str | Path, tags: Sequence[str]) -> None:
    if tags:
        from actscope.stores import tag_run

        tag_run(path, tags)


def _opened(job: Job) -> tuple[Job, RunWriter]:
    """The run, by the plan of whoever began it."""
    try:
        return job, job.open()
    except RunMismatchError:
        agreed = job.agreed()
        if agreed.plan == job.plan:
            raise
        return agreed, agreed.open()


def _keep() -> None:
    """The storage may hold on to arrays it was given: their memory is not used again."""


def _finish_quietly(background: BackgroundWriter) -> None:
    """Write what was captured before an error; that error is the one to report."""
    try:
        background.finish()
    except Exception:
        background.abandon()
