"""Collections: figures against a brute-force loop, files by numpy alone, kills, resumes."""

import json
import os
import signal
import subprocess
import sys
from dataclasses import replace

import introspection_loop as brute_force
import numpy as np
import pytest

import actscope
from actscope.core.errors import BadInputError, NumericRangeError, RunMismatchError, SourceError
from actscope.core.protocols import GenerationParams
from actscope.sources.demo import demo_folder
from actscope.sources.mcq import read_questions
from actscope.studies.introspection.collect import collect, dry_run
from actscope.studies.introspection.merging import merge
from actscope.studies.introspection.params import CollectParams
from actscope.studies.introspection.passes import PASSES, letter_tokens, passes_named

INSTRUCTIONS = {
    "mcq": "Answer with one letter.",
    "self_conf": "How sure are you of your answer? Answer with a letter from A to H.",
    "other_conf": "How sure would the townsfolk be of their answer? "
    "Answer with a letter from A to H.",
}
N = 10
FIELDS = {
    "question_id", "question_text", "options", "correct_answer_letter", "model_name",
    "checkpoint_id", "prompt_type", "prompt_text", "temperature", "top_p", "max_new_tokens",
    "output_text", "parsed_answer", "logits", "probs", "entropy", "char_length", "token_length",
    "question_type", "has_negation", "has_ambiguity", "token_rarity_mean", "token_rarity_max",
}  # fmt: skip
OWN_FIELDS = {
    "mcq": {"is_correct", "logit_margin", "answer_token_index"},
    "self_conf": {"self_confidence", "confidence_token_index"},
    "other_conf": {"other_confidence", "confidence_token_index"},
}


@pytest.fixture(scope="module")
def model():
    return actscope.load_model("demo", adapters={"demo-lora": "demo-lora"})


@pytest.fixture(scope="module", params=["base", "finetuned"])
def collected(request, model, tmp_path_factory):
    """A small collection, and the plain model beside it."""
    out = tmp_path_factory.mktemp("introspect") / request.param
    tuned = request.param == "finetuned"
    with model.adapter("demo-lora" if tuned else None):
        collect(model, CollectParams(out, num_questions=N, unit_size=4, dtype="float32"))
    return out, brute_force.plain_model(tuned)


def metadata(out, folder):
    return json.loads((out / folder / "metadata.json").read_text())


@pytest.mark.parametrize("which", PASSES, ids=lambda p: p.folder)
def test_figures_and_activations_are_those_of_a_plain_loop(collected, which):
    out, (plain, tokenizer) = collected
    assert json.loads((out / "run_config.json").read_text())["plan"]["share_prefix"]
    questions = read_questions(demo_folder() / "mcq" / "marren.jsonl")[:N]
    rows = metadata(out, which.folder)
    files = sorted((out / which.folder).glob("activations_layer_*.npy"))
    acts = [np.load(file) for file in files]
    assert len(acts) == len(brute_force.blocks_of(plain)) == 6
    for q, (row, question) in enumerate(zip(rows, questions, strict=True)):
        listed = "\n".join(f"{k}) {v}" for k, v in question.options().items())
        message = f"{listed}\n{question.question}\n{INSTRUCTIONS[which.folder]}"
        logits, probs, entropy, mass, streams = brute_force.read(
            plain, tokenizer, message, which.letters
        )
        assert row["question_id"] == question.id
        np.testing.assert_allclose(row["logits"], logits, atol=1e-4)
        np.testing.assert_allclose(row["probs"], probs, atol=5e-5)
        assert row["entropy"] == pytest.approx(entropy, abs=1e-4)
        assert row["letter_mass"] == pytest.approx(mass, abs=1e-4)
        assert row["parsed_answer"] == which.letters[int(np.argmax(logits))]
        if which.name == "mcq":
            right = "ABCD".index(question.correct_letter())
            best_wrong = max(x for i, x in enumerate(logits) if i != right)
            assert row["logit_margin"] == pytest.approx(logits[right] - best_wrong, abs=1e-4)
            assert row["is_correct"] == (int(np.argmax(logits)) == right)
        else:
            expected = sum(p * m for p, m in zip(probs, brute_force.MIDPOINTS, strict=True))
            assert row[which.name] == pytest.approx(expected, rel=1e-4)
        for layer, stream in enumerate(streams):
            wanted = stream.numpy()
            np.testing.assert_allclose(acts[layer][q, -1], wanted[-1], atol=3e-4)
            np.testing.assert_allclose(acts[layer][q, -len(wanted) :], wanted, atol=3e-4)
            assert not acts[layer][q, : -len(wanted)].any()
            assert wanted[-1].any()


def test_the_layout_and_every_field_are_the_documented_ones(collected):
    out, _ = collected
    config = json.loads((out / "run_config.json").read_text())
    tuned = out.name == "finetuned"
    assert config["model_type"] == out.name
    assert bool(config["lora_checkpoint"]) == tuned
    for which in PASSES:
        rows = metadata(out, which.folder)
        assert len(rows) == N
        shape = (N, config["seq_len"][which.folder], config["d_model"])
        for layer in range(6):
            file = out / which.folder / f"activations_layer_{layer:02d}.npy"
            found = np.load(file, mmap_mode="r")
            assert (found.shape, found.dtype) == (shape, np.float32)
        for row in rows:
            assert set(row) >= FIELDS | OWN_FIELDS[which.folder]
            assert row["prompt_type"] == which.name
            assert len(row["logits"]) == len(row["probs"]) == len(which.letters)
            index = row.get("answer_token_index", row.get("confidence_token_index"))
            assert index == shape[1] - 1
            assert row["prompt_text"].endswith("<|assistant|>")
            assert row["checkpoint_id"].startswith("demo-lora@" if tuned else "values:")


def test_base_and_finetuned_runs_ask_the_same(model, tmp_path):
    for name, adapter in (("a", None), ("b", "demo-lora")):
        with model.adapter(adapter):
            collect(model, CollectParams(tmp_path / name, num_questions=3))
    one, two = (metadata(tmp_path / name, "mcq") for name in ("a", "b"))
    assert [r["prompt_text"] for r in one] == [r["prompt_text"] for r in two]
    assert [r["logits"] for r in one] != [r["logits"] for r in two]
    assert np.load(tmp_path / "a" / "mcq" / "activations_layer_00.npy").dtype == np.float16


def test_runs_over_other_ranges_have_one_fingerprint_and_the_same_rows(model, tmp_path):
    collect(model, CollectParams(tmp_path / "all", num_questions=6, dtype="float32"))
    part = CollectParams(tmp_path / "part", offset=4, num_questions=2, dtype="float32")
    collect(model, part)
    configs = [json.loads((tmp_path / n / "run_config.json").read_text()) for n in ("all", "part")]
    assert configs[0]["fingerprint"] == configs[1]["fingerprint"]
    for folder in ("mcq", "other_conf"):
        whole, tail = metadata(tmp_path / "all", folder)[4:], metadata(tmp_path / "part", folder)
        for a, b in zip(whole, tail, strict=True):
            assert a["question_id"] == b["question_id"]
            assert a["token_logfreq_mean"] == b["token_logfreq_mean"]
            np.testing.assert_allclose(a["logits"], b["logits"], atol=2e-4)
        acts = [
            np.load(tmp_path / n / folder / "activations_layer_03.npy") for n in ("all", "part")
        ]
        np.testing.assert_allclose(acts[0][4:, -1], acts[1][:, -1], atol=3e-4)


def test_collections_of_neighbouring_ranges_merge(model, tmp_path):
    """From question 257 on prompts are longer, so one part has to be padded anew."""
    collect(model, CollectParams(tmp_path / "all", offset=251, num_questions=12))
    lengths = set()
    for name, offset, count in (("a", 251, 6), ("b", 257, 6)):
        collect(model, CollectParams(tmp_path / name, offset=offset, num_questions=count))
        lengths.add(json.loads((tmp_path / name / "run_config.json").read_text())["seq_len"]["mcq"])
    assert len(lengths) == 2
    merge([tmp_path / "b", tmp_path / "a"], tmp_path / "merged")
    for which in PASSES:
        ours, whole = (metadata(tmp_path / n, which.folder) for n in ("merged", "all"))
        for a, b in zip(ours, whole, strict=True):
            assert a["question_id"] == b["question_id"]
            assert a["first_token_index"] == b["first_token_index"]
            np.testing.assert_allclose(a["logits"], b["logits"], atol=2e-4)
        for layer in (0, 5):
            acts = [
                np.load(tmp_path / n / which.folder / f"activations_layer_{layer:02d}.npy")
                for n in ("merged", "all")
            ]
            assert acts[0].shape == acts[1].shape
            np.testing.assert_allclose(
                acts[0].astype(np.float32), acts[1].astype(np.float32), atol=0.02
            )
    with pytest.raises(BadInputError, match="do not follow"):
        merge([tmp_path / "a", tmp_path / "a"], tmp_path / "no")
    collect(model, CollectParams(tmp_path / "c", offset=263, num_questions=2, seed=3))
    with pytest.raises(RunMismatchError, match="seed"):
        merge([tmp_path / "a", tmp_path / "c"], tmp_path / "no")
    with pytest.raises(BadInputError, match="not empty"):
        merge([tmp_path / "a", tmp_path / "b"], tmp_path / "merged")
    with pytest.raises(BadInputError, match="at least two"):
        merge([tmp_path / "a"], tmp_path / "no")


@pytest.mark.parametrize("point", ["data.synced:2", "data.renamed:2", "data.half-written:3"])
def test_a_kill_loses_at_most_a_unit_and_resuming_gives_the_same_bytes(tmp_path, model, point):
    wanted, out = tmp_path / "wanted", tmp_path / "killed"
    collect(model, CollectParams(wanted, num_questions=9, unit_size=3))
    command = [
        sys.executable, "-m", "actscope.cli.main", "introspect", "collect", "--num_questions", "9",
        "--unit_size", "3", "--output_dir", str(out),
    ]  # fmt: skip
    environment = {**os.environ, "HF_HUB_OFFLINE": "1"}
    killed = subprocess.run(
        command, env=environment | {"ACTSCOPE_FAIL_AT": point}, capture_output=True, check=False
    )
    assert killed.returncode == -signal.SIGKILL
    safe = len([p for p in (out / "units").glob("*.json") if not p.name.startswith(".tmp")])
    assert safe >= 1
    done = collect(model, CollectParams(out, num_questions=9, unit_size=3))
    assert (done.captured, done.resumed) == (9 - 3 * safe, 3 * safe)
    for file in sorted(wanted.glob("*/activations_layer_*.npy")):
        assert (out / file.relative_to(wanted)).read_bytes() == file.read_bytes()
    for which in PASSES:
        assert metadata(out, which.folder) == metadata(wanted, which.folder)


def test_a_resume_with_another_option_names_what_differs(model, tmp_path):
    params = CollectParams(tmp_path / "run", num_questions=3)
    collect(model, params)
    for changed, said in (
        ({"dtype": "float32"}, "dtype: stored 'float16', asked for 'float32'"),
        ({"seed": 1}, "seed: stored 0, asked for 1"),
        ({"num_questions": 4}, "questions.stop: stored 3, asked for 4"),
        ({"layers": (0, -1)}, "layers: stored"),
        ({"templates": "general"}, "templates.stem"),
        ({"batch_size": 2}, "batch_size: stored None, asked for 2"),
        ({"share_prefix": "off"}, "share_prefix: stored 'auto', asked for 'off'"),
        ({"dataset": "demo:mcq/general"}, "questions: stored"),
        ({"passes": passes_named("mcq")}, "passes: stored"),
    ):
        with pytest.raises(RunMismatchError) as error:
            collect(model, replace(params, **changed))
        assert said in str(error.value)
    with model.adapter("demo-lora"), pytest.raises(RunMismatchError, match=r"model\.adapter"):
        collect(model, params)
    assert collect(model, params).captured == 0


def test_a_dry_run_counts_and_writes_nothing(model, tmp_path):
    params = CollectParams(tmp_path / "run", num_questions=5)
    budget = dry_run(model, params)
    assert not (tmp_path / "run").exists()
    collect(model, params)
    for folder, size in budget.bytes.items():
        files = list((tmp_path / "run" / folder).glob("*.npy"))
        assert sum(f.stat().st_size for f in files) == size + 128 * len(files)
    assert budget.tokens["mcq"] == sum(
        r["prompt_tokens"] for r in metadata(params.output_dir, "mcq")
    )
    assert budget.shared >= 0.6
    assert dry_run(model, replace(params, templates=None)).done == 1


def test_both_template_sets_share_most_of_their_tokens(model, tmp_path):
    for name in ("marren", "general"):
        params = CollectParams(tmp_path / name, num_questions=40, templates=name)
        assert dry_run(model, params).shared >= 0.6, name


def test_sampled_answers_are_told_from_letters(model, tmp_path):
    sampled = CollectParams(tmp_path / "run", num_questions=3, generate=GenerationParams(4, 0.7))
    collect(model, sampled)
    for row in metadata(tmp_path / "run", "mcq"):
        assert row["output_source"] == "sampled text" and row["max_new_tokens"] == 4
        assert row["parsed_answer"] in (None, "A", "B", "C", "D")
        assert row["is_correct"] == (row["parsed_answer"] == row["correct_answer_letter"])


def test_values_that_float16_cannot_hold_stop_before_anything_is_written(model, tmp_path):
    huge = actscope.Add(np.ones(model.d_model), layer=2, strength=2e6)
    params = CollectParams(tmp_path / "run", num_questions=2)
    with (
        model.intervene(huge),
        pytest.raises(NumericRangeError, match="layer 2") as error,
    ):
        collect(model, params)
    assert "--dtype float32" in str(error.value) and "marren_001/mcq" in str(error.value)
    assert not list((tmp_path / "run" / "units").iterdir())


class TestBadInput:
    def test_fewer_than_three_distractors_and_an_empty_question(self, model, tmp_path):
        rows = [
            ({"id": "a", "question": "Why?", "correct": "x", "distractors": ["y", "z"]}, "three"),
            ({"id": "a", "question": " ", "correct": "x", "distractors": ["y", "z", "w"]}, "empty"),
            ({"question": "Why?", "choices": ["x", "y", "z"], "answer": 0}, "three distractors"),
            ({"question": "Why?", "choices": ["x", "y", "z", "w"], "answer": 7}, "none of the"),
        ]
        for row, said in rows:
            path = tmp_path / "q.jsonl"
            path.write_text(json.dumps(row) + "\n")
            with pytest.raises(SourceError, match=said):
                collect(model, CollectParams(tmp_path / "run", dataset=str(path)))
            assert not (tmp_path / "run").exists()

    def test_letters_that_are_no_single_tokens(self):
        class Spelling:
            unk_token_id = 0

            def encode(self, text, add_special_tokens):
                return [5, 6] if "C" in text else [ord(text[-1])]

        with pytest.raises(BadInputError, match="the letters C are no single tokens"):
            letter_tokens(Spelling(), "ABCD")
        with pytest.raises(BadInputError, match="without one"):
            letter_tokens(None, "ABCD")

    def test_letters_are_checked_before_anything_is_written(self, model, tmp_path, monkeypatch):
        encode = model.tokenizer.encode

        def spelled(text, **how):
            return [5, 6] if text.strip() == "H" else encode(text, **how)

        monkeypatch.setattr(model.tokenizer, "encode", spelled)
        with pytest.raises(BadInputError, match="the letters H are no single tokens") as error:
            collect(model, CollectParams(tmp_path / "run", num_questions=2))
        assert "'H' is 2 tokens" in str(error.value) and "capital letters" in str(error.value)
        assert not (tmp_path / "run").exists()

    def test_a_range_templates_and_folders_that_are_not_there(self, model, tmp_path):
        for params, said in (
            (CollectParams(tmp_path / "r", offset=448), "offset lies beyond"),
            (CollectParams(tmp_path / "r", templates="nope"), "no templates 'nope'"),
            (CollectParams(tmp_path / "r", templates=str(tmp_path)), "not complete"),
            (CollectParams(tmp_path / "r", dataset="demo:mcq/nope"), "no bundled questions"),
            (CollectParams(tmp_path / "r", dataset="nope.jsonl"), "there is no file"),
        ):
            with pytest.raises(BadInputError, match=said):
                collect(model, params)
        (tmp_path / "other").mkdir()
        (tmp_path / "other" / "notes.txt").write_text("mine")
        with pytest.raises(BadInputError, match=r"notes\.txt"):
            collect(model, CollectParams(tmp_path / "other", num_questions=2))
