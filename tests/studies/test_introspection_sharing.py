"""What the passes of a question have in common is computed once, and nothing else changes."""

import json

import numpy as np
import pytest

import actscope
from actscope.capture.batches import batches_of
from actscope.core.errors import RunMismatchError, UnknownNameError
from actscope.studies.introspection.collect import collect, dry_run
from actscope.studies.introspection.job import resolve
from actscope.studies.introspection.params import CollectParams
from actscope.studies.introspection.passes import PASSES, passes_named

N = 24


class Notices:
    def __init__(self):
        self.said = []

    def started(self, total, done):
        pass

    def advanced(self, examples, tokens):
        pass

    def notice(self, text):
        self.said.append(text)


@pytest.fixture(scope="module")
def model():
    return actscope.load_model("demo", adapters={"demo-lora": "demo-lora"})


@pytest.fixture(scope="module", params=["base", "finetuned"])
def both(request, model, tmp_path_factory):
    """One collection that shares, one that does not, and the tokens each of them computed."""
    out = tmp_path_factory.mktemp(request.param)
    seen = []
    embedding = model.hf.get_input_embeddings()
    computed = {}
    with model.adapter("demo-lora" if request.param == "finetuned" else None):
        for way in ("auto", "off"):
            params = CollectParams(out / way, num_questions=N, dtype="float32", share_prefix=way)
            resolve(model, params)  # whether sharing is right has been found out before it counts
            seen.clear()
            hook = embedding.register_forward_hook(lambda m, a, o: seen.append(o[..., 0].numel()))
            collect(model, params)
            hook.remove()
            computed[way] = sum(seen)
    return out, computed


def read(folder, which, layer=None):
    if layer is None:
        return json.loads((folder / which.folder / "metadata.json").read_text())
    return np.load(folder / which.folder / f"activations_layer_{layer:02d}.npy")


@pytest.mark.parametrize("which", PASSES, ids=lambda p: p.folder)
def test_every_value_is_that_of_passes_that_share_nothing(both, which):
    out, _ = both
    for layer in range(6):
        shared, plain = (read(out / way, which, layer) for way in ("auto", "off"))
        assert shared.shape == plain.shape
        scale = np.abs(plain).max(axis=-1)
        padding = scale == 0
        assert np.array_equal(padding, np.abs(shared).max(axis=-1) == 0) and not padding.all()
        moved = np.abs(shared - plain).max(axis=-1)[~padding] / scale[~padding]
        assert moved.max() <= 1e-3
    for ours, theirs in zip(*(read(out / way, which) for way in ("auto", "off")), strict=True):
        assert ours.keys() == theirs.keys()
        for name, value in theirs.items():
            if name == which.name:  # a percentage
                assert ours[name] == pytest.approx(value, rel=1e-4)
            elif isinstance(value, float):
                assert ours[name] == pytest.approx(value, abs=1e-4), name
            elif name in ("logits", "probs"):
                np.testing.assert_allclose(ours[name], value, atol=1e-4)
            else:
                assert ours[name] == value, name


def test_the_stem_goes_through_the_model_once(both):
    out, computed = both
    lengths = {p.folder: [r["prompt_tokens"] for r in read(out / "off", p)] for p in PASSES}
    assert computed["off"] >= sum(map(sum, lengths.values()))
    assert computed["auto"] <= 0.64 * computed["off"]
    plans = [
        json.loads((out / way / "run_config.json").read_text())["plan"] for way in ("auto", "off")
    ]
    assert [plan["share_prefix"] for plan in plans] == [True, False]


def test_the_prompts_about_a_question_are_in_one_batch(model, tmp_path):
    job = resolve(model, CollectParams(tmp_path / "run", num_questions=40, unit_size=40))
    rows = [one.row for one in job.of_unit(0, 40)]
    batches = batches_of(rows, job.plan, job.groups(len(rows)))
    assert sorted(place for batch in batches for place in batch.places) == list(range(120))
    for batch in batches:
        assert batch.beginnings
        for place in batch.places:
            of_question = range(place // 3 * 3, place // 3 * 3 + 3)
            assert set(of_question) <= set(batch.places)
            ids = {tuple(rows[i].token_ids[: batch.beginnings[i]]) for i in of_question}
            assert len(ids) == 1
    half = batches[0].places[: len(batches[0].places) // 2]  # where memory does not suffice
    assert batches[0].batch(rows, half).beginnings == tuple(batches[0].beginnings[i] for i in half)


def test_where_it_cannot_be_trusted_nothing_is_shared_and_that_is_said(model, tmp_path):
    shift = actscope.Add(np.ones(model.d_model), layer=2, strength=0.1)
    notices = Notices()
    params = CollectParams(tmp_path / "run", num_questions=2)
    with model.intervene(shift):
        assert "an intervention is active" in dry_run(model, params).not_shared
        collect(model, params, notices)
    assert any("an intervention is active" in said for said in notices.said)
    plan = json.loads((tmp_path / "run" / "run_config.json").read_text())["plan"]
    assert plan["share_prefix"] is False


def test_off_is_asked_for_and_kept(model, tmp_path):
    off = CollectParams(tmp_path / "off", num_questions=4, unit_size=2, share_prefix="off")
    notices = Notices()
    collect(model, off, notices)
    assert not notices.said
    for file in sorted((tmp_path / "off" / "units").iterdir())[1:]:
        file.unlink()
    wanted = [p.read_bytes() for p in sorted((tmp_path / "off").glob("*/*.npy"))]
    again = CollectParams(tmp_path / "off", num_questions=4)
    assert dry_run(model, again).not_shared.endswith("begun with --share-prefix off")
    assert collect(model, again).captured == 2
    assert [p.read_bytes() for p in sorted((tmp_path / "off").glob("*/*.npy"))] == wanted
    collect(model, CollectParams(tmp_path / "auto", num_questions=2))
    with pytest.raises(RunMismatchError, match="share_prefix: stored 'auto', asked for 'off'"):
        collect(model, CollectParams(tmp_path / "auto", num_questions=2, share_prefix="off"))
    one = CollectParams(tmp_path / "one", num_questions=2, passes=passes_named("mcq"))
    assert dry_run(model, one).not_shared == "there is one pass"
    with pytest.raises(UnknownNameError, match="share_prefix"):
        CollectParams(tmp_path / "x", share_prefix="yes")
