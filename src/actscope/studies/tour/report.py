"""The tour's page: every title is a statement computed from the runs."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from contextlib import ExitStack
from typing import TYPE_CHECKING

import numpy.typing as npt

from actscope.core.arrays import Array, to_torch
from actscope.plots.report import Report, Section, Table, write_report
from actscope.studies.tour.params import TourParams
from actscope.studies.tour.refusals import requests_of
from actscope.studies.tour.report_activations import norms_section, similarity_section
from actscope.studies.tour.report_lens import lens_section, twins_section
from actscope.studies.tour.report_refusals import refusal_sections
from actscope.studies.tour.result import (
    Answer,
    TourResult,
    answers_of,
    norms_of,
    similarity_of,
    spread,
)

if TYPE_CHECKING:
    from actscope.backends.hf import HFModel
    from actscope.stores import Run

__all__ = ["write_tour_report"]

_MOST_LAYERS = 12
"""Columns of the logit lens that fit a page."""


def write_tour_report(model: HFModel, params: TourParams, result: TourResult) -> None:
    """Read the runs, draw them, write ``params.report``."""
    with ExitStack() as open_runs:
        runs = {one.name: open_runs.enter_context(one.done.open()) for one in result.captured}
        norms = norms_of([runs["texts"], runs["prompts"]])
        similarity = similarity_of(runs["texts"])
        layers = spread(runs["answers"].layers, _MOST_LAYERS)
        answers = answers_of(runs["answers"], _unembedding(model), layers)
        twins = _twins(params, answers)
        sections = [norms_section(norms, runs["texts"], runs["prompts"])]
        if answers:
            sections.append(lens_section(model, answers))
        if twins:
            sections.append(twins_section(model, *twins))
        requests = requests_of(runs["requests"])
        sections += refusal_sections(model, requests, runs["answers"], answers, twins)
        sections += [similarity_section(similarity), *_answers_section(answers)]
        sections.append(_verified_section(result))
        write_report(
            Report(
                title=f"What the model “{result.model.name}” computes, layer by layer",
                lead=_lead(result, params),
                facts=_facts(result),
                sections=sections,
                provenance=_provenance(result, runs),
            ),
            params.report,
        )


def _unembedding(model: HFModel) -> Callable[[Array], npt.ArrayLike]:
    def unembed(rows: Array) -> npt.ArrayLike:
        return model.unembed(to_torch(rows)).float().numpy()

    return unembed


def _twins(params: TourParams, answers: Sequence[Answer]) -> list[Answer]:
    """Answers to the request to refuse and to its twin; empty where one of them has none."""
    by_question = {answer.question: answer for answer in answers}
    found = [by_question[q] for q in params.twins if q in by_question]
    return found if len(found) == 2 else []


def _lead(result: TourResult, params: TourParams) -> str:
    model = result.model
    return (
        f"{model.name} is a {model.model_type} model with {model.n_layers} blocks and a residual "
        f"stream of {model.d_model} values. It read {params.texts} and {params.prompts} and "
        f"answered {len(params.questions)} questions; the residual stream after every block was "
        "stored at every token, prompt and answer alike. Of the requests in "
        f"{params.requests}, it was stored at the last token before the answer. Every figure below "
        "was computed from the stored runs."
    )


def _facts(result: TourResult) -> list[tuple[str, object]]:
    found = [one.summary for one in result.captured]
    size = sum(one.bytes for one in found)
    return [
        ("examples", f"{sum(one.n_examples for one in found):,}"),
        ("tokens", f"{sum(one.n_tokens for one in found):,}"),
        ("blocks captured", result.model.n_layers),
        ("MB on disk", f"{size / 1e6:,.1f}"),
        ("bytes verified", "100 %"),
    ]


def _answers_section(answers: Sequence[Answer]) -> list[Section]:
    if not answers:
        return []
    rows = [
        (a.question, a.text.strip(), a.n_tokens, _probability(a.mean_probability)) for a in answers
    ]
    least = min(answers, key=lambda a: a.mean_probability)
    most = max(answers, key=lambda a: a.mean_probability)
    title = (
        f"The answers’ tokens have a mean probability of {_probability(least.mean_probability)} to "
        f"{_probability(most.mean_probability).replace('>', 'over')}, lowest for “{least.question}”"
    )
    caption = (
        f"Greedy answers to {len(answers)} questions, with their activations stored. Probability: "
        "geometric mean over the answer’s tokens, read from the last block."
    )
    columns = ["question", "answer", "tokens#", "probability#"]
    return [Section(title, tables=[Table(columns, rows, caption)])]


def _probability(value: float) -> str:
    return "> 0.999" if value > 0.9995 else f"{value:.3f}"


def _verified_section(result: TourResult) -> Section:
    rows: list[tuple[object, ...]] = []
    for one in result.captured:
        s, v = one.summary, one.verified
        rows.append(
            (
                one.name,
                f"{s.n_examples:,}",
                f"{s.n_failures:,}",
                f"{s.n_tokens:,}",
                len(s.sites),
                v.units,
                f"{v.bytes:,}",
                "whole" if v.ok else f"{len(v.problems)} problems",
            )
        )
    total = sum(one.verified.bytes for one in result.captured)
    columns = ["run", "examples#", "failures#", "tokens#", "sites#", "units#", "bytes#", "state"]
    caption = (
        f"Every byte of {len(rows)} runs was read again and compared with the checksums of its "
        "commit records."
    )
    noted = sum(one.noted for one in result.captured)
    if noted:
        caption += f" {noted:,} examples were longer than the context and cut at their end."
    return Section(
        f"All {total:,} stored bytes are what was captured", tables=[Table(columns, rows, caption)]
    )


def _provenance(result: TourResult, runs: dict[str, Run]) -> list[tuple[str, object]]:
    model = result.model
    some = next(iter(runs.values()))
    pairs: list[tuple[str, object]] = [
        ("model", f"{model.name} ({model.model_type}, {model.dtype})"),
        ("revision", model.revision),
        ("tokenizer", model.tokenizer),
        ("chat template", model.chat_template or "none"),
        ("versions", ", ".join(f"{k} {v}" for k, v in some.environment.items())),
    ]
    for name, run in runs.items():
        dataset = (run.spec or {}).get("dataset", "")
        pairs += [(f"{name}: spec", run.fingerprint), (f"{name}: dataset", dataset)]
    pairs += [("captured", some.created), ("made with", "actscope demo")]
    return pairs
