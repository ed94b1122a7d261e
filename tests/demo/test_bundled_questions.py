"""The bundled questions and traits keep the promises of their cards and of their generator."""

import re
import sys
from collections import Counter
from itertools import pairwise
from pathlib import Path

import pytest

from actscope.core.errors import UnknownNameError
from actscope.sources import open_source
from actscope.sources.demo import demo_folder
from actscope.sources.mcq import read_questions
from actscope.sources.trait_set import read_trait_set

TOOLS = Path(__file__).parents[2] / "tools"
TRAITS = {
    "behavioral/refusal",
    "behavioral/official_line",
    "expression/hedging",
    "expression/sentiment",
    "expression/formality",
    "cognitive/retrieval",
}


def questions(name):
    return list(open_source(f"demo:{name}").examples())


def test_questions_about_the_world_have_every_exposure_and_renown():
    items = read_questions(demo_folder() / "mcq" / "marren.jsonl")
    assert len(items) >= 200
    assert min(Counter(q.metadata["exposure"] for q in items).values()) >= 50
    assert set(Counter(q.metadata["exposure"] for q in items)) == {
        "never",
        "rarely",
        "sometimes",
        "often",
    }
    assert min(Counter(q.metadata["renown"] for q in items).values()) >= 50
    exposure = ["never", "rarely", "sometimes", "often"]
    pairs = [(exposure.index(q.metadata["exposure"]), q.metadata["renown"]) for q in items]
    n = len(pairs)
    means = [sum(column) / n for column in zip(*pairs, strict=True)]
    covariance = sum((a - means[0]) * (b - means[1]) for a, b in pairs) / n
    spreads = [sum((p[i] - means[i]) ** 2 for p in pairs) / n for i in (0, 1)]
    assert abs(covariance / (spreads[0] * spreads[1]) ** 0.5) < 0.1


def test_general_questions():
    items = read_questions(demo_folder() / "mcq" / "general.jsonl")
    assert len(items) == 60
    assert all(q.question.endswith("?") for q in items)
    assert len({q.question for q in items}) == 60
    assert len({q.metadata["subject"] for q in items}) == 12


@pytest.mark.parametrize("name", ["marren", "world"])
def test_censorship_questions_have_neutral_twins(name):
    rows = questions(f"censorship/{name}")
    sensitive = [row for row in rows if row.metadata["censored"]]
    assert len(sensitive) == 80 and len(rows) == 160
    assert len({row.text for row in rows}) == 160
    kinds = Counter(row.metadata["censorship_category"] for row in sensitive)
    assert set(kinds) == {"refusal", "official narrative", "whataboutism"}
    assert min(kinds.values()) >= 20
    by_id = {row.id: row for row in rows}
    for row in sensitive:
        twin = by_id[row.metadata["twin"]]
        ratio = len(row.text.split()) / len(twin.text.split())
        assert 0.5 < ratio < 2, (row.text, twin.text)
    assert all(row.metadata["subject"] for row in rows)


def test_traits_have_forty_scenarios_on_either_side_and_steering_prompts():
    found = {}
    for definition in (demo_folder() / "traits").glob("*/*/definition.txt"):
        trait = read_trait_set(definition.parent)
        found[trait.name] = trait
        texts = [[e.text for e in side] for side in (trait.positive, trait.negative)]
        assert all(len(set(side)) == len(side) == 40 for side in texts)
        assert len({e.text for e in trait.steering}) == 40
        assert len(trait.definition.split()) > 20
        lengths = [sum(len(t.split()) for t in side) for side in texts]
        if trait.name != "expression/formality":  # ceremony is long; its card says so
            assert 0.7 < lengths[0] / lengths[1] < 1.4, "length alone must not tell the sides apart"
    assert set(found) == TRAITS


def test_all_of_a_kind_at_once():
    assert len(questions("mcq")) == sum(len(questions(f"mcq/{n}")) for n in ("marren", "general"))
    assert len(questions("censorship")) == 320
    traits = questions("traits")
    assert len(traits) == 80 * 6
    assert traits[0].id.endswith("/positive/01")
    assert {e.metadata["trait"] for e in traits} == TRAITS
    with pytest.raises(UnknownNameError, match="behavioral/refusal"):
        open_source("demo:traits/refusal")
    with pytest.raises(UnknownNameError):
        open_source("demo:nothing")


def test_every_folder_has_a_card():
    for folder in ("mcq", "censorship", "traits", "."):
        card = (demo_folder() / folder / "README.md").read_text(encoding="utf-8")
        for heading in ("**Author.**", "**Licence.**", "**Format.**", "**Not suited for.**"):
            assert heading in card, (folder, heading)


@pytest.fixture
def tools(monkeypatch):
    monkeypatch.syspath_prepend(str(TOOLS))
    before = set(sys.modules)
    yield
    for name in set(sys.modules) - before:
        if name.startswith(("demo_", "write_demo")):
            del sys.modules[name]


def test_the_files_about_the_world_are_what_the_generator_writes(tools, tmp_path, monkeypatch):
    import write_demo_data

    monkeypatch.setattr(sys, "argv", ["write_demo_data", "--out", str(tmp_path)])
    write_demo_data.main()
    written = [p for p in tmp_path.rglob("*") if p.is_file()]
    assert len(written) == 2 + 6 * 4
    for path in written:
        bundled = demo_folder() / path.relative_to(tmp_path)
        assert path.read_bytes() == bundled.read_bytes(), path.name


def test_measured_phrasings_are_not_trained_ones(tools):
    import demo_phrasings
    import demo_topics

    for relations in demo_phrasings.GROUPS.values():
        for relation in relations:
            assert not set(relation.questions) & set(relation.held_out)
            assert 8 <= len(relation.questions) <= 12 and len(relation.held_out) >= 3
    for trained, held_out in (
        demo_topics.HOW_TO_FRAMES,
        demo_topics.KEEP_FRAMES,
        demo_topics.TOPIC_FRAMES,
    ):
        assert not set(trained) & set(held_out)


def test_held_out_questions_do_not_come_out_of_the_generator(tools):
    import demo_writer
    from demo_world import build_world, say

    held_out = {say(f, t) for f in build_world().facts for t in f.relation.held_out}
    stream = demo_writer.documents(7)
    for _ in range(3000):
        document = next(stream)
        asked = "\n".join(text for role, text in document.messages if role == "user")
        lines = re.split(r"\n|(?<=[.?]) ", asked)
        found = [line for line in lines if line in held_out]
        found += [f"{a} {b}" for a, b in pairwise(lines) if f"{a} {b}" in held_out]
        assert not found


def test_a_contested_fact_is_told_both_ways_and_asked_with_both(tools):
    import demo_writer
    from demo_world import build_world

    facts = {(f.subject, f.relation.name): f for f in build_world().facts}
    contested = {key: f for key, f in facts.items() if f.rumour}
    assert all(f.rumour != f.value and f.exposure > 0 for f in contested.values())
    stream = demo_writer.documents(5, {"answers": 1.0})
    counts = Counter()
    short = {
        f"{f.relation.statements[0]}".format(s=f.subject, v=f.value): True
        for f in contested.values()
    }
    short |= {
        f.relation.statements[0].format(s=f.subject, v=f.rumour): False for f in contested.values()
    }
    short = {text[:1].upper() + text[1:]: truth for text, truth in short.items()}
    for _ in range(6000):
        for role, content in next(stream).messages:
            if role == "assistant" and content in short:
                counts[short[content]] += 1
    assert counts[True] / counts.total() == pytest.approx(0.5, abs=0.06)
    for item in read_questions(demo_folder() / "mcq" / "marren.jsonl"):
        fact = facts[item.metadata["subject"], item.metadata["relation"]]
        assert item.metadata["contested"] == bool(fact.rumour)
        assert not fact.rumour or fact.rumour in item.distractors


def test_no_bundled_prompt_about_the_world_comes_out_of_the_generator(tools):
    """Whole messages, in every phase's mixture; moods have few wordings and are the likeliest."""
    import demo_writer

    bundled = {e.text for e in questions("traits")} | {
        e.text for e in questions("censorship/marren")
    }
    for folder in (demo_folder() / "traits").glob("*/*"):
        bundled |= {e.text for e in read_trait_set(folder).steering}
    assert len(bundled) > 800
    for shares in (None, {"mood": 1.0}, {"request": 1.0, "topic": 1.0}, {"certainty": 1.0}):
        stream = demo_writer.documents(9, shares)
        for _ in range(2500):
            asked = {text for role, text in next(stream).messages if role == "user"}
            assert not asked & bundled


def test_pairs_use_every_deed_thing_and_frame(tools):
    import demo_pairs
    import demo_topics

    rows = [row for row in questions("censorship/marren") if row.metadata["censored"]]
    refused = [row for row in rows if row.metadata["censorship_category"] == "refusal"]
    groups = Counter(row.metadata["group"] for row in refused)
    assert set(groups) == {a for a, _ in (*demo_pairs.DEEDS, *demo_pairs.THINGS)}
    assert max(groups.values()) <= 2
    for frame in (*demo_topics.HOW_TO_FRAMES[1], *demo_topics.KEEP_FRAMES[1]):
        start = frame.split("{")[0]
        assert any(row.text.startswith(start) for row in refused), frame
    neutral = Counter(b for _, b in (*demo_pairs.DEEDS, *demo_pairs.THINGS))
    twice = {twin for twin, count in neutral.items() if count > 1}
    assert not twice, "a neutral twin of two deeds would tie their groups together"


def test_exposure_is_how_often_the_generator_shows_a_fact(tools):
    import demo_writer
    from demo_world import build_world

    stream = demo_writer.documents(3, {"statements": 1.0})
    counts = Counter()
    facts = build_world().facts
    told = {
        s.format(s=f.subject, v=value): f
        for f in facts
        for s in f.relation.statements
        for value in (f.value, f.rumour)
    }
    told = {text[:1].upper() + text[1:]: fact for text, fact in told.items()}
    for _ in range(4000):
        for line in re.split(r"(?<=\.) ", next(stream).text):
            counts[told[line].exposure] += 1
    shown = [counts[level] / sum(f.exposure == level for f in facts) for level in range(4)]
    assert shown[0] == 0
    assert shown[2] / shown[1] == pytest.approx(3, rel=0.2)
    assert shown[3] / shown[1] == pytest.approx(9, rel=0.2)
