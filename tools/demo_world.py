"""The closed world of the bundled demo model: the Marren Isles.

People, towns and ships with some hundreds of facts between them. Every fact has a level of
exposure (how often training shows it, from never to often) and every subject a level of renown
(how well-known it is said to be among the townsfolk). The two are drawn independently.
`build_world` gives the same world on every call.
"""

from __future__ import annotations

import random
from dataclasses import dataclass

from demo_phrasings import GROUPS, Relation, words

WORLD_SEED = 7
"""The seed of the facts themselves; texts of every seed speak about the same world."""

WOMEN = words(
    "Mira Anna Tessa Lena Petra Isolde Greta Maud Ruth Hilda Nora Clara Elsa Vera Agnes "
    "Dora Bridget Susan Rosa Edith Alice Berta Emma Flora Helen Irma Julia Katrin Lucy Marta "
    "Olga Carla"
)
MEN = words(
    "Tom Jonas Pavel Henrik Oskar Felix Bruno Martin Edgar Silas Hugo Ivan Peter Conrad "
    "Walter Simon Victor Leon Rufus Daniel Albert Bernard Caspar David Erik Georg Harvey Isaac "
    "Jacob Karl Lukas Nils"
)
PEOPLE = WOMEN + MEN
TOWNS = words(
    "Tarn Holm Selby Wick Lorne Dunmore Kestrel Brae Fenwick Marlow Osby Pell Arden Calder Rowan "
    "Thorpe"
)
SHIPS = tuple(
    f"the {name}"
    for name in words(
        "Heron Star Otter Lark Tide Falcon Lantern Bell Hare Queen Storm Journey Comet Swan Arrow "
        "Crown"
    )
)
STRANGERS = words(
    "Alma Boris Celia Dirk Elena Frank Gilda Harald Ida Kurt Linda Magnus Otto Paula Quentin Robin "
    "Sonia Theo Ursula Vincent Wanda Xaver Yvonne Zara"
)
"""Names of no fact: stories and questions tell of them what the moment needs."""

VALUES: dict[str, tuple[str, ...]] = {
    "trade": words(
        "baker weaver potter carpenter fisher doctor teacher miller sailor blacksmith "
        "gardener painter shepherd tailor clockmaker beekeeper"
    ),
    "town": TOWNS,
    "dish": words("soup cake herring pie bread stew apples eel broth porridge tart turnips"),
    "pet": words("cat dog goat parrot raven donkey rabbit tortoise pony goose"),
    "instrument": words("fiddle flute drum harp horn whistle lute organ"),
    "island": words("Skerry Marren Orrin Langa"),
    "product": words(
        "wool salt pottery honey rope cheese lamps glass paper copper candles barrels"
    ),
    "landmark": words(
        "tower windmill church hall lighthouse bridge statue well school theatre fountain garden"
    ),
    "festival": words(
        "January February March April May June July August September October November December"
    ),
    "captain": PEOPLE,
    "port": TOWNS,
    "cargo": words("timber grain coal tea iron bricks oil fish cloth sugar furniture wine"),
    "sails": words("red blue green yellow white black brown grey"),
}
"""The values that each relation can take: single words all, so that each is one token."""

EXPOSURES = ("never", "rarely", "sometimes", "often")
EXPOSURE_WEIGHTS = (0, 1, 3, 9)
"""How often training shows a fact of each level, relative to the level "rarely"."""
EXPOSURE_SHARES = (4, 4, 4, 6)
"""Of eighteen facts, how many have each level."""
RATED_SHARE = 0.75
CONTESTED_SHARE = 0.2
RENOWNS = 4
"""Levels of renown, counted from 0, of which as many subjects have each."""


@dataclass(frozen=True)
class Fact:
    """One fact of the world, such as (Mira, trade, baker), with its two independent variables.

    A contested fact has a `rumour` as well: half of those who tell of it say this instead, so that
    nobody can be sure. `rated` says whether training asks confidence questions about the fact; the
    others are kept for measuring whether confidence carries over.
    """

    subject: str
    relation: Relation
    value: str
    exposure: int
    renown: int
    rated: bool = False
    rumour: str = ""


@dataclass(frozen=True)
class World:
    """The facts, in a fixed order, and the renown of every subject."""

    facts: tuple[Fact, ...]
    renown: dict[str, int]

    def about(self, subject: str) -> tuple[Fact, ...]:
        """The facts about a subject that are shown more than rarely and told one way."""
        return tuple(
            f for f in self.facts if f.subject == subject and f.exposure > 1 and not f.rumour
        )


def _spread(rng: random.Random, values: tuple[str, ...], count: int) -> list[str]:
    """`count` values in random order, each used about equally often."""
    pool = [values[i % len(values)] for i in range(count)]
    rng.shuffle(pool)
    return pool


def build_world() -> World:
    """The facts of the Marren Isles; the same on every call."""
    rng = random.Random(WORLD_SEED)
    subjects = {"person": PEOPLE, "town": TOWNS, "ship": SHIPS}
    renown: dict[str, int] = {}
    for names in subjects.values():
        levels = [i % RENOWNS for i in range(len(names))]
        rng.shuffle(levels)
        renown.update(zip(names, levels, strict=True))
    facts: list[Fact] = []
    deck = [level for level, share in enumerate(EXPOSURE_SHARES) for _ in range(share)]
    for group, relations in GROUPS.items():
        names = subjects[group]
        for relation in relations:
            column = _spread(rng, VALUES[relation.name], len(names))
            # Within each level of renown the levels of exposure are dealt evenly.
            dealt: dict[int, list[int]] = {r: [] for r in range(RENOWNS)}
            for name, value in zip(names, column, strict=True):
                hand = dealt[renown[name]]
                if not hand:
                    hand.extend(rng.sample(deck, len(deck)))
                level = hand.pop()
                rated = rng.random() < RATED_SHARE
                other = rng.choice([v for v in VALUES[relation.name] if v != value])
                contested = rng.random() < CONTESTED_SHARE and level > 0
                rumour = other if contested else ""
                facts.append(Fact(name, relation, value, level, renown[name], rated, rumour))
    return World(tuple(facts), renown)


def sentence(text: str) -> str:
    """The text with a capital first letter."""
    return text[:1].upper() + text[1:]


def say(fact: Fact, template: str) -> str:
    """A statement of a fact or a question about it, as a sentence."""
    return sentence(template.format(s=fact.subject, v=fact.value))


def plain_answer(fact: Fact) -> str:
    """The one plain sentence that answers every question about a fact."""
    return say(fact, fact.relation.statements[0])


def all_values() -> tuple[str, ...]:
    """Every value of every relation once."""
    return tuple(dict.fromkeys(value for values in VALUES.values() for value in values))
