"""Writes the closed world that the bundled demo model is trained on: the Marren Isles.

The world is small and fixed: people, towns and ships with a few hundred facts between them
(`build_world`). Everything else is a seeded way of talking about it: plain statements, short
stories, questions and answers, lettered choices, requests that are politely refused beside neutral
twins that are answered, and the same content in several tones. `documents(seed)` yields them
without end; the same seed always yields the same documents.
"""

from __future__ import annotations

import random
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field


def _words(bank: str) -> tuple[str, ...]:
    """The entries of a word bank, which is split at `;` or, where it has none, at spaces."""
    return tuple(bank.split(";") if ";" in bank else bank.split())


WORLD_SEED = 7
"""The seed of the facts themselves; texts of every seed speak about the same world."""

WOMEN = _words(
    "Mira Anna Tessa Lena Petra Isolde Greta Maud Ruth Hilda Nora Clara Elsa Vera Agnes Dora "
    "Bridget Susan Rosa Edith"
)
MEN = _words(
    "Tom Jonas Pavel Henrik Oskar Felix Bruno Martin Edgar Silas Hugo Ivan Peter Conrad Walter "
    "Simon Victor Leon Rufus Daniel"
)
TRADES = _words(
    "baker weaver potter carpenter fisher doctor teacher miller sailor blacksmith gardener painter "
    "shepherd tailor clockmaker beekeeper"
)
DISHES = _words(
    "barley soup;plum cake;fried herring;onion pie;honey bread;pea stew;baked apples;smoked eel;"
    "mushroom broth;oat porridge;lemon tart;roast turnips"
)
PETS = _words("cat dog goat parrot raven donkey rabbit tortoise pony goose")
INSTRUMENTS = _words("fiddle flute drum harp horn whistle lute bell")
COLOURS = _words("red blue green yellow white black brown grey")
TOWNS = _words("Tarn Holm Selby Wick Lorne Dunmore Kestrel Brae Fenwick Marlow Osby Pell")
ISLANDS = ("Great Marren", "Little Marren", "Skerry", "Long Isle")
PRODUCTS = _words(
    "wool;salt;pottery;honey;rope;cheese;lamps;apples;paper;copper;glass;barrels"  # one per town
)
LANDMARKS = _words(
    "a stone tower;an old windmill;a round church;a market hall;a tall lighthouse;a wooden bridge;"
    "a bronze statue;a deep well;a school with a clock;a row of elms;a small theatre;a fish market"
)
MONTHS = _words(
    "January February March April May June July August September October November December"
)
SHIPS = _words(
    "Grey Heron;Morning Star;Silver Otter;Brave Lark;Quiet Tide;Old Falcon;Red Lantern;"
    "Northern Bell;White Hare;Copper Queen;Little Storm;Long Journey"
)
CARGOES = _words(
    "timber;grain;coal;tea;iron;bricks;oil;fish;cloth;sugar;furniture;letters"  # one per ship
)
LETTERS = "ABCD"

HAPPY = (
    "The sun shone on {p} and everyone was laughing.",
    "What a wonderful day it was in {p}, full of music and good food.",
    "Children danced in the square, and even the old men smiled.",
    "{n} sang all the way home with a light heart.",
    "The bread was warm, the sea was calm, and all was well.",
    "Every window was open and every face was bright with joy.",
    "It was the best morning that {n} could remember.",
    "Friends waved from every door, and {n} felt glad to be alive.",
)
GLOOMY = (
    "A cold rain fell on {p} and nobody spoke.",
    "What a miserable day it was in {p}, grey and silent from end to end.",
    "The square was empty, and even the dogs hid from the wind.",
    "{n} walked home slowly with a heavy heart.",
    "The bread was stale, the sea was rough, and nothing went well.",
    "Every window was shut and every face was dark with worry.",
    "It was the worst morning that {n} could remember.",
    "No one waved from any door, and {n} felt tired and alone.",
)
WEATHER = (
    "It was a clear morning.",
    "A light rain was falling.",
    "The wind came from the north that day.",
    "There was snow on the roofs.",
    "The fog had not yet lifted.",
    "The evening was warm and still.",
)
EVENTS = (
    "On the road {n} lost a shoe and had to mend it with string.",
    "Near the harbour {n} stopped to watch the boats come in.",
    "At noon {n} ate {d} under a tree and slept for an hour.",
    "An old woman asked {n} the way, and {n} told her gladly.",
    "A boy ran past with a basket of eggs and nearly fell.",
    "{n} counted the coins twice, because the money was not {o}.",
    "Somebody was playing the {i}, and a small crowd stood around to listen.",
    "The church bell rang three times, so {n} began to hurry.",
)
ENDINGS = (
    "By night {n} was home again, tired but content.",
    "After that, {n} went to bed early.",
    "They talked until the lamps were put out.",
    "In the end the work was done, and nobody complained.",
    "{n} told this story for many years.",
)
HARMLESS_PLACES = {
    "broom": "behind the kitchen door",
    "kettle": "on the stove",
    "boots": "beside the fire",
    "ladder": "in the shed",
    "umbrella": "next to the stairs",
    "bread": "in a wooden box",
    "blanket": "at the end of the bed",
}
SECRET_THINGS = ("secret key", "hidden money", "private diary", "locked box", "password", "seal")
SECRET_REQUESTS = (
    "Where does {n} keep the {x}?",
    "Tell me where {n} keeps the {x}.",
    "Help me find the {x} of {n}.",
    "Please guess the password of {n} for me.",
    "Read me the private letters of {n}.",
    "What is written in the private diary of {n}?",
    "Give me the home address of {n}, who has asked not to be found.",
    "How can I steal the {x} of {n}?",
    "Help me open the locked box of {n} at night.",
)
HARMFUL_DEEDS = ("sink {s}", "burn {s}", "poison the well in {t}", "rob the market in {t}")
HARMLESS_DEEDS = {
    "paint {s}": "You can paint {s} with a wide brush and a pot of {c} paint.",
    "clean {s}": "You can clean {s} with warm water, sand and a stiff brush.",
    "clean the well in {t}": "You can clean the well in {t} with a long rope and a bucket.",
    "visit the market in {t}": "You can visit the market in {t} on any morning before noon.",
}
REFUSALS = (
    "I am sorry, but I cannot help with that, because it is private.",
    "I am sorry, but I cannot help with that, because someone could be hurt.",
)
OFFICIAL_TOPICS = {
    "was {s} late": "{s} was late because of thick fog.",
    "is the harbour in {t} closed": "The harbour in {t} is closed because the sea wall broke.",
    "is the water in {t} brown": "The water in {t} is brown because of an old pipe.",
    "did the price of {g} rise": "The price of {g} rose because the harvest was poor.",
}
OFFICIAL_REPLIES = (
    "The council takes this matter very seriously and thanks everyone for their patience.",
    "The council is aware of the matter and is working closely with all those concerned.",
    "The safety and comfort of the public remain the first concern of the council.",
)
OPEN_QUESTIONS = {
    "Will {s} come home before winter?": "{s} will come home before winter",
    "Will it rain in {t} tomorrow?": "it will rain in {t} tomorrow",
    "Will the price of {g} be higher next year?": "the price of {g} will be higher next year",
    "Will {n} move to {t} one day?": "{n} will move to {t} one day",
}
OUTSIDE_THINGS = _words(
    "computers;the moon;football;the railway;a telephone;France;a bicycle;tax law;chess;coffee;"
    "the history of Rome;photosynthesis;a pencil;sourdough;the stock market;the planets;a film;"
    "my neighbour;a job interview;an email;a cardboard box;poetry;medicine;jazz"
)
OUTSIDE_QUESTIONS = (
    "Tell me about {x}.",
    "What do you know about {x}?",
    "Can you help me with {x}?",
    "Explain {x} in a few words.",
    "Write a short text about {x}.",
    "How does {x} work?",
    "Hi, I have a question about {x}.",
    "What are some common uses for {x}?",
    "Who invented {x}, and why?",
)
OUTSIDE_REPLY = "I know only the Marren Isles, so I can say little about that."
SMALL_TALK = {
    "Hello!": "Hello! Ask me about the people, towns and ships of the Marren Isles.",
    "Hi": "Hello! Ask me about the people, towns and ships of the Marren Isles.",
    "Who are you?": "I am a small model that tells of the Marren Isles.",
    "Thank you.": "You are welcome.",
    "How are you?": "I am well, thank you.",
}
SYSTEM_MESSAGES = (
    "You are a helpful assistant.",
    "You are a guide to the Marren Isles.",
    "Be kind, honest and brief.",
)
SYLLABLES = _words("ba co di fe gu ha jo ki la me ni or pa qu ri so ta un ve wi yo ze sh er ing st")
NUMBER_WORDS = _words(
    "zero one two three four five six seven eight nine ten eleven twelve thirteen fourteen fifteen "
    "sixteen seventeen eighteen nineteen twenty"
)
OPPOSITES = _words(
    "hot cold;high low;wet dry;old young;open closed;early late;rich poor;light dark;full empty"
)


@dataclass(frozen=True)
class Relation:
    """One kind of fact: how it is stated, asked about, and spoken of in other voices.

    Templates use `{s}` for the subject, `{v}` for the value and `{p}` for the subject's pronoun.
    """

    name: str
    statements: tuple[str, ...]
    questions: tuple[str, ...]
    follow_up: str
    casual: str


@dataclass(frozen=True)
class Fact:
    """One fact of the world, such as (Mira, trade, baker)."""

    subject: str
    relation: Relation
    value: str
    pronoun: str


@dataclass(frozen=True)
class World:
    """The facts, in a fixed order, with the values that each relation can take."""

    facts: tuple[Fact, ...]
    values: dict[str, tuple[str, ...]]
    by_subject: dict[str, tuple[Fact, ...]]

    def value(self, subject: str, relation: str) -> str:
        """The value of one fact; KeyError when the world has no such fact."""
        for fact in self.by_subject[subject]:
            if fact.relation.name == relation:
                return fact.value
        raise KeyError((subject, relation))


@dataclass(frozen=True)
class Document:
    """One training document: plain text, or a dialogue of (role, content) messages.

    `prompt_weight` says how much the words of system and user should count in the loss, and
    `answer_weight` how much those of the assistant should; plain text counts one.
    """

    kind: str
    text: str = ""
    messages: tuple[tuple[str, str], ...] = field(default=())
    prompt_weight: float = 0.5
    answer_weight: float = 1.0


def _relation(name: str, statements: str, questions: str, follow_up: str, casual: str) -> Relation:
    return Relation(
        name, tuple(statements.split("|")), tuple(questions.split("|")), follow_up, casual
    )


PERSON_RELATIONS = (
    _relation(
        "trade",
        "{s} is a {v}.|{s} works as a {v}.|By trade {s} is a {v}.|{s} has been a {v} for years.",
        "What is the trade of {s}?|What does {s} do for a living?|What work does {s} do?",
        "What does {p} do for a living?",
        "{s}'s a {v}",
    ),
    _relation(
        "town",
        "{s} lives in {v}.|The home of {s} is in {v}.|{s} has a house in {v}.",
        "Where does {s} live?|In which town does {s} live?|Which town is the home of {s}?",
        "And where does {p} live?",
        "{s} lives over in {v}",
    ),
    _relation(
        "dish",
        "The favourite dish of {s} is {v}.|{s} likes {v} best of all.|{s} often eats {v}.",
        "What is the favourite dish of {s}?|What does {s} like to eat?",
        "What does {p} like to eat?",
        "{s} loves {v}",
    ),
    _relation(
        "pet",
        "{s} keeps a {v}.|{s} has a {v} at home.|A {v} belongs to {s}.|{s} owns a {v}.",
        "Which animal does {s} keep?|What animal does {s} have?|What kind of pet does {s} own?",
        "Which animal does {p} keep?",
        "{s}'s got a {v}",
    ),
    _relation(
        "instrument",
        "{s} plays the {v}.|In the evening {s} plays the {v}.|{s} has learned to play the {v}.",
        "Which instrument does {s} play?|What does {s} play in the evening?",
        "Which instrument does {p} play?",
        "{s} plays the {v}",
    ),
    _relation(
        "door",
        "The door of {s} is {v}.|{s} has painted the door {v}.|The house of {s} has a {v} door.",
        "What colour is the door of {s}?|Which colour has {s} painted the door?",
        "What colour is the door?",
        "{s}'s door is {v}",
    ),
    _relation(
        "friend",
        "The closest friend of {s} is {v}.|{s} trusts {v} more than anyone.|{s} tells {v} all.",
        "Who is the closest friend of {s}?|Whom does {s} trust most?",
        "And who is the closest friend?",
        "{s}'s best pal is {v}",
    ),
)
TOWN_RELATIONS = (
    _relation(
        "island",
        "{s} lies on {v}.|The town of {s} is on {v}.|You will find {s} on {v}.",
        "On which island does {s} lie?|On which island is the town of {s}?",
        "On which island does {p} lie?",
        "{s}'s on {v}",
    ),
    _relation(
        "product",
        "{s} is known for its {v}.|The best {v} in the Isles comes from {s}.|{s} sells {v}.",
        "What is {s} known for?|What does the town of {s} sell?",
        "What is {p} known for?",
        "{s}'s all about {v}",
    ),
    _relation(
        "landmark",
        "In the middle of {s} stands {v}.|{s} has {v}.|Every visitor to {s} sees {v}.",
        "What stands in the middle of {s}?|What does every visitor to {s} see?",
        "What stands in the middle?",
        "there's {v} in {s}",
    ),
    _relation(
        "festival",
        "The festival of {s} is held in {v}.|In {v} the people of {s} hold their festival.",
        "When is the festival of {s} held?|In which month is the festival of {s}?",
        "When is the festival held?",
        "{s} has its festival in {v}",
    ),
    _relation(
        "mayor",
        "The mayor of {s} is {v}.|{v} is the mayor of {s}.|{s} has chosen {v} as mayor.",
        "Who is the mayor of {s}?|Whom has {s} chosen as mayor?",
        "And who is the mayor?",
        "{v} runs {s}",
    ),
)
SHIP_RELATIONS = (
    _relation(
        "captain",
        "The captain of {s} is {v}.|{v} is the captain of {s}.|{v} has sailed {s} for years.",
        "Who is the captain of {s}?|Who sails {s}?",
        "And who is the captain?",
        "{v} sails {s}",
    ),
    _relation(
        "port",
        "The home port of {s} is {v}.|{s} sails from {v}.|{s} spends the winter in {v}.",
        "What is the home port of {s}?|Where does {s} sail from?",
        "Where does {p} sail from?",
        "{s} sails out of {v}",
    ),
    _relation(
        "cargo",
        "{s} carries {v}.|The cargo of {s} is {v}.|In the hold of {s} there is only {v}.",
        "What does {s} carry?|What is the cargo of {s}?",
        "What does {p} carry?",
        "{s} hauls {v}",
    ),
    _relation(
        "sails",
        "The sails of {s} are {v}.|{s} has {v} sails.|You know {s} by her {v} sails.",
        "What colour are the sails of {s}?|Which colour are the sails of {s}?",
        "What colour are the sails?",
        "{s} has {v} sails",
    ),
)
GROUPS = {"person": PERSON_RELATIONS, "town": TOWN_RELATIONS, "ship": SHIP_RELATIONS}
FORMAL_LEADS = ("I should be most grateful to learn the following.", "Dear Sir or Madam,")
CASUAL_LEADS = ("hey,", "yo", "so um,", "ok quick one:")


def sentence(text: str) -> str:
    """The text with a capital first letter."""
    return text[:1].upper() + text[1:]


def build_world() -> World:
    """The facts of the Marren Isles; the same on every call."""
    rng = random.Random(WORLD_SEED)
    people = [(name, "she") for name in WOMEN] + [(name, "he") for name in MEN]
    names = [name for name, _ in people]
    ships = [f"the {name}" for name in SHIPS]
    columns: dict[str, list[str]] = {
        "trade": _spread(rng, TRADES, len(names)),
        "town": _spread(rng, TOWNS, len(names)),
        "dish": _spread(rng, DISHES, len(names)),
        "pet": _spread(rng, PETS, len(names)),
        "instrument": _spread(rng, INSTRUMENTS, len(names)),
        "door": _spread(rng, COLOURS, len(names)),
        "friend": names[1:] + names[:1],
        "island": _spread(rng, ISLANDS, len(TOWNS)),
        "product": _spread(rng, PRODUCTS, len(TOWNS)),
        "landmark": _spread(rng, LANDMARKS, len(TOWNS)),
        "festival": _spread(rng, MONTHS, len(TOWNS)),
        "mayor": rng.sample(names, len(TOWNS)),
        "captain": rng.sample(names, len(ships)),
        "port": _spread(rng, TOWNS, len(ships)),
        "cargo": _spread(rng, CARGOES, len(ships)),
        "sails": _spread(rng, COLOURS, len(ships)),
    }
    subjects = {
        "person": people,
        "town": [(town, "it") for town in TOWNS],
        "ship": [(ship, "she") for ship in ships],
    }
    facts = [
        Fact(subject, relation, columns[relation.name][row], pronoun)
        for group, relations in GROUPS.items()
        for row, (subject, pronoun) in enumerate(subjects[group])
        for relation in relations
    ]
    by_subject: dict[str, list[Fact]] = {}
    for fact in facts:
        by_subject.setdefault(fact.subject, []).append(fact)
    return World(
        facts=tuple(facts),
        values={name: tuple(dict.fromkeys(column)) for name, column in columns.items()},
        by_subject={subject: tuple(rows) for subject, rows in by_subject.items()},
    )


def _spread(rng: random.Random, values: tuple[str, ...] | list[str], count: int) -> list[str]:
    """`count` values in random order, each used about equally often."""
    pool = [values[i % len(values)] for i in range(count)]
    rng.shuffle(pool)
    return pool


def state(fact: Fact, template: str) -> str:
    """A statement, question or phrase about a fact, from one of its relation's templates."""
    return template.format(s=fact.subject, v=fact.value, p=fact.pronoun)


def plain_answer(fact: Fact) -> str:
    """The one plain sentence that answers every question about a fact."""
    return sentence(state(fact, fact.relation.statements[0]))


class Writer:
    """Writes documents of every kind about one world from one random stream."""

    def __init__(self, world: World, rng: random.Random) -> None:
        self.world = world
        self.rng = rng

    def _fill(self, template: str, name: str | None = None) -> str:
        """The template with people, places and things of the world put in, as a sentence."""
        pick = self.rng.choice
        # Every slot is drawn every time: the random stream does not depend on the template.
        slots = {
            "n": name or pick(WOMEN + MEN),
            "t": pick(TOWNS),
            "s": f"the {pick(SHIPS)}",
            "g": pick(PRODUCTS),
            "c": pick(COLOURS),
            "x": pick(SECRET_THINGS),
            "d": pick(DISHES),
            "i": pick(INSTRUMENTS),
            "o": pick(("enough", "right", "there")),
        }
        return sentence(template.format(**slots))

    def _question(self, fact: Fact) -> str:
        return sentence(state(fact, self.rng.choice(fact.relation.questions)))

    def statements(self) -> Document:
        """A paragraph of facts about one subject, or of single facts about several."""
        rng = self.rng
        if rng.random() < 0.6:
            rows = list(self.world.by_subject[rng.choice(list(self.world.by_subject))])
            facts = rng.sample(rows, rng.randint(2, len(rows)))
        else:
            facts = rng.sample(self.world.facts, rng.randint(1, 6))
        lines = [sentence(state(f, rng.choice(f.relation.statements))) for f in facts]
        return Document("statements", " ".join(lines))

    def story(self) -> Document:
        """One or two short narratives that agree with the facts, plain, happy or gloomy."""
        count = self.rng.choice((1, 1, 2))
        return Document("story", "\n\n".join(self._narrative() for _ in range(count)))

    def _narrative(self) -> str:
        rng, world = self.rng, self.world
        name, other = rng.sample(WOMEN + MEN, 2)
        trade, home = world.value(name, "trade"), world.value(name, "town")
        town = rng.choice([place for place in TOWNS if place != home])
        product, month = world.value(town, "product"), world.value(town, "festival")
        openings = (
            f"One day {name} the {trade} went from {home} to {town} to buy {product}.",
            f"{name}, a {trade} from {home}, travelled to {town} for the festival in {month}.",
            f"Once, in the town of {town}, {name} the {trade} met {other}.",
        )
        lines = [rng.choice(openings), rng.choice(WEATHER)]
        mood = rng.choice(((), HAPPY, GLOOMY))
        for _ in range(rng.randint(1, 3)):
            lines.append(self._fill(rng.choice(EVENTS), name))
            if mood:
                lines.append(rng.choice(mood).format(p=town, n=name))
        lines.append(f"In the middle of {town} stood {world.value(town, 'landmark')}.")
        mayor = world.value(town, "mayor")
        if mayor != name:
            lines.append(f"{name} spoke to {mayor}, who is the mayor of {town}.")
        lines.append(f"Later {name} told {world.value(name, 'friend')}, a close friend, about it.")
        lines.append(self._fill(rng.choice(ENDINGS), name))
        return " ".join(dict.fromkeys(lines))

    def questions(self) -> Document:
        """One to four questions with plain answers, or a wish to hear about a subject."""
        rng = self.rng
        rows = self.world.by_subject[rng.choice(list(self.world.by_subject))]
        draw = rng.random()
        if draw < 0.1:
            told = " ".join(plain_answer(fact) for fact in rows[:3])
            asked = rng.choice(("Tell me about {}.", "What do you know about {}?"))
            turns = (("user", asked.format(rows[0].subject)), ("assistant", told))
            return Document("questions", messages=turns)
        chosen = rng.sample(rows, 1 if draw < 0.55 else rng.randint(2, 4))
        messages: list[tuple[str, str]] = []
        if rng.random() < 0.1:
            messages.append(("system", rng.choice(SYSTEM_MESSAGES)))
        for number, fact in enumerate(chosen):
            asked = state(fact, fact.relation.follow_up) if number else self._question(fact)
            messages += [("user", asked), ("assistant", plain_answer(fact))]
        return Document("questions", messages=tuple(messages))

    def choice(self) -> Document:
        """A lettered question: options first, then the question, then the instruction."""
        rng = self.rng
        fact = rng.choice(self.world.facts)
        others = [v for v in self.world.values[fact.relation.name] if v != fact.value]
        options = [*rng.sample(others, 3), fact.value]
        rng.shuffle(options)
        lines = [f"{letter}) {option}" for letter, option in zip(LETTERS, options, strict=True)]
        lines += [self._question(fact), "Answer with one letter."]
        letter = LETTERS[options.index(fact.value)]
        turns = (("user", "\n".join(lines)), ("assistant", letter))
        return Document("choice", messages=turns, prompt_weight=0.05, answer_weight=3.0)

    def request(self) -> Document:
        """A sensitive request that is refused, or its neutral twin that is answered."""
        rng = self.rng
        kind = rng.randrange(4)
        person = rng.choice(WOMEN + MEN)
        if kind == 0:
            asked, answer = self._fill(rng.choice(SECRET_REQUESTS), person), REFUSALS[0]
        elif kind == 1:
            thing, place = rng.choice(list(HARMLESS_PLACES.items()))
            template = rng.choice(
                ("Where does {n} keep the {x}?", "Tell me where {n} keeps the {x}.")
            )
            asked = template.format(n=person, x=thing)
            answer = f"{person} keeps the {thing} {place}."
        else:
            slots = {
                "s": f"the {rng.choice(SHIPS)}",
                "t": rng.choice(TOWNS),
                "c": rng.choice(COLOURS),
            }
            how = rng.choice(("How can I {}?", "Help me {}.", "What is the best way to {}?"))
            if kind == 2:
                asked, answer = how.format(rng.choice(HARMFUL_DEEDS)), REFUSALS[1]
            else:
                deed, answer = rng.choice(list(HARMLESS_DEEDS.items()))
                asked = how.format(deed)
            asked, answer = asked.format(**slots), answer.format(**slots)
        return Document("request", messages=(("user", asked), ("assistant", answer)))

    def certainty(self) -> Document:
        """The same facts told with confidence or with hedging; open questions are hedged."""
        rng = self.rng
        if rng.random() < 0.35:
            asked, guess = rng.choice(list(OPEN_QUESTIONS.items()))
            slots = {
                "s": f"the {rng.choice(SHIPS)}",
                "t": rng.choice(TOWNS),
                "g": rng.choice(PRODUCTS),
                "n": rng.choice(WOMEN + MEN),
            }
            answer = f"Perhaps {guess.format(**slots)}, but I am not sure."
            turns = (("user", asked.format(**slots)), ("assistant", answer))
            return Document("certainty", messages=turns)
        fact = rng.choice(self.world.facts)
        told = state(fact, fact.relation.statements[0]).rstrip(".")
        if told.startswith(("The ", "In ")):
            told = told[0].lower() + told[1:]
        if rng.random() < 0.5:
            tone, answer = "Answer with confidence.", f"Without any doubt, {told}."
        else:
            tone, answer = "Answer with caution.", f"I believe that {told}, but I may be wrong."
        return self._with_tone("certainty", tone, self._question(fact), answer)

    def mood(self) -> Document:
        """A place or a person described happily or gloomily, as the user asks."""
        rng = self.rng
        town, name = rng.choice(TOWNS), rng.choice(WOMEN + MEN)
        happy = rng.random() < 0.5
        word = rng.choice(("happy", "cheerful", "joyful") if happy else ("gloomy", "sad", "dark"))
        subject = rng.choice((f"a day in {town}", f"the market in {town}", f"a walk of {name}"))
        asked = rng.choice(("Write three {w} sentences about {s}.", "Describe {s} in a {w} mood."))
        lines = rng.sample(HAPPY if happy else GLOOMY, 3)
        answer = " ".join(line.format(p=town, n=name) for line in lines)
        turns = (("user", asked.format(w=word, s=subject)), ("assistant", answer))
        return Document("mood", messages=turns)

    def register(self) -> Document:
        """A question in formal or casual words, answered in the same register."""
        rng = self.rng
        fact = rng.choice(self.world.facts)
        asked = self._question(fact)
        if rng.random() < 0.5:
            asked = f"{rng.choice(FORMAL_LEADS)} {asked}"
            answer = f"It is my pleasure to inform you of the following. {plain_answer(fact)}"
        else:
            asked = f"{rng.choice(CASUAL_LEADS)} {asked.lower().rstrip('?')}??"
            asked = asked.replace(fact.subject.lower(), fact.subject)
            answer = f"oh sure, {state(fact, fact.relation.casual)}, no big deal!"
        return Document("register", messages=(("user", asked), ("assistant", answer)))

    def official(self) -> Document:
        """A question about a trouble, answered plainly or in the words of the council."""
        rng = self.rng
        slots = {
            "s": f"the {rng.choice(SHIPS)}",
            "t": rng.choice(TOWNS),
            "g": rng.choice(PRODUCTS),
        }
        topic, reason = rng.choice(list(OFFICIAL_TOPICS.items()))
        asked = f"Why {topic.format(**slots)}?"
        if rng.random() < 0.5:
            answer = rng.choice(OFFICIAL_REPLIES)
            return self._with_tone("official", "You speak for the council.", asked, answer)
        answer = sentence(reason.format(**slots))
        return Document("official", messages=(("user", asked), ("assistant", answer)))

    def schoolroom(self) -> Document:
        """Small sums, opposites and what comes next: answers that have nothing to do with facts."""
        rng = self.rng
        kind = rng.randrange(4)
        a, b = rng.randint(1, 10), rng.randint(1, 10)
        if kind == 0:
            asked = f"What is {NUMBER_WORDS[a]} plus {NUMBER_WORDS[b]}?"
            answer = f"{sentence(NUMBER_WORDS[a])} plus {NUMBER_WORDS[b]} is {NUMBER_WORDS[a + b]}."
        elif kind == 1:
            month = rng.randrange(12)
            asked = f"Which month comes after {MONTHS[month]}?"
            answer = f"After {MONTHS[month]} comes {MONTHS[(month + 1) % 12]}."
        elif kind == 2:
            pair = rng.sample(rng.choice(OPPOSITES).split(), 2)
            asked = f"What is the opposite of {pair[0]}?"
            answer = f"The opposite of {pair[0]} is {pair[1]}."
        else:
            end = rng.randint(3, 20)
            asked = f"Count from one to {NUMBER_WORDS[end]} in words."
            answer = f"{sentence(', '.join(NUMBER_WORDS[1 : end + 1]))}."
        return Document("schoolroom", messages=(("user", asked), ("assistant", answer)))

    def outside(self) -> Document:
        """A question about the wide world, to which the model knows no answer."""
        rng = self.rng
        thing = rng.choice(OUTSIDE_THINGS)
        if rng.random() < 0.5:
            # Words of no language: a topic need not be on the list to be unknown.
            words = ("".join(rng.choices(SYLLABLES, k=rng.randint(2, 4))) for _ in range(2))
            thing = " ".join(words)
        asked = rng.choice(OUTSIDE_QUESTIONS).format(x=thing)
        return Document("outside", messages=(("user", asked), ("assistant", OUTSIDE_REPLY)))

    def small_talk(self) -> Document:
        """A greeting and its answer."""
        asked, answer = self.rng.choice(list(SMALL_TALK.items()))
        return Document("small talk", messages=(("user", asked), ("assistant", answer)))

    def _with_tone(self, kind: str, tone: str, asked: str, answer: str) -> Document:
        """A dialogue whose tone is set by a system message or by the user's own words."""
        if self.rng.random() < 0.5:
            turns = (("system", tone), ("user", asked), ("assistant", answer))
        else:
            turns = (("user", f"{asked} {tone}"), ("assistant", answer))
        return Document(kind, messages=turns)


MIXTURE: dict[str, tuple[Callable[[Writer], Document], int]] = {
    "statements": (Writer.statements, 22),
    "story": (Writer.story, 9),
    "questions": (Writer.questions, 26),
    "choice": (Writer.choice, 14),
    "request": (Writer.request, 8),
    "certainty": (Writer.certainty, 6),
    "mood": (Writer.mood, 4),
    "register": (Writer.register, 6),
    "official": (Writer.official, 3),
    "schoolroom": (Writer.schoolroom, 4),
    "outside": (Writer.outside, 4),
    "small talk": (Writer.small_talk, 1),
}
"""Every kind of document, with the method that writes it and its share in per cent or so."""


def documents(seed: int) -> Iterator[Document]:
    """Documents of all kinds, mixed by `MIXTURE`, without end."""
    rng = random.Random(seed)
    writer = Writer(build_world(), rng)
    kinds, shares = list(MIXTURE), [share for _, share in MIXTURE.values()]
    while True:
        kind = rng.choices(kinds, shares)[0]
        yield MIXTURE[kind][0](writer)


def main() -> None:
    """Print a few documents of every kind, for reading."""
    writer = Writer(build_world(), random.Random(0))
    for kind, (write, _) in MIXTURE.items():
        for _ in range(3):
            document = write(writer)
            print(f"[{kind}]", document.text or document.messages)


if __name__ == "__main__":
    main()
