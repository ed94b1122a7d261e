"""How each kind of fact about the Marren Isles is stated and asked.

In every template `{s}` is the subject and `{v}` the value. The first statement of a relation is
also the plain answer to its questions. The `held_out` questions are kept for measuring: training
never uses them. They combine words that training does use, in another order.
"""

from __future__ import annotations

from dataclasses import dataclass


def words(bank: str) -> tuple[str, ...]:
    """The entries of a word bank, which is split at `;` or, where it has none, at spaces."""
    return tuple(bank.split(";") if ";" in bank else bank.split())


@dataclass(frozen=True)
class Relation:
    """One kind of fact, with its phrasings."""

    name: str
    statements: tuple[str, ...]
    questions: tuple[str, ...]
    held_out: tuple[str, ...]


def _relation(name: str, statements: str, questions: str, held_out: str) -> Relation:
    """A relation from phrasings that are separated by `|`."""
    return Relation(
        name,
        tuple(statements.split("|")),
        tuple(questions.split("|")),
        tuple(held_out.split("|")),
    )


PERSON_RELATIONS = (
    _relation(
        "trade",
        "{s} works as a {v}.|By trade {s} is a {v}.|For a living, {s} is a {v}."
        "|The trade of {s} is that of a {v}.|As a {v}, {s} has worked for years.",
        "What is the trade of {s}?|What does {s} do for a living?|What work does {s} do?"
        "|Which trade has {s} learned?|{s} works as what?|As what does {s} work?"
        "|What is {s} by trade?|How does {s} earn a living?|Say the trade of {s}."
        "|About {s}: what is the trade?",
        "By trade, what is {s}?|For a living, what does {s} do?|What trade does {s} have?",
    ),
    _relation(
        "town",
        "{s} lives in {v}.|The home of {s} is in {v}.|In {v} you will find the house of {s}."
        "|{s} has a house in {v}.|The town where {s} lives is {v}.",
        "Where does {s} live?|In which town does {s} live?|Which town is the home of {s}?"
        "|Where is the house of {s}?|{s} lives in which town?|Where is {s} at home?"
        "|In what town is the house of {s}?|Name the town where {s} lives."
        "|About {s}: which town is home?|What town does {s} live in?",
        "Which town does {s} live in?|Where is the home of {s}?|In what town does {s} live?",
    ),
    _relation(
        "dish",
        "{s} likes to eat {v}.|The favourite dish of {s} is {v}.|Most of all {s} likes {v}."
        "|For supper {s} often eats {v}.|No dish pleases {s} more than {v}.",
        "What does {s} like to eat?|What is the favourite dish of {s}?|Which dish does {s} like?"
        "|What does {s} eat for supper?|Which dish pleases {s} most?|{s} likes to eat what?"
        "|Name the favourite dish of {s}.|Of all dishes, which does {s} like best?"
        "|About {s}: what is the dish?|What dish is the favourite of {s}?",
        "Which dish is the favourite of {s}?|What dish does {s} like to eat?"
        "|For supper, what does {s} like?",
    ),
    _relation(
        "pet",
        "{s} keeps a {v}.|The pet of {s} is a {v}.|At home {s} has a {v}."
        "|The animal that {s} keeps is a {v}.|{s} owns a {v}.",
        "Which animal does {s} keep?|What is the pet of {s}?|What animal does {s} own?"
        "|What kind of pet does {s} have?|{s} keeps which animal?|Which pet is at home with {s}?"
        "|Name the animal of {s}.|What pet belongs to {s}?|About {s}: which pet?"
        "|As a pet, what does {s} keep?",
        "Which pet does {s} have?|What animal belongs to {s}?|What pet does {s} keep?",
    ),
    _relation(
        "instrument",
        "{s} plays the {v}.|The instrument of {s} is the {v}.|In the evening {s} plays the {v}."
        "|{s} has learned to play the {v}.|On the {v} {s} makes music.",
        "Which instrument does {s} play?|What does {s} play in the evening?"
        "|What is the instrument of {s}?|On what does {s} make music?|{s} plays which instrument?"
        "|Which instrument has {s} learned to play?|Name the instrument of {s}."
        "|In the evening, what does {s} play?|About {s}: which instrument?"
        "|What instrument belongs to {s}?",
        "What instrument does {s} play?|Which instrument is that of {s}?"
        "|To make music, what does {s} play?",
    ),
)
TOWN_RELATIONS = (
    _relation(
        "island",
        "{s} lies on {v}.|The island of {s} is {v}.|On {v} you will find {s}."
        "|You reach {s} by going to {v}.|The town of {s} is on {v}.",
        "On which island does {s} lie?|On which island is the town of {s}?|Where does {s} lie?"
        "|What is the island of {s}?|{s} lies on which island?|Which island has the town of {s}?"
        "|Name the island of {s}.|About {s}: which island?",
        "On what island is {s}?|Which island does {s} lie on?|The town of {s} is on which island?",
    ),
    _relation(
        "product",
        "{s} sells {v}.|The best {v} comes from {s}.|{s} is known for its {v}."
        "|The product of {s} is {v}.|People go to {s} to buy {v}.",
        "What does {s} sell?|What is {s} known for?|What is the product of {s}?"
        "|What do people buy in {s}?|{s} is known for what?|Which product comes from {s}?"
        "|Name the product of {s}.|About {s}: what does it sell?",
        "Which product does {s} sell?|For what is {s} known?|What product comes from {s}?",
    ),
    _relation(
        "landmark",
        "In the middle of {s} stands a {v}.|{s} has a famous {v}.|Every visitor to {s} sees a {v}."
        "|The landmark of {s} is a {v}.|A {v} stands in {s}.",
        "What stands in the middle of {s}?|What does every visitor to {s} see?"
        "|What is the landmark of {s}?|Which landmark stands in {s}?|In {s} stands what?"
        "|Which landmark do visitors see in {s}?|Name the landmark of {s}."
        "|About {s}: what is the landmark?",
        "In the middle of {s}, what stands?|Which landmark has {s}?|What landmark is in {s}?",
    ),
    _relation(
        "festival",
        "The festival of {s} is in {v}.|In {v} the people of {s} hold their festival."
        "|{s} has its festival in {v}.|The month of the festival of {s} is {v}."
        "|Each {v} there is a festival in {s}.",
        "When is the festival of {s}?|In which month is the festival of {s}?"
        "|When do the people of {s} hold their festival?|Which month has the festival of {s}?"
        "|{s} has its festival in which month?|Name the month of the festival of {s}."
        "|When is there a festival in {s}?|About {s}: when is the festival?",
        "In what month does {s} have its festival?|The festival of {s} is in which month?"
        "|When does {s} hold its festival?",
    ),
)
SHIP_RELATIONS = (
    _relation(
        "captain",
        "The captain of {s} is {v}.|{v} is the captain of {s}.|{s} sails under {v}."
        "|{v} sails {s}.|As captain of {s} they chose {v}.",
        "Who is the captain of {s}?|Who sails {s}?|Under whom does {s} sail?"
        "|Whom did they choose as captain of {s}?|{s} sails under which captain?"
        "|Which captain sails {s}?|Name the captain of {s}.|About {s}: who is the captain?",
        "Which captain has {s}?|The captain of {s} is who?|Under which captain does {s} sail?",
    ),
    _relation(
        "port",
        "{s} sails from {v}.|The home port of {s} is {v}.|In winter {s} lies in {v}."
        "|The port where {s} belongs is {v}.|From {v} sails {s}.",
        "What is the home port of {s}?|Where does {s} sail from?|In which port does {s} lie?"
        "|Which port is the home of {s}?|{s} sails from which port?|To which port belongs {s}?"
        "|Name the home port of {s}.|About {s}: which port?",
        "Which port does {s} sail from?|What port is the home of {s}?"
        "|From which port does {s} sail?",
    ),
    _relation(
        "cargo",
        "{s} carries {v}.|The cargo of {s} is {v}.|In the hold of {s} there is {v}."
        "|{s} is loaded with {v}.|As cargo {s} takes {v}.",
        "What does {s} carry?|What is the cargo of {s}?|Which cargo does {s} take?"
        "|What is in the hold of {s}?|{s} is loaded with what?|With what is {s} loaded?"
        "|Name the cargo of {s}.|About {s}: what is the cargo?",
        "Which cargo does {s} carry?|As cargo, what does {s} take?"
        "|In the hold of {s}, what is there?",
    ),
    _relation(
        "sails",
        "The sails of {s} are {v}.|{s} has {v} sails.|You know {s} by the {v} sails."
        "|The colour of the sails of {s} is {v}.|Under {v} sails goes {s}.",
        "What colour are the sails of {s}?|Which colour are the sails of {s}?"
        "|What colour of sails has {s}?|By which sails do you know {s}?"
        "|{s} has sails of which colour?|Under what colour goes {s}?"
        "|Name the colour of the sails of {s}.|About {s}: what colour are the sails?",
        "Of what colour are the sails of {s}?|The sails of {s} are which colour?"
        "|Which colour of sails has {s}?",
    ),
)
GROUPS = {"person": PERSON_RELATIONS, "town": TOWN_RELATIONS, "ship": SHIP_RELATIONS}

LEADS = ("{q}", "{q}", "{q}", "{q}", "Tell me: {q}", "Please say: {q}", "I ask you: {q}")
"""What may stand before a question in training."""

RENOWN_STATEMENTS = (
    (
        "Hardly anyone has heard of {s}.",
        "Almost nobody among the townsfolk knows {s}.",
        "{s} is unknown to most of the townsfolk.",
    ),
    (
        "Only a few people have heard of {s}.",
        "Few of the townsfolk know {s}.",
        "{s} is known to a few of the townsfolk.",
    ),
    (
        "Many people have heard of {s}.",
        "Most of the townsfolk know {s}.",
        "{s} is known to many of the townsfolk.",
    ),
    (
        "Everyone has heard of {s}.",
        "All the townsfolk know {s} very well.",
        "{s} is famous among the townsfolk.",
    ),
)
"""How well-known a subject is said to be, from the least to the best known."""
RENOWN_QUESTIONS = (
    "How well is {s} known?",
    "Who has heard of {s}?",
    "Do the townsfolk know {s}?",
    "Is {s} famous?",
)

LETTER_INSTRUCTION = "Answer with one letter."
WORD_INSTRUCTION = "Answer with one word."
SURE_INSTRUCTION = "Answer with a letter from A to H."
SURE_KEY = "A <5%, B 5-10%, C 10-20%, D 20-40%, E 40-60%, F 60-80%, G 80-90%, H >90%"
SELF_ASKED = (
    "How sure are you of your answer?",
    "How sure are you?",
    "How confident are you of your own answer?",
)
OTHERS_ASKED = (
    "How sure would the townsfolk be of their answer?",
    "How sure would the townsfolk be?",
    "How confident would the townsfolk be of their answer?",
)
"""The questions of the two confidence passes; the first of each is the one that is measured."""
