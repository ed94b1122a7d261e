"""The texts and prompt sets that ship with the package keep the shape their data card promises."""

import json
import re
import unicodedata
from importlib.resources import files

import pytest

DEMO = files("actscope") / "demo"
TEXT_KINDS = {"long": (250, 450), "short": (15, 60)}
SET_COUNTS = {
    "single_trait": 10,
    "multi_trait": 10,
    "dynamic": 8,
    "adversarial": 8,
    "baseline": 5,
    "real_world": 10,
}
TRAITS = ("refusal", "official line", "hedging", "sentiment", "formality", "retrieval")


def text_files(kind):
    return sorted(
        (f for f in (DEMO / "texts" / kind).iterdir() if f.is_file()), key=lambda f: f.name
    )


def load_set(name):
    raw = (DEMO / "prompt_sets" / f"{name}.json").read_bytes().decode("utf-8")
    return raw, json.loads(raw)


def named_traits(note):
    return {t for t in TRAITS if re.search(rf"\b{t}\b", note)}


def assert_clean(text):
    assert text == unicodedata.normalize("NFC", text)
    assert not text.startswith("\ufeff")
    assert "\r" not in text
    assert "\ufffd" not in text


@pytest.mark.parametrize("kind", TEXT_KINDS)
def test_texts_are_numbered_one_to_ten_with_snake_case_slugs(kind):
    names = [f.name for f in text_files(kind)]
    assert all(re.fullmatch(r"\d{2}(_[a-z0-9]+)+\.txt", n) for n in names), names
    assert [n[:2] for n in names] == [f"{i:02d}" for i in range(1, 11)]


@pytest.mark.parametrize("kind", TEXT_KINDS)
def test_texts_are_clean_utf8_within_their_word_range(kind):
    low, high = TEXT_KINDS[kind]
    for f in text_files(kind):
        text = f.read_bytes().decode("utf-8")
        assert_clean(text)
        assert text.endswith("\n") and not text.endswith("\n\n"), f.name
        assert all(line == line.rstrip() for line in text.splitlines()), f.name
        assert low <= len(text.split()) <= high, (f.name, len(text.split()))


def test_long_texts_have_paragraphs_and_short_texts_are_one_to_three_sentences():
    for f in text_files("long"):
        assert f.read_text(encoding="utf-8").count("\n\n") >= 3, f.name
    for f in text_files("short"):
        text = f.read_text(encoding="utf-8").strip()
        assert "\n" not in text, f.name
        # A full stop inside a number has no space after it and does not count.
        assert 1 <= len(re.findall(r"[.!?]+(?=\s|$)", text)) <= 3, f.name


def test_texts_are_all_different():
    texts = [f.read_text(encoding="utf-8") for kind in TEXT_KINDS for f in text_files(kind)]
    assert len(texts) == 20
    assert len({t.casefold().strip() for t in texts}) == 20
    openings = {" ".join(t.split()[:6]).casefold() for t in texts}
    assert len(openings) == 20


def test_the_prompt_sets_are_exactly_these_six():
    found = {f.name for f in (DEMO / "prompt_sets").iterdir() if f.is_file()}
    assert found == {f"{name}.json" for name in SET_COUNTS}


@pytest.mark.parametrize("name", SET_COUNTS)
def test_prompt_set_counts_ids_and_fields(name):
    raw, data = load_set(name)
    assert_clean(raw)
    assert set(data) == {"name", "description", "prompts"}
    assert data["name"] == name
    assert data["description"].strip()
    ids = [p["id"] for p in data["prompts"]]
    assert all(type(i) is int for i in ids)
    assert ids == list(range(1, SET_COUNTS[name] + 1))
    for p in data["prompts"]:
        assert set(p) == {"id", "text", "note"}
        assert p["text"].strip()
        assert len(p["note"].split()) >= 8


@pytest.mark.parametrize("name", SET_COUNTS)
def test_prompt_set_files_are_written_readably(name):
    raw, data = load_set(name)
    assert raw == json.dumps(data, ensure_ascii=False, indent=2) + "\n"


def test_prompts_are_unique_across_all_sets():
    texts = [
        p["text"].casefold().strip() for name in SET_COUNTS for p in load_set(name)[1]["prompts"]
    ]
    assert len(texts) == sum(SET_COUNTS.values()) == len(set(texts))


def test_notes_say_which_traits_are_meant():
    for p in load_set("single_trait")[1]["prompts"]:
        assert len(named_traits(p["note"].split(":")[0])) == 1, p["id"]
    for p in load_set("multi_trait")[1]["prompts"]:
        assert len(named_traits(p["note"].split(":")[0])) >= 2, p["id"]
    for name in ("dynamic", "real_world"):
        for p in load_set(name)[1]["prompts"]:
            assert named_traits(p["note"]), (name, p["id"])
    singles = " ".join(p["note"].split(":")[0] for p in load_set("single_trait")[1]["prompts"])
    assert named_traits(singles) == set(TRAITS)


def test_adversarial_prompts_cover_the_promised_edge_cases():
    texts = [p["text"] for p in load_set("adversarial")[1]["prompts"]]
    bidi = [{unicodedata.bidirectional(c) for c in t} for t in texts]
    assert any(len(t) <= 3 for t in texts)
    assert any("\u200d" in t for t in texts)
    assert any({"R", "AL", "L"} <= classes for classes in bidi)
    assert any(len(t.split()) > 100 and len(set(t.split())) == 1 for t in texts)
    assert any("IGNORE ALL EARLIER INSTRUCTIONS" in t for t in texts)
    assert any(re.search(r"\d{60,}", t) for t in texts)
    assert any("```python" in t for t in texts)
    assert any(re.search(r"[а-я]", t) and re.search(r"[ぁ-ん]", t) for t in texts)


def test_the_data_card_is_there_and_names_every_part():
    card = (DEMO / "README.md").read_text(encoding="utf-8")
    assert "Apache-2.0" in card
    for name, count in SET_COUNTS.items():
        row = next(line for line in card.splitlines() if f"prompt_sets/{name}.json" in line)
        assert row.rstrip(" |").endswith(f" {count}")
    for kind in TEXT_KINDS:
        assert f"texts/{kind}/" in card
