"""The analyses: planted signals are found where they were put, and nowhere else; interventions
are those of plain hooks."""

import json
from dataclasses import replace

import introspection_loop as loop
import numpy as np
import pytest
import torch

import actscope
from actscope.analysis.ridge import group_folds
from actscope.core.errors import BadInputError, DamagedRunError, RunMismatchError
from actscope.studies.introspection.analysis_inputs import Inputs, inputs_of
from actscope.studies.introspection.collect import collect
from actscope.studies.introspection.comparison import compare
from actscope.studies.introspection.data import open_collection
from actscope.studies.introspection.directions import confidence_directions, high_and_low
from actscope.studies.introspection.emergence import half_depth, probe_emergence
from actscope.studies.introspection.inspection import inspect_pass
from actscope.studies.introspection.params import AnalysisParams, CollectParams
from actscope.studies.introspection.patching import causal_patching, pairs_of
from actscope.studies.introspection.replay import Replay
from actscope.studies.introspection.self_other import decode, self_versus_other
from actscope.studies.introspection.surface_internal import gain, surface_versus_internal

N, D = 120, 24
QUICK = AnalysisParams(shuffles=12, pairs=6, steered=8)


def silent(name):
    pass


class Planted:
    """Stands for a collection: activations that were made, not captured."""

    def __init__(self, rows):
        self.rows = rows
        self.passes = dict.fromkeys(("mcq", "self_confidence", "other_confidence"), self)


class PlantedInputs(Inputs):
    def rows(self, name, layer):
        return self.collection.rows[name][layer]


@pytest.fixture(scope="module")
def planted():
    """Letters from block 1, entropy from block 2, confidence from block 3 on; self is not other."""
    rng = np.random.default_rng(0)
    entropy, own, others = rng.normal(size=(3, N))
    letters = rng.normal(size=(N, 4))
    surface = np.column_stack([others + 0.1 * rng.normal(size=N), rng.normal(size=N)])
    places = {name: rng.normal(size=(D,)) for name in ("entropy", "own", "others")}
    spread = rng.normal(size=(4, D))
    rows = {}
    for name in ("mcq", "self_confidence", "other_confidence"):
        rows[name] = {}
        for layer in range(5):
            noise = rng.normal(size=(N, D))
            if layer >= 1:
                noise += 2 * letters @ spread
            if layer >= 2:
                noise += 2 * np.outer(entropy, places["entropy"])
            if layer >= 3 and name != "other_confidence":
                noise += 2 * np.outer(own, places["own"])
            if layer >= 3 and name == "other_confidence":
                noise += 2 * np.outer(others, places["others"])
            rows[name][layer] = noise
    return PlantedInputs(
        collection=Planted(rows),
        groups=[f"q{i}" for i in range(N)],
        layers=tuple(range(5)),
        entropy=entropy,
        correct=entropy < 0,
        own=own,
        others=others,
        letters=letters - letters.mean(axis=1, keepdims=True),
        surface=surface,
        surface_names=("near others", "nothing"),
    )


def test_signals_emerge_where_they_were_planted(planted):
    found = probe_emergence(planted, QUICK, silent)
    assert found.numbers["emerges_after_block"] == {
        "entropy": 2, "correctness": 2, "confidence": 3,
    }  # fmt: skip
    lag = found.numbers["lag_in_blocks"]["before it is asked"]
    assert 1 < lag["low"] <= lag["value"] <= lag["high"] < 3
    assert "from block 2 on" in found.title and "R² 0.9" in found.paragraph


@pytest.mark.parametrize(
    ("values", "depth"),
    [([0, 0.2, 0.6, 1.0], 1.75), ([1.0, 1.0], -0.5), ([-1, -0.5, 0.4, 0.3], 1.5), ([-1, 0], None)],
)
def test_half_depth_is_linear_between_blocks(values, depth):
    found = half_depth(tuple(range(len(values))), values)
    assert np.isnan(found) if depth is None else found == pytest.approx(depth)


def test_activations_add_to_the_surface_only_what_the_surface_lacks(planted):
    finding = surface_versus_internal(planted, QUICK, silent)
    assert "So what is read there may have no clear gain here" in finding.paragraph
    assert "a surface fit worse than the mean counts as 0 in the gain" in finding.paragraph
    found = finding.numbers
    assert found["entropy"]["partial_gain"]["low"] > 0.5
    assert found["entropy"]["r2"]["surface"]["high"] < 0.2
    assert found["other-confidence"]["r2"]["surface"]["low"] > 0.9
    assert found["other-confidence"]["partial_gain"]["high"] < 0.05
    noise = [np.random.default_rng(9).normal(size=(N, D))]
    nothing = gain(planted.surface, noise, planted.others, group_folds(planted.groups))
    assert nothing.partial.high < 0.05


def test_self_and_other_are_told_apart_only_where_they_differ(planted):
    finding = self_versus_other(planted, QUICK, silent)
    assert "The gap also contains the shift between the two prompts" in finding.paragraph
    found = finding.numbers
    best = str(found["best_block"])
    assert int(best) >= 3
    assert found["decoding_r"][best]["gap"]["low"] > 0.3
    assert abs(found["cosine_of_directions"]["4"]["value"]) < 0.6
    folds = group_folds(planted.groups)
    rows = planted.rows("self_confidence", 4)
    shared = rows + 0.1 * np.random.default_rng(3).normal(size=rows.shape)
    same = decode(rows, planted.own, shared, planted.own, folds)
    assert same.own.value > 0.9 and abs(same.gap.value) < 0.05


@pytest.mark.parametrize("right", [True, False])
def test_one_kind_of_answer_leaves_correctness_out_and_everything_else_in(planted, right):
    both, only = planted, replace(planted, correct=np.full(N, right))
    why = f"every answer is {'right' if right else 'wrong'}"
    found, whole = (probe_emergence(one, QUICK, silent) for one in (only, both))
    assert found.title.endswith(f"correctness is not defined: {why}")
    assert f"Correctness is not defined: {why}." in found.paragraph
    assert {row[0]: row[-1] for row in found.tables[0].rows}["correctness"] == f"not defined: {why}"
    assert found.numbers["correctness"] is found.numbers["emerges_after_block"]["correctness"]
    assert found.numbers["correctness"] is None and whole.numbers["correctness"] is not None
    for name in ("entropy", "confidence", "confidence_when_stated", "lag_in_blocks"):
        assert found.numbers[name] == whole.numbers[name]
    found, whole = (surface_versus_internal(one, QUICK, silent) for one in (only, both))
    assert f"correctness is not defined: {why}" in found.paragraph
    assert {**found.numbers, "correctness": whole.numbers["correctness"]} == whole.numbers
    assert "correctness" not in found.numbers


def test_high_and_low_are_the_outer_thirds():
    values = np.array([5.0, 1, 9, 3, 7, 2])
    high, low = high_and_low(values, np.arange(6))
    assert (sorted(high.tolist()), sorted(low.tolist())) == ([2, 4], [1, 5])
    with pytest.raises(BadInputError, match="does not vary"):
        high_and_low(np.full(9, 50.0), np.arange(9))


@pytest.fixture(scope="module")
def model():
    return actscope.load_model("demo", adapters={"demo-lora": "demo-lora"})


@pytest.fixture(scope="module")
def collections(model, tmp_path_factory):
    out = tmp_path_factory.mktemp("introspect")
    for name, adapter in (("base", None), ("finetuned", "demo-lora")):
        with model.adapter(adapter):
            collect(model, CollectParams(out / name, num_questions=48, dtype="float32"))
    return {name: open_collection(out / name)[0] for name in ("base", "finetuned")}


@torch.no_grad()
def stated(plain, tokenizer, message, block, change):
    """Stated confidence by a plain hook on the last token of one block's output."""
    turns = [{"role": "user", "content": message}]
    prompt = tokenizer.apply_chat_template(turns, tokenize=False, add_generation_prompt=True)
    ids = tokenizer(prompt, add_special_tokens=False, return_tensors="pt").input_ids
    seen = []

    def hook(module, args, output):
        rows = output[0] if isinstance(output, tuple) else output
        seen.append(rows[0, -1].clone())
        rows = rows.clone()
        rows[0, -1] = change(rows[0, -1])
        return (rows, *output[1:]) if isinstance(output, tuple) else rows

    handle = loop.blocks_of(plain)[block].register_forward_hook(hook)
    logits = plain(input_ids=ids).logits[0, -1].double()
    handle.remove()
    tokens = [tokenizer.encode(x, add_special_tokens=False) for x in "ABCDEFGH"]
    chosen = torch.stack([logits[t[0]] for t in tokens]).softmax(0)
    return float(chosen @ torch.tensor(loop.MIDPOINTS, dtype=torch.float64)), seen[0]


def message_of(collection, place):
    text = collection["self_confidence"].rows[place]["prompt_text"]
    return text.partition("<|user|>")[2].partition("<|end|>")[0]


def test_patches_are_those_of_plain_hooks(model, collections):
    collection = collections["base"]
    inputs = inputs_of(collection)
    found = causal_patching(inputs, Replay(model, collection), QUICK, silent)
    target, source, random = pairs_of(inputs, QUICK)
    plain, tokenizer = loop.plain_model(adapter=False)
    block, n = 2, QUICK.pairs
    before, after, chance, goal = [], [], [], []
    for i, (t, s, r) in enumerate(zip(target, source, random, strict=True)):
        assert t not in (s, r)
        here, there, anywhere = (message_of(collection, int(p)) for p in (t, s, r))
        wanted, row = stated(plain, tokenizer, there, block, lambda x: x)
        _, other = stated(plain, tokenizer, anywhere, block, lambda x: x)
        before.append(stated(plain, tokenizer, here, block, lambda x: x)[0])
        after.append(stated(plain, tokenizer, here, block, lambda x, row=row: row)[0])
        chance.append(stated(plain, tokenizer, here, block, lambda x, row=other: row)[0])
        goal.append(wanted)
        assert (wanted > before[-1]) == (i < n)
    before, after, chance, goal = map(np.array, (before, after, chance, goal))
    sign = np.sign(goal - before)
    distance = np.abs(goal - before).sum()
    numbers = found.numbers["by_block"][str(block)]
    assert numbers["restored"]["value"] == pytest.approx(
        float((sign * (after - before)).sum() / distance), abs=1e-3
    )
    assert numbers["control"]["value"] == pytest.approx(
        float((sign * (chance - before)).sum() / distance), abs=1e-3
    )
    assert numbers["raised"]["value"] == pytest.approx((after - before)[:n].mean(), abs=0.02)
    assert found.numbers["by_block"]["5"]["restored"]["value"] == pytest.approx(1, abs=1e-4)


def test_steering_is_that_of_plain_hooks(model, collections):
    collection = collections["base"]
    inputs = inputs_of(collection)
    found = confidence_directions(inputs, Replay(model, collection), QUICK, silent).numbers
    order = np.random.default_rng([0, 3]).permutation(len(inputs))
    training, steered = order[:24], np.sort(order[24:32])
    ranked = training[np.argsort(inputs.own[training], kind="stable")]
    rows = collection["self_confidence"].answers(2)
    direction = torch.tensor(rows[ranked[-8:]].mean(axis=0) - rows[ranked[:8]].mean(axis=0))
    plain, tokenizer = loop.plain_model(adapter=False)
    moved = []
    for place in steered:
        message = message_of(collection, int(place))
        before, _ = stated(plain, tokenizer, message, 2, lambda x: x)
        after, _ = stated(plain, tokenizer, message, 2, lambda x: x + direction.float())
        moved.append(after - before)
    assert found["steering"]["2"]["+1"]["effect"]["value"] == pytest.approx(
        np.mean(moved), abs=0.02
    )
    assert found["distance_of_means"]["2"] == pytest.approx(float(direction.norm()), rel=1e-4)


def test_a_comparison_joins_by_id_and_its_figures_are_a_plain_loops(collections, model, tmp_path):
    found = compare(collections["base"], collections["finetuned"])
    for side, name in (("one", "base"), ("other", "finetuned")):
        mcq, own = (collections[name][p].rows for p in ("mcq", "self_confidence"))
        hits = [row["is_correct"] for row in mcq]
        assert getattr(found.measure("accuracy"), side).value == pytest.approx(np.mean(hits))
        gaps = np.zeros(10)
        for row, hit in zip(own, hits, strict=True):
            gaps[min(int(row["self_confidence"] / 10), 9)] += row["self_confidence"] / 100 - hit
        assert getattr(found.measure("ECE"), side).value == pytest.approx(np.abs(gaps).sum() / 48)
    ece = found.measure("ECE")
    assert ece.difference.value == pytest.approx(ece.other.value - ece.one.value)
    assert ece.difference.value < 0
    a, b = (collections[n]["mcq"].answers(3) for n in ("base", "finetuned"))
    cosines = [x @ y / np.linalg.norm(x) / np.linalg.norm(y) for x, y in zip(a, b, strict=True)]
    assert found.likeness[0].cosine[3] == pytest.approx(np.mean(cosines), rel=1e-9)
    collect(model, CollectParams(tmp_path / "part", offset=40, num_questions=20, dtype="float32"))
    part = open_collection(tmp_path / "part")[0]
    overlap = compare(collections["base"], part)
    assert overlap.n == 8
    assert overlap.measure("entropy (nats)").difference.value == pytest.approx(0, abs=1e-4)
    assert overlap.likeness[1].cka[-1] == pytest.approx(1, abs=1e-4)
    collect(model, CollectParams(tmp_path / "other", num_questions=4, seed=5))
    with pytest.raises(BadInputError, match="differs between the two in its options"):
        compare(collections["base"], open_collection(tmp_path / "other")[0])
    collect(model, CollectParams(tmp_path / "far", offset=100, num_questions=4))
    with pytest.raises(BadInputError, match="share no question"):
        compare(collections["base"], open_collection(tmp_path / "far")[0])


def test_inspection_finds_what_is_wrong(model, tmp_path):
    collect(model, CollectParams(tmp_path / "run", num_questions=6, unit_size=2))
    whole, chosen = open_collection(tmp_path / "run" / "self_conf")
    assert chosen is not None and chosen.name == "self_confidence"
    found = inspect_pass(whole, whole["self_confidence"])
    assert (found.n, found.problems, sum(found.confidence.values())) == (6, [], 6)
    layer = tmp_path / "run" / "mcq" / "activations_layer_02.npy"
    mapped = np.load(layer, mmap_mode="r+")
    mapped[1, -1, 3] = np.nan
    mapped[2] = 0
    mapped.flush()
    unit = tmp_path / "run" / "units" / "000000002-000000004.json"
    record = json.loads(unit.read_text())
    record["rows"]["mcq"][1]["question_id"] = "marren_001"
    record["rows"]["mcq"][0]["entropy"] = 0.5
    record["rows"]["mcq"][0]["logits"][0] = float("nan")
    unit.write_text(json.dumps(record))
    (tmp_path / "run" / "units" / "000000004-000000006.json").unlink()
    broken = open_collection(tmp_path / "run")[0]
    said = "\n".join(inspect_pass(broken, broken["mcq"]).problems)
    for part in (
        "marren_001 is there 2 times", "2 questions of the range are not", "1 rows have logits",
        "layer 2 has 1 values not finite", "layer 2 has 1 questions of zeros",
    ):  # fmt: skip
        assert part in said, said


def test_what_cannot_be_analysed_is_refused(model, collections, tmp_path):
    collect(model, CollectParams(tmp_path / "few", num_questions=10))
    with pytest.raises(BadInputError, match="at least so many questions") as error:
        inputs_of(open_collection(tmp_path / "few")[0])
    assert "collect --offset 10 --num-questions 30 " in error.value.next_step
    with pytest.raises(RunMismatchError, match="adapter"):
        Replay(model, collections["finetuned"])
    with pytest.raises(BadInputError, match="is no collection"):
        open_collection(tmp_path)
    replay = Replay(model, collections["base"])
    with (
        model.intervene(actscope.Add(np.ones(model.d_model), layer=4, strength=20.0)),
        pytest.raises(DamagedRunError, match="another confidence"),
    ):
        replay.check("self_confidence", [0, 1])
    (tmp_path / "few" / "mcq" / "activations_layer_00.npy").unlink()
    with pytest.raises(DamagedRunError, match=r"layer_00\.npy is missing"):
        open_collection(tmp_path / "few")[0]["mcq"].answers(0)
