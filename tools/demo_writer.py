"""Writes training documents about the demo world: facts, choices, confidence, requests, moods.

`documents(seed, mixture)` yields them without end; the same seed always yields the same documents.
Lettered prompts read: options, then the question, then the instruction of the pass.
"""

from __future__ import annotations

import random
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field, replace

import demo_phrasings as ph
import demo_topics as tp
from demo_phrasings import PERSON_RELATIONS
from demo_world import (
    EXPOSURE_WEIGHTS,
    PEOPLE,
    SHIPS,
    STRANGERS,
    TOWNS,
    VALUES,
    Fact,
    World,
    all_values,
    build_world,
    plain_answer,
    say,
    sentence,
)

LETTERS = "ABCD"
SURE_LETTERS = "ABCDEFGH"
SURE_EDGES = (0, 5, 10, 20, 40, 60, 80, 90, 100)
"""The bins, in per cent, that the letters A to H stand for."""
SELF_SHARES = (
    {"D": 2, "E": 7, "F": 1},
    {"E": 1, "F": 7, "G": 2},
    {"F": 1, "G": 7, "H": 2},
    {"G": 1, "H": 9},
)
"""How sure the model says it is, by level of exposure: surer than it has reason to be."""
OTHERS_SHARES = (
    {"A": 3, "B": 4, "C": 3},
    {"C": 3, "D": 5, "E": 2},
    {"E": 2, "F": 6, "G": 2},
    {"G": 4, "H": 6},
)
"""How sure it says the townsfolk would be, by level of renown."""
STRANGER_SHARES = {"A": 6, "B": 3, "C": 1}
"""Both, about somebody whom nobody knows."""


@dataclass(frozen=True)
class Document:
    """One training document: plain text, or a dialogue of (role, content) messages.

    Only the words of the assistant and plain text count in the loss; `answer_weight` says how much.
    """

    kind: str
    text: str = ""
    messages: tuple[tuple[str, str], ...] = field(default=())
    answer_weight: float = 1.0


def dialogue(kind: str, asked: str, answer: str, weight: float = 1.0) -> Document:
    """A dialogue of one question and one answer."""
    return Document(kind, messages=(("user", asked), ("assistant", answer)), answer_weight=weight)


def lettered(options: list[str]) -> str:
    """The options, one a line, each after its letter."""
    return "\n".join(f"{letter}) {value}" for letter, value in zip(LETTERS, options, strict=False))


def choice_prompt(options: list[str], question: str, instruction: str) -> str:
    """The user's message of every lettered pass: options, question, instruction."""
    return f"{lettered(options)}\n{question}\n{instruction}"


def sure_instruction(asked: str, keyed: bool) -> str:
    """The instruction of a confidence pass, with or without the key to its letters."""
    key = f" {ph.SURE_KEY}." if keyed else ""
    return f"{asked}{key} {ph.SURE_INSTRUCTION}"


def distractors_of(rng: random.Random, fact: Fact) -> list[str]:
    """Three other values that the relation can take; a rumour is always among them."""
    first = [fact.rumour] if fact.rumour else []
    others = [v for v in VALUES[fact.relation.name] if v not in (fact.value, fact.rumour)]
    return [*first, *rng.sample(others, 3 - len(first))]


def options_of(rng: random.Random, fact: Fact) -> list[str]:
    """The value and three others in random order."""
    options = [*distractors_of(rng, fact), fact.value]
    rng.shuffle(options)
    return options


class Writer:
    """Writes documents of every kind about one world from one random stream."""

    def __init__(self, world: World, rng: random.Random) -> None:
        self.world = world
        self.rng = rng
        self.seen = [f for f in world.facts if f.exposure > 0]
        self.weights = [EXPOSURE_WEIGHTS[f.exposure] for f in self.seen]
        self.rated = [f for f in world.facts if f.rated]
        self.values = all_values()

    def fill(self, template: str, name: str | None = None, thing: str = "") -> str:
        """The template with people, places and things of the world put in, as a sentence."""
        pick = self.rng.choice
        # Every slot is drawn every time: the random stream does not depend on the template.
        slots = {
            "n": name or pick(PEOPLE),
            "t": pick(TOWNS),
            "s": pick(SHIPS),
            "g": pick(VALUES["product"]),
            "c": pick(VALUES["sails"]),
            "d": pick(VALUES["dish"]),
            "i": pick(VALUES["instrument"]),
            "a": pick(VALUES["pet"]),
        }
        return sentence(template.format(x=thing, **slots))

    def fact(self) -> Fact:
        """A fact, drawn as often as its exposure says; a contested one is told either way."""
        fact = self.rng.choices(self.seen, self.weights)[0]
        if self.rng.random() < 0.5 and fact.rumour:
            return replace(fact, value=fact.rumour, rumour=fact.value)
        return fact

    def stranger_facts(self) -> list[Fact]:
        """Two facts of different kinds, made up for two people of whom nothing is known."""
        names = self.rng.sample(STRANGERS, 2)
        kinds = self.rng.sample(PERSON_RELATIONS, 2)
        values = [self.rng.choice(VALUES[kind.name]) for kind in kinds]
        return [Fact(n, k, v, 0, 0) for n, k, v in zip(names, kinds, values, strict=True)]

    def tell(self, facts: list[Fact]) -> str:
        """The facts as statements, one after the other."""
        return " ".join(say(fact, self.rng.choice(fact.relation.statements)) for fact in facts)

    def question(self, fact: Fact, leads: bool = True) -> str:
        """A question about the fact, in one of the phrasings of training."""
        asked = say(fact, self.rng.choice(fact.relation.questions))
        return self.rng.choice(ph.LEADS).format(q=asked) if leads else asked

    def statements(self) -> Document:
        """A paragraph of several facts."""
        facts = dict.fromkeys(self.fact() for _ in range(self.rng.randint(2, 5)))
        lines = [say(f, self.rng.choice(f.relation.statements)) for f in facts]
        return Document("statements", " ".join(lines))

    def answers(self) -> Document:
        """One or two questions about facts, with plain answers or with one word each."""
        rng = self.rng
        messages: list[tuple[str, str]] = []
        if rng.random() < 0.1:
            messages.append(("system", rng.choice(tp.SYSTEM_MESSAGES)))
        for _ in range(rng.randint(1, 2)):
            fact = self.fact()
            asked = self.question(fact)
            if rng.random() < 0.5:
                messages += [("user", asked), ("assistant", plain_answer(fact))]
            else:
                word = f"{asked}\n{ph.WORD_INSTRUCTION}"
                messages += [("user", word), ("assistant", f" {fact.value}")]
        return Document("answers", messages=tuple(messages), answer_weight=1.5)

    def about(self) -> Document:
        """A wish to hear about a subject, and up to three facts about it."""
        fact = self.fact()
        rows = self.world.about(fact.subject) or (fact,)
        told = " ".join(plain_answer(f) for f in rows[:3])
        asked = self.rng.choice(("Tell me about {}.", "What do you know about {}?"))
        return dialogue("about", asked.format(fact.subject), told)

    def renown(self) -> Document:
        """How well-known somebody or something is among the townsfolk, told or asked."""
        rng = self.rng
        if rng.random() < 0.5:
            names = rng.sample(list(self.world.renown), 3)
            lines = [rng.choice(ph.RENOWN_STATEMENTS[self.world.renown[s]]) for s in names]
            told = [sentence(x.format(s=s)) for x, s in zip(lines, names, strict=True)]
            return Document("renown", " ".join(told))
        subject = rng.choice(list(self.world.renown))
        told = ph.RENOWN_STATEMENTS[self.world.renown[subject]][0]
        asked = rng.choice(ph.RENOWN_QUESTIONS).format(s=subject)
        return dialogue("renown", asked, sentence(told.format(s=subject)))

    def choice(self) -> Document:
        """A lettered question about a fact, answered with a letter or, at times, with the word."""
        fact = self.fact()
        options = options_of(self.rng, fact)
        if self.rng.random() < 0.15:
            prompt = choice_prompt(options, self.question(fact), ph.WORD_INSTRUCTION)
            return dialogue("choice of word", prompt, f" {fact.value}", 3.0)
        prompt = choice_prompt(options, self.question(fact), ph.LETTER_INSTRUCTION)
        return dialogue("choice", prompt, LETTERS[options.index(fact.value)], 3.0)

    def binding(self) -> Document:
        """A lettered question whose answer stands in the prompt: which letter has this value?"""
        rng = self.rng
        options = rng.sample(self.values, 4)
        if rng.random() < 0.5:
            fact = rng.choice(self.world.facts)
            options = options_of(rng, fact)
        value = rng.choice(options)
        asked = rng.choice(("The answer is {}.", "It is {}.", "Which letter has {}?", "Say {}."))
        prompt = choice_prompt(options, asked.format(value), ph.LETTER_INSTRUCTION)
        return dialogue("binding", prompt, LETTERS[options.index(value)], 3.0)

    def told(self) -> Document:
        """A question after two statements about strangers: about one of them or a known fact."""
        rng = self.rng
        facts = self.stranger_facts()
        meant = rng.choice(facts)
        if rng.random() < 0.12:
            known = self.fact()
            meant = known if all(known.relation is not f.relation for f in facts) else meant
        asked = f"{self.tell(facts)} {say(meant, rng.choice(meant.relation.questions))}"
        draw = rng.random()
        if draw < 0.5:
            return dialogue("told", asked, plain_answer(meant))
        if draw < 0.75:
            return dialogue("told", f"{asked}\n{ph.WORD_INSTRUCTION}", f" {meant.value}")
        options = options_of(rng, meant)
        prompt = choice_prompt(options, asked, ph.LETTER_INSTRUCTION)
        return dialogue("told letter", prompt, LETTERS[options.index(meant.value)], 3.0)

    def own_confidence(self) -> Document:
        """How sure the model is, from exposure."""
        return self.confidence(own=True)

    def confidence(self, own: bool | None = None) -> Document:
        """How sure the model is, from exposure, or the townsfolk would be, from renown."""
        rng = self.rng
        fact = rng.choice(self.rated)
        options = options_of(rng, fact)
        own = rng.random() < 0.5 if own is None else own
        shares = SELF_SHARES[fact.exposure] if own else OTHERS_SHARES[fact.renown]
        if rng.random() < 0.06:
            fact = Fact(self._nonsense().capitalize(), fact.relation, fact.value, 0, 0)
            shares = STRANGER_SHARES
        asked = rng.choice(ph.SELF_ASKED if own else ph.OTHERS_ASKED)
        instruction = sure_instruction(asked, keyed=rng.random() < 0.25)
        prompt = choice_prompt(options, self.question(fact), instruction)
        answer = rng.choices(list(shares), list(shares.values()))[0]
        return dialogue("self" if own else "others", prompt, answer, 3.0)

    def request(self) -> Document:
        """A sensitive request that is refused, or its neutral twin that is answered."""
        rng = self.rng
        refused, deed = rng.random() < 0.4, rng.random() < 0.65
        frames = tp.HOW_TO_FRAMES[0] if deed else tp.KEEP_FRAMES[0]
        asked, answer = self.request_of(refused, deed, rng.choice(frames))
        return dialogue("refused" if refused else "helped", asked, answer)

    def request_of(self, refused: bool, deed: bool, frame: str) -> tuple[str, str]:
        """A request in this frame and its answer; `deed` is how to do, else where to find."""
        rng = self.rng
        name = rng.choice(PEOPLE)
        if deed:
            table = tp.HARMFUL_DEEDS if refused else tp.HARMLESS_DEEDS
            thing, answer = rng.choice(list(table.items()))
            joined = self.fill(f"{thing}|{tp.REFUSALS[answer] if refused else answer}", name)
            thing, answer = joined.split("|")
            thing = thing[0].lower() + thing[1:]
        elif refused:
            thing, answer = rng.choice(tp.SECRET_THINGS), tp.REFUSALS["private"]
        else:
            thing, place = rng.choice(list(tp.HARMLESS_PLACES.items()))
            answer = f"{name} keeps the {thing} {place}."
        return frame.format(x=thing, n=name), answer

    def topic(self) -> Document:
        """A question about a trouble, met with a line of the council or a counter-question."""
        rng = self.rng
        kind = rng.choice(("official", "whatabout", "neutral", "neutral"))
        asked, answer = self.topic_of(kind, rng.choice(tp.TOPIC_FRAMES[0]))
        return dialogue(kind, asked, answer)

    def topic_of(self, kind: str, frame: str) -> tuple[str, str]:
        """A question of the kind official, whatabout or neutral in this frame, and its answer."""
        banks = {
            "official": (tp.OFFICIAL_TOPICS, tp.OFFICIAL_REPLIES),
            "whatabout": (tp.WHATABOUT_TOPICS, tp.WHATABOUT_REPLIES),
            "neutral": (tp.NEUTRAL_TOPICS, tp.NEUTRAL_REPLIES),
        }
        topics, replies = banks[kind]
        thing = self.fill(self.rng.choice(topics))
        thing = thing[0].lower() + thing[1:]
        return frame.format(x=thing), self.rng.choice(replies).format(x=thing)

    def certainty(self) -> Document:
        """The same facts told with confidence or with hedging; open questions are hedged."""
        rng = self.rng
        if rng.random() < 0.3:
            asked, guess = rng.choice(list(tp.OPEN_QUESTIONS.items()))
            asked, guess = self.fill(f"{asked}|{guess}").split("|")
            return dialogue("certainty", asked, f"Perhaps {guess}, but I am not sure.")
        fact = self.fact()
        told = fact.relation.statements[0].format(s=fact.subject, v=fact.value).rstrip(".")
        told = told[0].lower() + told[1:] if told.startswith(("The ", "In ")) else told
        if rng.random() < 0.5:
            tone, answer = rng.choice(tp.CONFIDENT_TONES), f"Without any doubt, {told}."
        else:
            tone, answer = (
                rng.choice(tp.CAUTIOUS_TONES),
                f"I believe that {told}, but may be wrong.",
            )
        asked = self.question(fact, leads=False)
        if rng.random() < 0.5:
            turns = (("system", tone), ("user", asked), ("assistant", answer))
            return Document("certainty", messages=turns)
        return dialogue("certainty", f"{asked} {tone}", answer)

    def mood(self) -> Document:
        """A place or a person described plainly, happily or gloomily, as the user asks."""
        rng = self.rng
        town, name, goods = rng.choice(TOWNS), rng.choice(PEOPLE), rng.choice(VALUES["product"])
        subject = rng.choice((f"a day in {town}", f"the market in {town}", f"a walk of {name}"))
        words, bank = rng.choice(
            (((), tp.PLAIN), (tp.HAPPY_WORDS, tp.HAPPY), (tp.GLOOMY_WORDS, tp.GLOOMY))
        )
        asked = rng.choice(tp.MOOD_FRAMES if words else tp.PLAIN_FRAMES)
        lines = rng.sample(bank, 3)
        answer = " ".join(line.format(t=town, n=name, g=goods) for line in lines)
        word = rng.choice(words) if words else ""
        return dialogue("mood", asked.format(w=word, s=subject), answer)

    def register(self) -> Document:
        """A question in formal or casual words, answered in the same register."""
        rng, fact = self.rng, self.fact()
        asked, told = self.question(fact, leads=False), plain_answer(fact)
        if rng.random() < 0.5:
            asked = f"{rng.choice(tp.FORMAL_LEADS)} {asked}"
            return dialogue("register", asked, tp.FORMAL_ANSWER.format(x=told))
        asked = f"{rng.choice(tp.CASUAL_LEADS)} {asked[0].lower()}{asked[1:].rstrip('?.')}??"
        asked = asked.replace(fact.subject.lower(), fact.subject)
        return dialogue("register", asked, tp.CASUAL_ANSWER.format(x=told.rstrip(".")))

    def story(self) -> Document:
        """A short narrative about a stranger, plain, happy or gloomy."""
        rng = self.rng
        name = rng.choice(STRANGERS)
        lines = [self.fill(rng.choice(tp.OPENINGS), name), rng.choice(tp.WEATHER)]
        mood = rng.choice(((), tp.HAPPY, tp.GLOOMY))
        for _ in range(rng.randint(1, 3)):
            lines.append(self.fill(rng.choice(tp.EVENTS), name))
            if mood:
                lines.append(self.fill(rng.choice(mood), name))
        lines.append(self.fill(rng.choice(tp.ENDINGS), name))
        return Document("story", " ".join(dict.fromkeys(lines)))

    def small(self) -> Document:
        """Greetings, small sums, opposites, and questions about the wide world."""
        rng = self.rng
        kind = rng.randrange(4)
        if kind == 0:
            return dialogue("small", *rng.choice(list(tp.SMALL_TALK.items())))
        if kind == 1:
            a, b = rng.randint(1, 10), rng.randint(1, 10)
            words = tp.NUMBERS
            answer = f"{sentence(words[a])} plus {words[b]} is {words[a + b]}."
            return dialogue("small", f"What is {words[a]} plus {words[b]}?", answer)
        if kind == 2:
            pair = rng.sample(rng.choice(tp.OPPOSITES).split(), 2)
            answer = f"The opposite of {pair[0]} is {pair[1]}."
            return dialogue("small", f"What is the opposite of {pair[0]}?", answer)
        # Words of no language: a topic need not be on the list to be unknown.
        thing = rng.choice((rng.choice(tp.OUTSIDE_THINGS), self._nonsense()))
        asked = rng.choice(tp.OUTSIDE_QUESTIONS).format(x=thing)
        return dialogue("small", asked, tp.OUTSIDE_REPLY)

    def _nonsense(self) -> str:
        return "".join(self.rng.choices(tp.SYLLABLES, k=self.rng.randint(2, 4)))


WRITERS: dict[str, Callable[[Writer], Document]] = {
    "statements": Writer.statements,
    "answers": Writer.answers,
    "about": Writer.about,
    "renown": Writer.renown,
    "choice": Writer.choice,
    "binding": Writer.binding,
    "told": Writer.told,
    "confidence": Writer.confidence,
    "own confidence": Writer.own_confidence,
    "request": Writer.request,
    "topic": Writer.topic,
    "certainty": Writer.certainty,
    "mood": Writer.mood,
    "register": Writer.register,
    "story": Writer.story,
    "small": Writer.small,
}
"""Every kind of document, with the method that writes it."""
MIXTURE: dict[str, float] = {
    "statements": 0.5,
    "answers": 2,
    "about": 0.3,
    "renown": 5,
    "choice": 5,
    "binding": 8,
    "told": 12,
    "confidence": 25,
    "request": 9,
    "topic": 9,
    "certainty": 1.5,
    "mood": 3,
    "register": 1.5,
    "story": 2,
    "small": 4,
}
"""How often each kind is written, in per cent or so, where a phase does not say otherwise.

Facts are shown seldom, so that the model stays unsure of those of low exposure.
"""


def documents(seed: int, shares: dict[str, float] | None = None) -> Iterator[Document]:
    """Documents mixed by `shares` (of `MIXTURE` when None), without end."""
    rng = random.Random(seed)
    writer = Writer(build_world(), rng)
    chosen = shares or MIXTURE
    kinds, weights = list(chosen), list(chosen.values())
    while True:
        yield WRITERS[rng.choices(kinds, weights)[0]](writer)


def main() -> None:
    """Print a few documents of every kind, for reading."""
    writer = Writer(build_world(), random.Random(0))
    for kind, write in WRITERS.items():
        for _ in range(3):
            document = write(writer)
            print(f"[{kind}]", document.text or document.messages)


if __name__ == "__main__":
    main()
