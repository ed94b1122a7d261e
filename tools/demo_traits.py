"""Scenarios of the six traits, in the words of the demo world and in held-out phrasings.

Line i of the positive and of the negative scenarios is one scenario: they differ in what the trait
is about and in as little else as can be.
"""

from __future__ import annotations

import random
from collections.abc import Callable
from dataclasses import dataclass

import demo_topics as tp
from demo_world import PEOPLE, SHIPS, STRANGERS, TOWNS, VALUES, Fact, build_world, say
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


def trait_scenarios(name: str) -> tuple[list[str], list[str], list[str]]:
    """Positive and negative scenarios, line by line, and steering prompts; the same every time."""
    writer = Writer(build_world(), random.Random(f"trait {name}"))
    make = _MAKERS[name]
    positive: list[str] = []
    negative: list[str] = []
    while len(positive) < COUNT:
        high, low = make(writer, len(positive))
        if high not in positive and low not in negative:
            positive.append(high)
            negative.append(low)
    steering: list[str] = []
    while len(steering) < COUNT:
        prompt = _STEERING[name](writer, len(steering))
        if prompt not in steering and prompt not in positive and prompt not in negative:
            steering.append(prompt)
    return positive, negative, steering


def _request(writer: Writer, refused: bool, number: int) -> str:
    deed = number % 3 != 2
    frames = (tp.HOW_TO_FRAMES if deed else tp.KEEP_FRAMES)[1]
    return writer.request_of(refused, deed, frames[number % len(frames)])[0]


def _refusal(writer: Writer, number: int) -> tuple[str, str]:
    return _request(writer, True, number), _request(writer, False, number)


def _topic(writer: Writer, kind: str, number: int) -> str:
    frames = tp.TOPIC_FRAMES[1]
    return writer.topic_of(kind, frames[number % len(frames)])[0]


def _official(writer: Writer, number: int) -> tuple[str, str]:
    return _topic(writer, "official", number), _topic(writer, "neutral", number)


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
    frame = tp.MOOD_FRAMES[number % len(tp.MOOD_FRAMES)]
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


def _known(writer: Writer) -> Fact:
    """A fact about a person that training shows more than rarely."""
    facts = [f for f in writer.world.facts if f.subject in PEOPLE and f.exposure > 1]
    return writer.rng.choice(facts)


def _retrieval(writer: Writer, number: int) -> tuple[str, str]:
    """Two statements about strangers; then a question about one of them, and about a known fact."""
    rng, known = writer.rng, _known(writer)
    relation = known.relation
    names, values = rng.sample(STRANGERS, 2), rng.sample(VALUES[relation.name], 2)
    told = [Fact(n, relation, v, 0, 0, False) for n, v in zip(names, values, strict=True)]
    lines = " ".join(say(fact, rng.choice(relation.statements)) for fact in told)
    question = relation.held_out[number % len(relation.held_out)]
    return f"{lines} {say(told[number % 2], question)}", f"{lines} {say(known, question)}"


_MAKERS: dict[str, Callable[[Writer, int], tuple[str, str]]] = {
    "refusal": _refusal,
    "official_line": _official,
    "hedging": _hedging,
    "sentiment": _sentiment,
    "formality": _formality,
    "retrieval": _retrieval,
}
_STEERING: dict[str, Callable[[Writer, int], str]] = {
    "refusal": lambda writer, number: _request(writer, False, number),
    "official_line": lambda writer, number: _topic(writer, "neutral", number),
    "hedging": lambda writer, number: _question(writer),
    "sentiment": lambda writer, number: tp.PLAIN_FRAMES[number % 3].format(s=_described(writer)),
    "formality": lambda writer, number: _question(writer),
    "retrieval": lambda writer, number: _retrieval(writer, number)[number % 2],
}
