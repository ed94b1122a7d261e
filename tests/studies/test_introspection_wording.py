"""What the report says is what its numbers say, and no more."""

from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest

import actscope
from actscope.analysis.resampling import Estimate
from actscope.analysis.ridge import RidgeCurve, RidgeScore
from actscope.core.protocols import GenerationParams
from actscope.core.spec import UnitPlan
from actscope.studies.introspection import emergence, patching, rows, self_other, surface_internal
from actscope.studies.introspection.analysis_inputs import inputs_of
from actscope.studies.introspection.cautions import cautions
from actscope.studies.introspection.collect import collect
from actscope.studies.introspection.comparison import compare
from actscope.studies.introspection.data import open_collection
from actscope.studies.introspection.directions import confidence_directions
from actscope.studies.introspection.figures import comparison_figures
from actscope.studies.introspection.params import AnalysisParams, CollectParams
from actscope.studies.introspection.ranges import AnotherRangeError
from actscope.studies.introspection.replay import Replay, source_of_model
from actscope.studies.introspection.report import comparison_section, write_page

QUICK = AnalysisParams(shuffles=4, pairs=5, steered=6)


def estimate(value, spread=0.01):
    return Estimate(value, value - spread, value + spread, 50)


def curve(values, control=0.1):
    scores = tuple(RidgeScore(v, v - 0.01, v + 0.01, control, 0.0, 50) for v in values)
    return RidgeCurve(tuple(range(len(values))), scores, control, np.tile(values, (9, 1)), 50, 5, 9)


@pytest.mark.parametrize(
    ("values", "said"),
    [
        ([0.0, 0.5, 0.6], "read from block 1 on"),
        ([0.0, 0.5, 0.05], "read after block 1 alone"),
        ([0.0, 0.05, 0.02], "read nowhere above its control"),
    ],
)
def test_a_signal_that_is_gone_at_the_end_was_still_there(values, said):
    found = emergence._title(curve(values), curve(values), curve(values))
    assert found.startswith(f"Entropy can be {said} (")
    [row] = emergence._table({"entropy": curve(values)}, "").rows
    assert f"read {row[-1]}" == said  # the table says what the headline says


def test_nothing_is_said_to_come_first_where_one_is_not_read():
    read, noise, below = curve([0.0, 0.5, 0.6]), curve([0.0, 0.05, 0.02]), curve([-0.1, -0.2, -0.1])
    assert emergence.lag(read, read).value == 0
    for nothing in (noise, below):
        assert emergence.lag(read, nothing) is None and emergence.lag(nothing, read) is None
    said = emergence._lagged({"when it is stated": None})
    assert "cannot be placed" in said and "nan" not in said
    both = emergence._lagged({"a": None, "b": emergence.lag(read, curve([0.4, 0.5, 0.6]))})
    assert "earlier" in both and "taken as straight" in both


@pytest.mark.parametrize(
    ("found", "said"),
    [
        ((-1.41, -1.76, -0.98), "earlier by 1.41 blocks (0.98 to 1.76)"),
        ((0.5, 0.25, 0.75), "later by 0.50 blocks (0.25 to 0.75)"),
        ((-0.2, -0.6, 0.1), "earlier by 0.20 blocks (0.60 earlier to 0.10 later)"),
        ((0.1, -0.9, -0.3), "later by 0.10 blocks (0.90 earlier to 0.30 earlier)"),
    ],
)
def test_a_lag_has_one_sign(found, said):
    text = emergence._lagged({"when it is stated": Estimate(*found, 50)})
    assert f"half of its maximum {said}." in text
    assert "by -" not in text and "by +" not in text


@pytest.mark.parametrize(
    ("questions", "refits", "said"),
    [
        (199, 200, ["199 questions are few"]),
        (200, 199, ["199 refits are few"]),
        (60, 20, ["60 questions are few", "20 refits are few"]),
        (200, 200, []),
    ],
)
def test_few_questions_and_few_refits_are_said_to_be_few(questions, refits, said):
    found = cautions(questions, refits)
    assert len(found) == len(said)
    assert all(sentence.startswith(begin) for sentence, begin in zip(found, said, strict=True))


@pytest.mark.parametrize(
    ("text", "letter"),
    [
        ("B", "B"), (" B\n", "B"), ("(C)", "C"), ("**D** tin", "D"), ("B) tin", "B"),
        ("B. tin", "B"), ("_B_", "B"), ("I think B", "B"), ("B\nbecause", "B"), ("A, or so", "A"),
        ("The answer is B because", "B"), ("Not A. The answer is B because", "B"),
        ("Answer: (C) tin", "C"), ("answer:D", "D"), ("The answer\nis: B tin", "B"),
        ("A good question", None), ("A tin", None), ("A's", None), ("A-list", None),
        ("D'accord", None), ("Because", None), ("b", None), ("E", None), ("", None),
        ("A good question. C.", "C"),
    ],
)  # fmt: skip
def test_an_article_is_no_answer(text, letter):
    assert rows._letter_in(text, "ABCD") == letter


ADDED = (
    "    actscope introspect collect --offset 30 --num-questions 10 --output-dir run-more\n"
    "    actscope introspect merge run run-more --output-dir run-whole"
)


@pytest.mark.parametrize(
    ("asked", "differs", "step"),
    [
        ((0, 40), "questions.stop: stored 30, asked for 40", ADDED),
        ((30, 40), "questions.start: stored 0, asked for 30", ADDED),
        ((0, 20), "questions.stop: stored 30, asked for 20", "--offset 0 --num-questions 30 asks"),
        ((35, 40), "questions.start: stored 0, asked for 35", "needs another --output-dir"),
    ],
)
def test_another_range_is_told_from_another_spec(asked, differs, step):
    error = AnotherRangeError(Path("run"), UnitPlan(0, 30, 8), UnitPlan(*asked, 8))
    assert str(error).startswith("run holds a run of another range; what differs:\n")
    assert differs in str(error) and step in error.next_step
    assert len(error.differences) == sum(a != b for a, b in zip((0, 30), asked, strict=True))


def patched(value, difference):
    one = estimate(value)
    return patching.Patched(one, one, estimate(difference), one, one, one, one)


@pytest.mark.parametrize(
    ("found", "said"),
    [
        ({0: (0, 0), 1: (0.3, 0.2), 2: (0.6, 0.2), 3: (1, 0.5)},
         "from block 1 on patches move it further than a random question’s, and more than half of "
         "the way from block 2 on"),
        ({0: (0, 0), 1: (0.6, 0.2), 2: (0.1, 0), 3: (1, 0.5)}, "after block 1 patches move it"),
        ({0: (0, 0), 1: (0, 0), 2: (0.1, 0), 3: (1, 0.5)}, "No patch at the answer position"),
        ({3: (1, 0.5)}, "covered anyway"),
    ],
)  # fmt: skip
def test_what_holds_by_construction_is_no_finding(found, said):
    title = patching._title({a: patched(*numbers) for a, numbers in found.items()}, last=3)
    assert said in title
    if "from block" not in said:
        assert "half of the way" not in title


def gain(value):
    return surface_internal.Gain({}, estimate(value))


def test_an_interval_with_zero_is_no_proof_of_nothing():
    title = surface_internal._title
    assert title({"a": gain(0.5), "b": gain(0)}).endswith("about a; no clear gain for b")
    assert title({"b": gain(0)}) == "No clear gain of activations over the surface for b"
    assert title({}).startswith("No target varies")


@pytest.fixture(scope="module")
def model():
    return actscope.load_model("demo", adapters={"demo-lora": "demo-lora"})


@pytest.fixture(scope="module")
def run(model, tmp_path_factory):
    out = tmp_path_factory.mktemp("wording") / "one"
    collect(model, CollectParams(out, num_questions=42, layers=(1, 3), unit_size=41))
    return out


def test_the_report_counts_what_was_collected_and_names_its_blocks(model, run, tmp_path):
    whole = open_collection(run)[0]
    text = write_page(whole, (), tmp_path / "whole.html").read_text()
    assert "42 questions of demo:mcq/marren, each" in text and "after block 1, 3 at" in text
    [second] = (run / "units").glob("000000041-*.json")
    kept = second.read_bytes()
    second.unlink()
    part = write_page(open_collection(run)[0], (), tmp_path / "part.html").read_text()
    second.write_bytes(kept)
    assert "41 questions of demo:mcq/marren (1 more of its range" in part


def test_the_head_of_the_report_names_the_models_and_what_is_few(model, run, tmp_path):
    base = open_collection(run)[0]
    with model.adapter("demo-lora"):
        collect(model, CollectParams(tmp_path / "tuned", num_questions=42, layers=(1,)))
    found = compare(base, open_collection(tmp_path / "tuned")[0])
    page = tmp_path / "page.html"
    text = write_page(base, (), page, found, cautions(42, 10)).read_text()
    head, _, rest = text.partition("</header>")
    assert (
        "The model is demo without an adapter; it is compared with demo with the adapter " in head
    )
    assert f"{base.config['base_model']} with the adapter demo-lora@" in head
    warned, _, rest = rest.partition("</section>")
    assert "42 questions are few" in warned and "10 refits are few" in warned
    assert "are few" not in rest
    alone = write_page(base, (), page).read_text()
    assert "The model is demo without an adapter. 42 questions" in alone and "few" not in alone


def test_patches_of_some_blocks_say_nothing_of_the_last(model, run):
    inputs = inputs_of(open_collection(run)[0])
    replay = Replay(model, open_collection(run)[0])
    found = patching.causal_patching(inputs, replay, QUICK, lambda name: None)
    assert "by construction" not in found.paragraph
    by_block = found.numbers["by_block"]
    best = max(by_block, key=lambda a: by_block[a]["difference"]["value"])
    assert f"After block {best} this covers" in found.paragraph


def test_the_block_to_steer_is_not_the_one_that_is_unembedded(model, tmp_path):
    collect(model, CollectParams(tmp_path / "run", num_questions=42, layers=(4, 5)))
    collection = open_collection(tmp_path / "run")[0]
    found = confidence_directions(
        inputs_of(collection), Replay(model, collection), QUICK, lambda name: None
    )
    swing = {
        a: by["+1"]["effect"]["value"] - by["-1"]["effect"]["value"]
        for a, by in found.numbers["steering"].items()
    }
    assert swing["5"] > swing["4"]  # else this would show nothing
    assert found.numbers["best_block"] == 4
    assert "before the last block" in found.paragraph


def test_two_runs_of_one_name_stay_two(model, run, tmp_path):
    other = tmp_path / "one"
    collect(model, CollectParams(other, num_questions=42, layers=(1,)))
    found = compare(open_collection(run)[0], open_collection(other)[0])
    assert found.names == (str(run), str(other))
    labels = comparison_figures(found)["reliability"].legends[0].get_texts()
    assert len(labels) == 2
    same = compare(open_collection(run)[0], open_collection(run)[0])
    assert len(set(same.names)) == 2
    assert "cannot be told apart" in comparison_section(same).title


def test_a_comparison_says_what_else_differs(model, run, tmp_path):
    other = CollectParams(
        tmp_path / "general", num_questions=6, layers=(1,), templates="general",
        generate=GenerationParams(2),
    )  # fmt: skip
    collect(model, other)
    found = compare(open_collection(run)[0], open_collection(other.output_dir)[0])
    said = " ".join(found.caveats)
    assert "templates differ" in said and "stem" in said and "sampled" in said
    assert found.to_json()["caveats"] == list(found.caveats)
    assert all(one in comparison_section(found).caption for one in found.caveats)
    with model.adapter("demo-lora"):
        tuned = replace(other, output_dir=tmp_path / "tuned", templates=None, generate=None)
        collect(model, tuned)
    assert compare(open_collection(run)[0], open_collection(tuned.output_dir)[0]).caveats == ()


def test_a_question_under_two_ids_is_in_one_fold(run):
    whole = open_collection(run)[0]
    assert inputs_of(whole).groups == list(whole["mcq"].ids)
    whole["mcq"].rows[7].update({k: whole["mcq"].rows[2][k] for k in ("question_text", "options")})
    groups = inputs_of(whole).groups
    assert groups[7] == groups[2] == whole["mcq"].ids[2]
    assert len(set(groups)) == len(whole["mcq"]) - 1


def test_the_model_is_loaded_again_as_it_was_collected(run):
    whole = open_collection(run)[0]
    source = source_of_model(whole)
    assert (source.model, source.adapter, source.revision) == ("demo", None, None)
    assert source.dtype == whole.config["spec"]["model"]["dtype"]
    whole.config["spec"]["model"].update(revision="a" * 40, dtype="bfloat16")
    again = source_of_model(whole)
    assert (again.revision, again.dtype) == ("a" * 40, "bfloat16")


def test_a_surface_that_misleads_is_no_gain_of_the_activations():
    """Held-out R² of a useless surface is below 0; without it there would be 0."""
    rng = np.random.default_rng(1)
    target = rng.normal(size=60)
    inside = [np.column_stack([target, rng.normal(size=(60, 3))])]
    folds = [np.arange(60)[i::4] for i in range(4)]
    misled = np.where(np.arange(60) % 4 == 0, -target, target)  # one fold is unlike the others
    found = surface_internal.gain(misled[:, None], inside, target, folds)
    assert found.r2["surface"].value < 0
    assert found.partial.value == pytest.approx(found.r2["both"].value)
    assert found.partial.high <= 1


def test_what_no_probe_reads_is_not_told_apart():
    def decoding(own, spread):
        read, crossed = estimate(own, spread), estimate(-0.1)
        return self_other.Decoding(read, read, crossed, crossed, estimate(own + 0.1, 0.05))

    title = self_other._title({0: decoding(0.3, 0.4), 1: decoding(0.9, 0.1)}, estimate(0.0))
    assert "told apart after block 1:" in title
    nothing = self_other._title({0: decoding(0.3, 0.4)}, estimate(0.0))
    assert nothing.startswith("No block where both are read clearly tells")
    every = self_other._title({1: decoding(0.9, 0.1)}, estimate(0.0))
    assert "told apart after every block" in every
