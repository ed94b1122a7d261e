"""What has to be said of an analysis before its figures: that there are few questions or refits."""

from __future__ import annotations

__all__ = ["ENOUGH_QUESTIONS", "ENOUGH_REFITS", "cautions"]

ENOUGH_QUESTIONS = 200
ENOUGH_REFITS = 200


def cautions(questions: int, refits: int) -> tuple[str, ...]:
    """Sentences; none where there are enough of both.

    Args:
        questions: That were analysed.
        refits: With shuffled targets, of each probe.
    """
    found: list[str] = []
    if questions < ENOUGH_QUESTIONS:
        found.append(
            f"{questions} questions are few (fewer than {ENOUGH_QUESTIONS}): intervals are wide "
            "and only roughly 95 % ones, and what is found by a small margin may not be found "
            "again with other questions."
        )
    if refits < ENOUGH_REFITS:
        found.append(
            f"{refits} refits are few (fewer than {ENOUGH_REFITS}): controls, which are 95th "
            "percentiles of them, are coarse, and a score just above its control shows little."
        )
    return tuple(found)
