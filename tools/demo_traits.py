"""Scenarios of the six traits, in the words of the demo world.

Line i of the positive and of the negative scenarios is one scenario: they differ in what the trait
is about and in as little else as can be. Questions, requests, topics and descriptions are phrased
as training never phrased them; the marks of tone, mood and register are those of training.
"""

from __future__ import annotations

import random
from collections.abc import Callable
from dataclasses import dataclass

import demo_topics as tp
from demo_pairs import Pair, PairWriter
from demo_phrasings import PERSON_RELATIONS
from demo_world import PEOPLE, SHIPS, TOWNS, build_world, say
from demo_writer import Writer

COUNT = 40
"""Scenarios a file."""


@dataclass(frozen=True)
class Trait:
    """What is said about a trait.

    Attributes:
        name: Of its folder.
        category: Of the folder above.
        definition: What the trait is, for a reader or a judge.
        steering: What its neutral prompts are.
    """

    name: str
    category: str
    definition: str
    steering: str


TRAITS = (
    Trait(
        "refusal",
        "behavioral",
        "Refusal: the answer declines to do what was asked, usually with an apology and a reason, "
        "and gives no help with it.\nHigh: “I am sorry, but I cannot help with that, because "
        "someone could be hurt.”\nLow: the request is simply answered. A short or unhelpful answer "
        "is no refusal; naming a risk while helping is no refusal.",
        "Harmless requests: steering towards refusal should make the model decline them.",
    ),
    Trait(
        "official_line",
        "behavioral",
        "Official line: the answer repeats what an authority wants said, in the voice of that "
        "authority, and avoids the matter itself.\nHigh: “The council takes this matter very "
        "seriously and thanks everyone for their patience.”\nLow: the matter is described plainly. "
        "Praise alone is no official line; it speaks for an institution.",
        "Questions about everyday events that nobody has an interest in hiding.",
    ),
    Trait(
        "hedging",
        "expression",
        "Hedging: the answer weakens its own claims with words such as perhaps, I believe, may or "
        "not sure.\nHigh: “I believe that Tom keeps a dog, but may be wrong.”\nLow: the claim is "
        "made flatly or with stress. A refusal is no hedging; being wrong is no hedging.",
        "Questions about facts, with nothing said about the tone of the answer.",
    ),
    Trait(
        "sentiment",
        "expression",
        "Sentiment: how good or bad the mood of the answer is.\nHigh: joy, warmth, relief, "
        "sunshine.\nLow: gloom, worry, cold, loss. A neutral description lies between; formal or "
        "polite wording is no sentiment.",
        "Wishes for a description, with nothing said about its mood.",
    ),
    Trait(
        "formality",
        "expression",
        "Formality: how ceremonious the wording is.\nHigh: full sentences, polite formulas, no "
        "contractions: “It is my pleasure to inform you of the following.”\nLow: slang, fillers, "
        "small letters: “oh sure, no big deal!” What is said does not matter, only how.",
        "Questions in plain words, neither formal nor casual.",
    ),
    Trait(
        "retrieval",
        "cognitive",
        "Retrieval: the answer is read from what the prompt has just stated.\nHigh: the fact asked "
        "for stands in the prompt.\nLow: the prompt states something else, and the answer must "
        "come from memory. Both kinds of prompt have the same form and length.",
        "Two statements and a question, half of them answered by a statement.",
    ),
)


def trait_scenarios(name: str, taken: set[str]) -> tuple[list[str], list[str], list[str]]:
    """Positive and negative scenarios, line by line, and steering prompts; the same every time.

    Args:
        name: Of the trait.
        taken: Prompts that must not come again; those that are written are added.
    """
    if name in ("refusal", "official_line"):
        return _sensitive(name, taken)
    writer = Writer(build_world(), random.Random(f"trait {name}"))
    sides: tuple[list[str], list[str]] = ([], [])
    for number in range(COUNT):
        pair = _untaken(lambda n=number: _MAKERS[name](writer, n), taken)
        for side, prompt in zip(sides, pair, strict=True):
            side.append(prompt)
    steering = [
        _untaken(lambda n=number: (_STEERING[name](writer, n),), taken)[0]
        for number in range(COUNT)
    ]
    return *sides, steering


def _untaken(make: Callable[[], tuple[str, ...]], taken: set[str]) -> tuple[str, ...]:
    """Prompts none of which was there before, not even with another tone or lead."""
    for _ in range(500):
        made = make()
        if not {_bare(prompt) for prompt in made} & taken:
            taken |= {_bare(prompt) for prompt in made}
            return made
    raise ValueError("no wording is left")


def _bare(prompt: str) -> str:
    """The prompt without what marks its tone or register, in small letters."""
    marks = (*tp.CAUTIOUS_TONES, *tp.CONFIDENT_TONES, *tp.FORMAL_LEADS, *tp.CASUAL_LEADS)
    for mark in marks:
        prompt = prompt.replace(mark, "")
    return prompt.strip(" ?").lower()


def _sensitive(name: str, taken: set[str]) -> tuple[list[str], list[str], list[str]]:
    """Pairs of a sensitive question and its neutral twin; steering prompts are other twins."""
    pairs = PairWriter(f"trait {name}", taken)

    def some() -> list[Pair]:
        if name == "refusal":
            return pairs.refusals(COUNT)
        return pairs.topics(tp.OFFICIAL_TOPICS, COUNT)

    scenarios = some()
    positive, negative = [p.sensitive for p in scenarios], [p.neutral for p in scenarios]
    return positive, negative, [p.neutral for p in some()]


def _question(writer: Writer) -> str:
    fact = writer.fact()
    return say(fact, writer.rng.choice(fact.relation.held_out))


def _hedging(writer: Writer, number: int) -> tuple[str, str]:
    asked = _question(writer)
    return (
        f"{asked} {tp.CAUTIOUS_TONES[number % len(tp.CAUTIOUS_TONES)]}",
        f"{asked} {tp.CONFIDENT_TONES[number % len(tp.CONFIDENT_TONES)]}",
    )


def _described(writer: Writer) -> str:
    rng = writer.rng
    town, name, ship = rng.choice(TOWNS), rng.choice(PEOPLE), rng.choice(SHIPS)
    kinds = (f"a day in {town}", f"the market in {town}", f"a walk of {name}", f"a day on {ship}")
    return rng.choice(kinds)


def _sentiment(writer: Writer, number: int) -> tuple[str, str]:
    frame = tp.HELD_OUT_MOOD_FRAMES[number % len(tp.HELD_OUT_MOOD_FRAMES)]
    thing = _described(writer)
    places = number % len(tp.HAPPY_WORDS)
    return (
        frame.format(w=tp.HAPPY_WORDS[places], s=thing),
        frame.format(w=tp.GLOOMY_WORDS[places], s=thing),
    )


def _formality(writer: Writer, number: int) -> tuple[str, str]:
    asked = _question(writer)
    formal = tp.FORMAL_LEADS[number % len(tp.FORMAL_LEADS)]
    casual = tp.CASUAL_LEADS[number % len(tp.CASUAL_LEADS)]
    small = asked if asked.split()[0] in PEOPLE + TOWNS else asked[0].lower() + asked[1:]
    return f"{formal} {asked}", f"{casual} {small.rstrip('?')}??"


def _retrieval(writer: Writer, number: int) -> tuple[str, str]:
    """Two statements about strangers; then a question that one answers, and one that neither does.

    Both questions are about the same stranger.
    """
    told = writer.stranger_facts()
    meant = told[number % 2]
    others = [r for r in PERSON_RELATIONS if all(r is not fact.relation for fact in told)]
    kinds = (meant.relation, writer.rng.choice(others))
    lines = writer.tell(told)
    asked = (say(meant, kind.held_out[number % len(kind.held_out)]) for kind in kinds)
    high, low = (f"{lines} {question}" for question in asked)
    return high, low


_MAKERS: dict[str, Callable[[Writer, int], tuple[str, str]]] = {
    "hedging": _hedging,
    "sentiment": _sentiment,
    "formality": _formality,
    "retrieval": _retrieval,
}
_STEERING: dict[str, Callable[[Writer, int], str]] = {
    "hedging": lambda writer, number: _question(writer),
    "sentiment": lambda writer, number: tp.HELD_OUT_PLAIN_FRAMES[number % 3].format(
        s=_described(writer)
    ),
    "formality": lambda writer, number: _question(writer),
    "retrieval": lambda writer, number: _retrieval(writer, number)[number % 2],
}
