"""The tour's work: four captures, each verified, then what they show, on one page."""

from __future__ import annotations

import time
from collections.abc import Callable
from contextlib import AbstractContextManager, nullcontext
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

from actscope.capture.progress import Progress, Silent
from actscope.core.errors import DamagedRunError, OutputFolderError, RunMismatchError
from actscope.core.protocols import GenerationParams
from actscope.studies.tour.params import TourParams
from actscope.studies.tour.result import Captured, TourResult

if TYPE_CHECKING:
    from actscope.backends.hf import HFModel
    from actscope.capture.options import CaptureOptions

__all__ = ["Stage", "run_tour"]

Stage = Callable[[str], AbstractContextManager[Progress]]
"""Opens a display for a step of that name."""


@dataclass(frozen=True)
class _Work:
    """One run to make."""

    name: str
    dataset: object
    options: CaptureOptions
    strategy: str | None = None


def run_tour(model: HFModel, params: TourParams, stage: Stage | None = None) -> TourResult:
    """Capture what is missing, verify everything, write the report.

    Args:
        model: A causal model.
        params: What to do.
        stage: Shows how far each step is; nothing is shown by default.

    Raises:
        RunMismatchError: the folder holds the runs of another model or version.
        DamagedRunError: stored bytes are not what was committed.
        BadInputError: matplotlib is not installed.
    """
    from actscope.plots.style import require_matplotlib
    from actscope.studies.tour.report import write_tour_report

    began = time.perf_counter()
    require_matplotlib()  # what is missing at the end is better said at the beginning
    _refuse_foreign_folder(params.out)
    show = stage or _silent
    captured: list[Captured] = []
    for work in _plan(model, params):
        with show(f"capture {work.name}") as progress:
            captured.append(_capture(model, params, work, progress))
    with show("read and report"):
        result = TourResult(model.identity, tuple(captured), params.report)
        write_tour_report(model, params, result)
    return result.after(time.perf_counter() - began)


def _refuse_foreign_folder(out: Path) -> None:
    """A folder with something else in it is not the tour's to fill."""
    if out.exists() and not out.is_dir():
        raise OutputFolderError(f"{out} is a file", expected="a folder, or nothing yet")
    ours = {"texts", "prompts", "answers", "requests", "demo-report.html"}
    others = sorted(p.name for p in out.iterdir() if p.name not in ours) if out.is_dir() else []
    if others:
        raise OutputFolderError(
            f"{out} holds something that is not the tour's",
            got=", ".join(others[:5]),
            expected="an empty folder, an earlier tour, or nothing yet",
            next_step="give another folder with --out",
        )


def _silent(name: str) -> AbstractContextManager[Progress]:
    return nullcontext(Silent())


def _plan(model: HFModel, params: TourParams) -> list[_Work]:
    from actscope.capture.options import CaptureOptions
    from actscope.sources import open_source

    # A text longer than a small model's context is cut at its end, which its record notes.
    plain = CaptureOptions(on_too_long="truncate-right")
    chat = bool(getattr(model.tokenizer, "chat_template", None))
    answers = CaptureOptions(
        chat=chat,
        generation=GenerationParams(params.max_new_tokens, temperature=0.0),
        on_too_long="truncate-right",
    )
    return [
        _Work("texts", open_source(params.texts), plain),
        _Work("prompts", open_source(params.prompts), plain),
        _Work("answers", _asked(params.questions), answers),
        # The last token of a prompt is the one that the answer's first token is read from.
        _Work("requests", _requests(params.requests), replace(plain, chat=chat), strategy="last"),
    ]


def _asked(questions: tuple[str, ...]) -> list[dict[str, str]]:
    """The stored text of a chat prompt is the whole template, so the question goes along."""
    return [
        {"id": f"question_{number:02d}", "text": question, "question": question}
        for number, question in enumerate(questions, start=1)
    ]


def _requests(source: str) -> list[dict[str, Any]]:
    from actscope.sources import open_source

    return [
        {**example.metadata, "id": example.id, "text": example.text, "question": example.text}
        for example in open_source(source).examples()
    ]


def _capture(model: HFModel, params: TourParams, work: _Work, progress: Progress) -> Captured:
    from actscope.capture.extractor import ActivationExtractor
    from actscope.capture.runner import DatasetRunner
    from actscope.stores import ShardStorage

    runner = DatasetRunner(
        work.dataset,
        extractor=ActivationExtractor(model, "all", work.strategy, sites="resid_post"),
        storage=ShardStorage(params.out),
        options=work.options,
        progress=progress,
    )
    try:
        done = runner.run(run_id=work.name)
    except RunMismatchError as error:
        raise RunMismatchError(
            str(params.out / work.name),
            error.differences,
            next_step=f"remove {params.out}, or give another folder with --out",
        ) from None
    with done.open() as run:
        report = run.verify()
        if not report.ok:
            raise DamagedRunError(
                f"{done.path} is damaged: {report.problems[0]}",
                next_step=f"remove {done.path} and run the tour again",
            )
        noted = sum(bool(record.note) for record in run.examples)
        return Captured(work.name, done, run.summary(), report, noted)
