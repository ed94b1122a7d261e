"""Sections on the logit lens: what each block would say next."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from typing import TYPE_CHECKING, SupportsInt

from actscope.plots.logit_lens import LensTokens, logit_lens_figure, longest_of
from actscope.plots.report import Picture, Section, Table
from actscope.plots.token_text import shortened, visible
from actscope.studies.tour.result import Answer, LensShares, shares_of

if TYPE_CHECKING:
    from actscope.backends.hf import HFModel

__all__ = ["lens_section", "twins_section", "word"]

_BEFORE, _AFTER = 3, 14
"""Rows of a twin's heatmap: tokens of the prompt, and of the answer."""
_MOST_SIDE_BY_SIDE = 6
"""Layers up to which two heatmaps fit beside each other."""


def lens_section(model: HFModel, answers: Sequence[Answer]) -> Section:
    """The first answer token by token, and how much of all answers each block knows."""
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


def twins_section(model: HFModel, refused: Answer, twin: Answer) -> Section:
    """The last tokens of the prompt and the first of the answer, of a request and its twin."""
    title = _twins_title(model, refused, twin)
    parts = [_beginning(answer) for answer in (refused, twin)]
    words = [_words(model, part) for part in parts]
    letters = max(longest_of(guesses) for one in words for guesses in one.top)
    pictures = [
        Picture(
            logit_lens_figure(part.lens, own, answer_from=part.answer_from, letters=letters),
            f"Heatmap of tokens by blocks, {heading.lower()}: “{part.question}” {title}.",
            f"{heading}: “{part.question}”",
            wide=len(part.lens.layers) > _MOST_SIDE_BY_SIDE,
        )
        for heading, part, own in zip(
            ("A request to refuse", "Its harmless twin"), parts, words, strict=True
        )
    ]
    caption = (
        f"Logit lens of the last {_BEFORE + 1} tokens of two prompts and the first {_AFTER} of "
        f"their greedy answers, “{_one_line(refused.text)}” and “{_one_line(twin.text)}”, read as "
        f"in the figure above. n = {sum(len(part.lens.actual_ids) for part in parts)} positions of "
        "2 examples."
    )
    return Section(title, pictures, caption)


def _twins_title(model: HFModel, refused: Answer, twin: Answer) -> str:
    """Where the answers part, and from which block on the lens says so."""
    steps = [answer.answer_from + _shared(refused, twin) for answer in (refused, twin)]
    number = steps[0] - refused.answer_from + 1
    over = [step >= len(a.lens.actual_ids) for step, a in zip(steps, (refused, twin), strict=True)]
    if all(over):
        return "The request to refuse and its twin get the same answer"
    if any(over):
        return "Of the answers to a request to refuse and its twin, one is how the other begins"
    first, other = (
        f"“{visible(word(model, answer.lens.actual_ids[step]))}” {_settled(answer, step)}"
        for answer, step in zip((refused, twin), steps, strict=True)
    )
    return (
        f"The two answers part at token {number}: for the request to refuse the lens’s best guess "
        f"is {first}, for its twin {other}"
    )


def _shared(a: Answer, b: Answer) -> int:
    """How many tokens the answers begin with in common."""
    pairs = zip(
        a.token_ids[a.answer_from + 1 :].tolist(),
        b.token_ids[b.answer_from + 1 :].tolist(),
        strict=False,
    )
    shared = 0
    for one, other in pairs:
        if one != other:
            break
        shared += 1
    return shared


def _settled(answer: Answer, step: int) -> str:
    """From which block on the best guess is the token that came next."""
    wrong = answer.lens.actual_rank[:, step] != 1
    if wrong[-1]:
        return "after no block"
    if not wrong.any():
        return f"from block {answer.lens.layers[0]} on"
    return f"from block {answer.lens.layers[int(wrong.nonzero()[0][-1]) + 1]} on"


def _beginning(answer: Answer) -> Answer:
    """The same with a few rows around the beginning of the answer alone."""
    start = max(0, answer.answer_from - _BEFORE)
    stop = answer.answer_from + _AFTER
    rows = slice(start, stop)
    lens = answer.lens
    cut = replace(
        lens,
        actual_ids=lens.actual_ids[rows],
        **{
            name: getattr(lens, name)[:, rows]
            for name in (
                "top_ids",
                "top_probs",
                "actual_prob",
                "actual_rank",
                "entropy",
                "kl_to_final",
            )
        },
    )
    return replace(
        answer,
        token_ids=answer.token_ids[start : stop + 1],
        answer_from=answer.answer_from - start,
        lens=cut,
    )


def _words(model: HFModel, answer: Answer) -> LensTokens:
    lens = answer.lens
    return LensTokens(
        inputs=[word(model, t) for t in answer.token_ids[:-1]],
        actual=[word(model, t) for t in lens.actual_ids],
        top=[[word(model, t) for t in row[:, 0]] for row in lens.top_ids],
    )


def word(model: HFModel, token: SupportsInt) -> str:
    """A token id as text, alone; its number where the model has no tokenizer."""
    tokenizer = model.tokenizer
    return str(tokenizer.decode([int(token)])) if tokenizer is not None else str(int(token))
