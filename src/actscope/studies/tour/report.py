"""The tour's page: every title is a statement computed from the runs."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from contextlib import ExitStack
from typing import TYPE_CHECKING

import numpy as np
import numpy.typing as npt

from actscope.analysis.norms import LayerNorms
from actscope.analysis.similarity import closest_pair, pairs_of
from actscope.core.arrays import Array, to_torch
from actscope.plots.logit_lens import LensTokens, logit_lens_figure
from actscope.plots.norms import norms_figure
from actscope.plots.report import Picture, Report, Section, Table, write_report
from actscope.plots.similarity import similarity_figure
from actscope.plots.token_text import shortened
from actscope.studies.tour.params import TourParams
from actscope.studies.tour.result import (
    Answer,
    LensShares,
    Similarity,
    TourResult,
    answers_of,
    norms_of,
    shares_of,
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
        sections = [_norms_section(norms, runs["texts"], runs["prompts"])]
        if answers:
            sections.append(_lens_section(model, answers))
        sections += [_similarity_section(similarity), *_answers_section(answers)]
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


def _lead(result: TourResult, params: TourParams) -> str:
    model = result.model
    return (
        f"{model.name} is a {model.model_type} model with {model.n_layers} blocks and a residual "
        f"stream of {model.d_model} values. It read {params.texts} and {params.prompts} and "
        f"answered {len(params.questions)} questions; the residual stream after every block was "
        "stored at every token, prompt and answer alike. Every figure below was computed from the "
        "stored runs."
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


def _norms_section(norms: LayerNorms, texts: Run, prompts: Run) -> Section:
    first, last = norms.layers[0], norms.layers[-1]
    title = f"The residual norm {_growth(norms.growth)} from block {first} to block {last}"
    place = _largest_excess(norms)
    if place is not None:
        ratio = norms.first[place].median / norms.later[place].median
        title += f"; the first token’s is {ratio:.0f}× that of the others at block"
        title += f" {norms.layers[place]}"
    caption = (
        "L2 norm of resid_post (activation units) after each block: median over tokens and the "
        f"range between the quartiles. n = {norms.later[0].count:,} later tokens"
    )
    if norms.first_dominates:
        caption += f" and {norms.first[0].count:,} first tokens, drawn apart,"
    caption += f" of {len(texts):,} texts and {len(prompts):,} prompts."
    if norms.non_finite:
        caption += f" {norms.non_finite:,} rows were left out: not finite."
    figure = norms_figure(norms)
    return Section(title, [Picture(figure, f"Line plot. {title}.")], caption)


def _growth(ratio: float) -> str:
    if not math.isfinite(ratio):
        return "changes"
    if ratio >= 1.15:
        return f"grows {ratio:.1f}×" if ratio < 10 else f"grows {ratio:.0f}×"
    if ratio <= 0.87:
        return f"shrinks to {ratio:.0%}"
    return f"stays about the same ({ratio:.2f}×)"


def _largest_excess(norms: LayerNorms) -> int | None:
    """The place of the layer where first tokens stand out most, if they do."""
    if not norms.first_dominates:
        return None
    pairs = zip(norms.first, norms.later, strict=True)
    return int(np.nanargmax([f.median / o.median if o.median else np.nan for f, o in pairs]))


def _lens_section(model: HFModel, answers: Sequence[Answer]) -> Section:
    shown = answers[0]
    shares = shares_of(answers)
    title = _lens_title(shares)
    figure = logit_lens_figure(shown.lens, _words(model, shown), answer_from=shown.answer_from)
    caption = (
        f"Logit lens, one row a token, of “{shown.question}” and the answer "
        f"“{_one_line(shown.text)}” Each cell names the most probable next token if the block were "
        "the last one, bold where it is the token that came next; colour is the probability of "
        "that token. The line marks where the answer begins. "
        f"n = {len(shown.lens.actual_ids)} positions of one example; the title and the table are "
        f"of {shares.n_tokens:,} tokens of {len(answers)} greedy answers."
    )
    return Section(
        title,
        [Picture(figure, f"Heatmap of tokens by blocks. {title}.")],
        caption,
        [_shares_table(shares, len(answers))],
    )


def _one_line(text: str) -> str:
    return shortened(" ".join(text.split()), 160)


def _lens_title(shares: LensShares) -> str:
    """What the first block knows of the answers, where nearly all is known, and the last block."""
    share, last = shares.first_guess, len(shares.layers) - 1
    nearly = next(i for i, value in enumerate(share) if value >= 0.95 or i == last)
    places = sorted({0, nearly, last})
    steps = [f"{share[i]:.0%} after block {shares.layers[i]}" for i in places]
    listed = ", ".join(steps[:-1]) + (" and " if steps[:-1] else "") + steps[-1]
    return f"Of the answers’ tokens, the lens guesses right {listed}"


def _shares_table(shares: LensShares, n_answers: int) -> Table:
    rows = [
        (f"block {layer}", f"{share:.0%}", f"{p:.2f}", f"{entropy:.2f}", f"{kl:.2f}")
        for layer, share, p, entropy, kl in zip(
            shares.layers,
            shares.first_guess,
            shares.probability,
            shares.entropy,
            shares.kl_to_final,
            strict=True,
        )
    ]
    columns = [
        "logit lens after",
        "best guess is right#",
        "mean probability#",
        "entropy (nats)#",
        "KL from the last block (nats)#",
    ]
    caption = (
        f"The logit lens over all {n_answers} answers, n = {shares.n_tokens:,} generated tokens. "
        "Answers are greedy, so the last block is right by construction."
    )
    return Table(columns, rows, caption)


def _words(model: HFModel, answer: Answer) -> LensTokens:
    def word(token: int) -> str:
        tokenizer = model.tokenizer
        return str(tokenizer.decode([token])) if tokenizer is not None else str(token)

    lens = answer.lens
    return LensTokens(
        inputs=[word(int(t)) for t in answer.token_ids[:-1]],
        actual=[word(int(t)) for t in lens.actual_ids],
        top=[[word(int(t)) for t in row[:, 0]] for row in lens.top_ids],
    )


def _similarity_section(found: Similarity) -> Section:
    labels = [_label(identity) for identity in found.ids]
    raw, centred = pairs_of(found.raw), pairs_of(found.centred)
    title = _similarity_title(found, labels)
    starts = _group_starts(found.ids)
    pictures = [
        Picture(
            similarity_figure(matrix, labels, groups=starts),
            f"Heatmap of cosine similarities, {heading.lower()}. {title}.",
            heading,
        )
        for heading, matrix in (("Raw", found.raw), ("Mean-centred", found.centred))
    ]
    layers = f"{found.layers[0]} to {found.layers[-1]}"
    caption = (
        f"Cosine similarity of {len(labels)} texts. Each text is the mean of resid_post over its "
        f"tokens (the first left out) and over blocks {layers}; mean-centred: their mean was "
        f"subtracted first. n = {raw.count:,} pairs; the median cosine is {raw.median:.2f} raw "
        f"and {_signed(centred.median)} centred. White lines separate folders."
    )
    if raw.missing:
        caption += f" {raw.missing:,} pairs have no cosine and are crossed gaps."
    return Section(title, pictures, caption)


def _similarity_title(found: Similarity, labels: Sequence[str]) -> str:
    raw, centred = pairs_of(found.raw), pairs_of(found.centred)
    pair = closest_pair(found.centred)
    if pair is None:
        return "No two texts can be compared"
    return (
        f"Raw cosines of the texts lie within {_signed(raw.minimum)} to {_signed(raw.maximum)}, "
        f"without their mean within {_signed(centred.minimum)} to {_signed(centred.maximum)}; "
        f"“{labels[pair[0]]}” is then closest to “{labels[pair[1]]}”"
    )


def _signed(value: float) -> str:
    return f"{value:.2f}".replace("-", "−")


def _label(identity: str) -> str:
    """``long/03_why_tides_rise`` is ``why tides rise``."""
    name = identity.rpartition("/")[2]
    number, underscore, rest = name.partition("_")
    return (rest if underscore and number.isdigit() else name).replace("_", " ")


def _group_starts(ids: Sequence[str]) -> list[int]:
    folders = [identity.rpartition("/")[0] for identity in ids]
    return [i for i in range(1, len(ids)) if folders[i] != folders[i - 1]]


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
