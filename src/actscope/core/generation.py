"""Words of generation: how to continue a prompt, and what comes back."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable
from dataclasses import dataclass
from numbers import Integral, Real
from typing import cast

from actscope.core.activations import TokenRow
from actscope.core.errors import BadInputError, UnknownNameError

__all__ = [
    "CAPTURE_MODES",
    "AnswerCapture",
    "Generated",
    "GenerationParams",
    "Listener",
    "Listeners",
]

CAPTURE_MODES = ("auto", "live", "replay")


@dataclass(frozen=True)
class GenerationParams:
    """How to continue a prompt, and how the activations of the answer are taken.

    Attributes:
        max_new_tokens: Longest answer.
        temperature: 0 is greedy. Sampling is seeded per example.
        top_p: The smallest set of tokens with so much probability; 1 takes all.
        top_k: So many most probable tokens; 0 takes all.
        seed: Seeds every example, together with its id.
        stop: Texts that end an answer. They are found across the borders of tokens; the text ends
            before the stop string, the rows with the token that completed it.
        n: Answers to each prompt, each sampled by itself. With more than one they are called
            ``ID#0``, ``ID#1``, ...; the first is the answer that there would be alone.
        capture: ``live`` takes activations while the answer is decoded, ``replay`` in one pass over
            prompt and answer afterwards, ``auto`` is live where the model's cache allows it.

    Raises:
        BadInputError: a parameter means nothing, by name.
    """

    max_new_tokens: int = 50
    temperature: float = 0.7
    top_p: float = 1.0
    top_k: int = 0
    seed: int = 0
    stop: tuple[str, ...] = ()
    n: int = 1
    capture: str = "auto"

    def __post_init__(self) -> None:
        self._read_stops()
        self._read_numbers()
        self._check()

    def _read_stops(self) -> None:
        given = cast("str | Iterable[str]", self.stop)
        if not isinstance(cast("object", given), Iterable):
            raise BadInputError("a stop string must be a text", got=repr(given))
        stop = (given,) if isinstance(given, str) else tuple(given)
        if not all(isinstance(cast("object", s), str) and s for s in stop):
            raise BadInputError("a stop string must be a text that is not empty", got=list(stop))
        object.__setattr__(self, "stop", stop)

    def _read_numbers(self) -> None:
        for name in ("max_new_tokens", "top_k", "seed", "n"):
            value = getattr(self, name)
            if isinstance(value, bool) or not isinstance(value, Integral):
                raise BadInputError(f"{name} must be a whole number", got=repr(value))
            object.__setattr__(self, name, int(value))
        for name in ("temperature", "top_p"):
            value = cast("object", getattr(self, name))
            if isinstance(value, bool) or not isinstance(value, Real):
                raise BadInputError(f"{name} must be a number", got=repr(value))
            object.__setattr__(self, name, float(value))

    def _check(self) -> None:
        if self.max_new_tokens < 1:
            raise BadInputError("max_new_tokens must be at least 1", got=self.max_new_tokens)
        if self.temperature < 0:
            raise BadInputError(
                "temperature must not be negative", got=self.temperature, expected="0 for greedy"
            )
        if not math.isfinite(self.temperature):
            raise BadInputError("temperature must be a finite number", got=self.temperature)
        if not 0 < self.top_p <= 1:
            raise BadInputError("top_p must lie in (0, 1]", got=self.top_p)
        if self.top_k < 0:
            raise BadInputError(
                "top_k must not be negative", got=self.top_k, expected="0 for every token"
            )
        if self.n < 1:
            raise BadInputError("n must be at least 1", got=self.n)
        if self.n > 1 and self.temperature == 0:
            raise BadInputError(
                f"greedy answers are all the same: {self.n} of them are one",
                next_step="sample with a temperature above 0, or ask for n=1 (--samples 1)",
            )
        if self.capture not in CAPTURE_MODES:
            raise UnknownNameError("way to capture answers", self.capture, CAPTURE_MODES)


@dataclass(frozen=True)
class AnswerCapture:
    """How the activations of answers are taken, and why so.

    Attributes:
        mode: ``live`` or ``replay``.
        reason: What decided it.
    """

    mode: str
    reason: str


@dataclass(frozen=True)
class Generated:
    """Prompt and continuation of one example: ``row.phase`` tells them apart.

    Attributes:
        row: Prompt, reasoning and answer.
        text: The answer.
        thought: The reasoning, between ``<think>`` and ``</think>``; empty where there is none.
    """

    row: TokenRow
    text: str
    thought: str = ""


Listener = Callable[[str, int, str], None]
"""Told example id, token id and the text that the token made certain, token by token."""


@dataclass(frozen=True)
class Listeners:
    """Who is told what is generated while it is.

    Attributes:
        token: Told every new token; the pieces of an example join to its answer.
        thought: Told the tokens that make reasoning certain; the pieces join to the reasoning.
    """

    token: Listener | None = None
    thought: Listener | None = None
