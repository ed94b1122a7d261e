"""What is written about each question in each pass, besides its activations."""

from __future__ import annotations

import re
from collections.abc import Sequence
from typing import Any

from actscope.analysis.choices import LetterReadout, expected_value
from actscope.studies.introspection.job import Asked, Job
from actscope.studies.introspection.passes import MIDPOINTS

__all__ = ["rows_of_pass"]

_ARGMAX = "most probable letter"
_SAMPLED = "sampled text"


def rows_of_pass(
    job: Job, asked: Sequence[Asked], found: LetterReadout, texts: Sequence[str] | None
) -> list[dict[str, Any]]:
    """One row a question, in order.

    Args:
        job: The collection.
        asked: Questions of one pass.
        found: Their letters' logits.
        texts: Sampled answers, or None where the most probable letter is the output.
    """
    return [
        _row(job, one, found, place, None if texts is None else texts[place])
        for place, one in enumerate(asked)
    ]


def _row(
    job: Job, one: Asked, found: LetterReadout, place: int, text: str | None
) -> dict[str, Any]:
    which, question, seed = one.which, one.question, job.params.seed
    right = question.correct_letter(seed)
    identity, sampling = job.model.identity, job.params.generate
    best = which.letters[int(found.best[place])]
    answer = best if text is None else _letter_in(text, which.letters)
    seq = job.seq_len[which.folder]
    row: dict[str, Any] = {
        "question_id": question.id,
        "question_text": question.question,
        "options": question.options(seed),
        "correct_answer_letter": right,
        "model_name": identity.name,
        "checkpoint_id": identity.adapter or identity.revision,
        "prompt_type": which.name,
        "prompt_text": _prompt_text(job, one),
        "temperature": sampling.temperature if sampling else 0.0,
        "top_p": sampling.top_p if sampling else 1.0,
        "max_new_tokens": sampling.max_new_tokens if sampling else 1,
        "output_text": best if text is None else text,
        "output_source": _ARGMAX if text is None else _SAMPLED,
        "parsed_answer": answer,
        "letters": list(which.letters),
        "logits": [float(x) for x in found.logits[place]],
        "probs": [float(x) for x in found.probs[place]],
        "letter_mass": float(found.mass[place]),
        "entropy": float(found.entropy[place]),
        "prompt_tokens": len(one.row),
        "first_token_index": seq - len(one.row),
    }
    if which.states_confidence:
        row["confidence_token_index"] = seq - 1
        row[which.name] = float(expected_value(found.probs[place : place + 1], MIDPOINTS)[0])
    else:
        row["answer_token_index"] = seq - 1
        row["is_correct"] = answer == right
        correct = which.letters.index(right)
        others = [x for i, x in enumerate(found.logits[place]) if i != correct]
        row["logit_margin"] = float(found.logits[place, correct] - max(others))
    row |= job.surface[question.id]
    row["source"] = dict(question.metadata)
    return row


def _prompt_text(job: Job, one: Asked) -> str:
    """What the model read, template marks included."""
    return str(job.model.tokenizer.decode(one.row.token_ids.tolist(), skip_special_tokens=False))


def _letter_in(text: str, letters: str) -> str | None:
    """The letter that a sampled answer gives; None where it gives none.

    The one after "answer is" or "answer:", else the first that ends its line or is followed by
    punctuation: in "A good question" it is an article.
    """
    letter = rf"(?<![^\W_])([{letters}])(?![^\W_])"
    said = re.search(rf"(?i:\banswer(?:\s+is\b\s*:?|\s*:))\s*[^\w\s]*{letter}", text)
    found = said or re.search(rf"{letter}(?=[^\w\s]++(?!\w)|_|\s*$)", text, re.MULTILINE)
    return found[1] if found else None
