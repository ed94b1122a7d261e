"""Templates, passes and surface features: what is asked, and what can be said without a model."""

import math
import shutil
from pathlib import Path

import pytest

from actscope.core.errors import BadInputError, SourceError, UnknownNameError
from actscope.studies.introspection import prompts
from actscope.studies.introspection.passes import PASSES, letter_tokens, passes_named
from actscope.studies.introspection.prompts import load_templates
from actscope.studies.introspection.surface import SurfaceFeatures

OPTIONS = {"A": "tin", "B": "lead", "C": "{question}", "D": "gold"}


class Words:
    """A tokenizer of one token a word, by its length."""

    unk_token_id = 0

    def encode(self, text, add_special_tokens):
        assert add_special_tokens is False
        return [len(word) for word in text.split()]


@pytest.fixture
def features():
    return SurfaceFeatures(Words(), ["What is a cat?", "Is it a cat or another cat?"])


@pytest.mark.parametrize(
    ("question", "kind", "negation", "ambiguity"),
    [
        ("What is another cat?", "what", False, False),  # neither "not" nor "how" is a word here
        ("In which town is nobody?", "which", True, False),
        ("Who isn’t here?", "who", True, False),
        ("WHERE might it be?", "where", False, True),
        ("Name the show that Mighty Joe whatever-ed.", "other", False, False),
        ("For how long, and why?", "how", False, False),
        ("Is it possibly not so?", "other", True, True),
    ],
)
def test_kinds_negation_and_ambiguity_go_by_whole_words(
    features, question, kind, negation, ambiguity
):
    found = features.of(question)
    assert found["question_type"] == kind
    assert (found["has_negation"], found["has_ambiguity"]) == (negation, ambiguity)


def test_lengths_rarity_and_frequencies_are_counted(features):
    found = features.of("What is a cat?")
    assert (found["char_length"], found["token_length"]) == (14, 4)
    assert (found["token_rarity_mean"], found["token_rarity_max"]) == (11 / 4, 4)
    # lengths in the dataset: 4 2 1 4, 2 2 1 3 2 7 4
    shares = [math.log(n / 11) for n in (3, 4, 2, 3)]
    assert found["token_logfreq_mean"] == pytest.approx(sum(shares) / 4)
    assert found["token_logfreq_min"] == pytest.approx(math.log(2 / 11))
    with pytest.raises(BadInputError, match="no token"):
        features.of(" ")


@pytest.mark.parametrize("name", ["marren", "general"])
def test_passes_share_everything_but_their_instruction(name):
    templates = load_templates(name)
    found = [templates.prompt("Which is heavy?", OPTIONS, which) for which in PASSES]
    stems = {text.rpartition("\n")[0] for text in found}
    assert len(stems) == 1 and len(set(found)) == 3
    [stem] = stems
    assert stem.index("C) {question}") < stem.index("Which is heavy?")  # braces in a value stay
    assert stem.count("Which is heavy?") == 1


def test_a_copy_may_be_edited_and_is_told_from_the_original(tmp_path):
    packaged = Path(prompts.__file__).parent / "templates" / "general"
    copy = shutil.copytree(packaged, tmp_path / "mine")
    assert load_templates(copy).hashes() == load_templates("general").hashes()
    (copy / "mcq.txt").write_text("Say one letter.\n")
    changed = load_templates(copy)
    assert changed.prompt("Q?", OPTIONS, PASSES[0]).endswith("\nSay one letter.")
    assert changed.hashes()["mcq"] != load_templates("general").hashes()["mcq"]
    for stem, text, said in (
        ("stem", "{options} only", "{question} once"),
        ("option", "{letter} {letter} {answer}", "{letter} once"),
        ("mcq", "\n", "some text"),
    ):
        broken = shutil.copytree(packaged, tmp_path / stem)
        (broken / f"{stem}.txt").write_text(text)
        with pytest.raises(SourceError) as error:
            load_templates(broken)
        assert said in str(error.value)


def test_passes_are_named_by_word_name_or_folder():
    assert passes_named("other,mcq") == (PASSES[0], PASSES[2])
    assert passes_named(["self-confidence", "other_conf"]) == PASSES[1:]
    with pytest.raises(UnknownNameError, match="selves"):
        passes_named("mcq,selves")
    with pytest.raises(BadInputError, match="no pass"):
        passes_named(" , ")


def test_letters_take_both_single_token_encodings_and_never_the_unknown_one():
    class Letters:
        unk_token_id = 0

        def encode(self, text, add_special_tokens):
            return {"A": [5], " A": [9], "B": [6], " B": [3, 6], "C": [0], " C": [7]}[text]

    assert letter_tokens(Letters(), "ABC") == [[5, 9], [6], [7]]

    class Merged(Letters):
        def encode(self, text, add_special_tokens):
            return [5]

    with pytest.raises(BadInputError, match="several letters with one token"):
        letter_tokens(Merged(), "AB")
