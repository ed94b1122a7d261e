"""``actscope introspect``: the seed document's commands, kebab-case and underscores."""

import json
import re
import shlex
import shutil
from pathlib import Path

import numpy as np
import pytest
from click.testing import CliRunner

from actscope.sources.demo import demo_folder
from actscope.studies.introspection.analysis_inputs import FEWEST, inputs_of
from actscope.studies.introspection.data import open_collection

ASK = ("--num_questions", 44)


def run(*arguments):
    from actscope.cli.main import main

    return CliRunner().invoke(main, ["introspect", *(str(a) for a in arguments)])


@pytest.fixture(scope="module")
def folders(tmp_path_factory):
    out = tmp_path_factory.mktemp("cli")
    base = run("collect", "--model_type", "base", *ASK, "--output_dir", out / "base")
    assert base.exit_code == 0, base.stderr
    assert re.search(r"collected now\s+44", base.stdout)
    tuned = run(
        "collect", "--model-type", "finetuned", "--lora_checkpoint", "demo-lora", *ASK,
        "--output-dir", out / "tuned", "--batch_size", 8,
    )  # fmt: skip
    assert tuned.exit_code == 0, tuned.stderr
    assert "with the adapter demo-lora@" in tuned.stderr
    return out


def test_a_second_collect_resumes_and_a_dry_run_writes_nothing(folders, tmp_path):
    again = run("collect", *ASK, "--output-dir", folders / "base")
    assert re.search(r"on disk before\s+44", again.stdout), again.stderr
    dry = run("collect", *ASK, "--output-dir", tmp_path / "no", "--dry-run")
    assert dry.exit_code == 0 and not (tmp_path / "no").exists()
    assert "tokens shared by the passes" in dry.stdout and "other_conf" in dry.stdout
    changed = run("collect", *ASK, "--output-dir", folders / "base", "--dtype", "float32")
    assert changed.exit_code == 2
    assert "dtype: stored 'float16', asked for 'float32'" in changed.stderr


def test_inspect_shows_counts_shapes_answers_and_a_picture(folders):
    found = run("inspect", "--data_dir", folders / "base" / "mcq", "--show_examples", 2)
    assert found.exit_code == 0, found.stderr
    config = json.loads((folders / "base" / "run_config.json").read_text())
    shape = f"44x{config['seq_len']['mcq']}x{config['d_model']}"
    assert found.stdout.count(shape) == 6
    rows = json.loads((folders / "base" / "mcq" / "metadata.json").read_text())
    accuracy = np.mean([row["is_correct"] for row in rows])
    assert re.search(rf"accuracy\s+{accuracy:.3f} \(", found.stdout)
    assert rows[1]["question_text"] in found.stdout and "Example 2" in found.stdout
    picture = folders / "base" / "inspect_mcq.png"
    assert picture.read_bytes().startswith(b"\x89PNG")
    every = run("inspect", "--data_dir", folders / "base", "--check_all_types", "--no-figure")
    assert every.stdout.count("Letters") == 3 and "Stated confidence" in every.stdout
    one = run("inspect", "--data-dir", folders / "base", "--prompt-type", "other", "--no-figure")
    assert "other_conf" in one.stdout and one.stdout.count("Letters") == 1


def test_comparisons_by_either_verb_say_the_same(folders):
    by_inspect = run(
        "inspect", "--data_dir", folders / "base" / "mcq", "--compare_with",
        folders / "tuned" / "mcq", "--no-figure",
    )  # fmt: skip
    assert by_inspect.exit_code == 0, by_inspect.stderr
    assert "44 questions in both" in by_inspect.stdout
    found = json.loads(run("compare", folders / "base", folders / "tuned", "--json").stdout)
    for name in ("accuracy", "entropy (nats)", "logit margin", "self-confidence (%)",
                 "other-confidence (%)", "ECE", "Brier score"):  # fmt: skip
        assert name in by_inspect.stdout
        difference = found["measures"][name]["difference"]
        assert difference["low"] <= difference["value"] <= difference["high"]
    assert found["measures"]["self-confidence (%)"]["difference"]["high"] < 0
    pictures = run("compare", folders / "base", folders / "tuned")
    assert len(re.findall(r"picture: ", pictures.stdout)) == 2


def test_analyze_writes_one_report_with_five_findings(folders):
    done = run(
        "analyze", "--data-dir", folders / "base", "--compare-with", folders / "tuned",
        "--shuffles", 4, "--pairs", 4, "--steered", 4,
    )  # fmt: skip
    assert done.exit_code == 0, done.stderr
    assert "44 questions are few" in done.stderr and "4 refits are few" in done.stderr
    page = (folders / "base" / "analysis" / "report.html").read_text()
    assert "44 questions are few" in page and "with the adapter demo-lora@" in page
    assert page.count("<section") >= 6 and "<script" not in page
    for name in ("1_emergence", "2_surface_versus_internal", "3_confidence_directions",
                 "4_self_versus_other", "5_causal_patching"):  # fmt: skip
        found = json.loads((folders / "base" / "analysis" / f"{name}.json").read_text())
        assert found["title"] in done.stdout.replace("\n", " ") or len(found["title"]) > 60
        assert re.search(r"\d\.\d", found["paragraph"])
        assert (folders / "base" / "analysis" / f"{name}_a.png").is_file()


def test_what_cannot_be_done_says_so(folders, tmp_path):
    few = {"id": "a", "question": "Why?", "correct": "x", "distractors": ["y", "z"]}
    (tmp_path / "few.jsonl").write_text(json.dumps(few) + "\n")
    (tmp_path / "empty.jsonl").write_text(json.dumps({**few, "question": " "}) + "\n")
    for arguments, said in (
        (("collect", *ASK), "no output folder"),
        (("collect", *ASK, "--output-dir", tmp_path / "x", "--lora-checkpoint", "demo-lora"),
         "has no effect on the base model"),
        (("collect", "--output-dir", tmp_path / "x", "--which-questions", "mcq,selves"),
         "unknown pass 'selves'"),
        (("collect", "--output-dir", tmp_path / "x", "--layers", "0,x"), "layers are all"),
        (("collect", "--output-dir", tmp_path / "x", "--layers", "9"), "out of range"),
        (("collect", "--output-dir", tmp_path / "x", "--dataset-path", tmp_path / "few.jsonl"),
         "a question needs three distractors"),
        (("collect", "--output-dir", tmp_path / "x", "--dataset-path", tmp_path / "empty.jsonl"),
         "'question' is missing or empty"),
        (("collect", *ASK, "--output-dir", folders / "base", "--share-prefix", "off"),
         "share_prefix: stored 'auto', asked for 'off'"),
        (("inspect", "--data-dir", tmp_path), "is no collection"),
        (("inspect", "--data-dir", folders / "base", "--check-all-types", "--prompt-type", "self"),
         "give one of the two"),
        (("compare", folders / "base", tmp_path), "is no collection"),
    ):  # fmt: skip
        found = run(*arguments)
        assert found.exit_code == 2, found.output
        assert said in found.stderr.replace("\n", " "), found.stderr
    assert not (tmp_path / "x").exists()


def test_the_way_out_of_too_few_questions_is_the_one_that_is_printed(tmp_path):
    """Followed to the letter, from either error, into a folder whose name has to be quoted."""
    folder, layers = tmp_path / "a run", ("--layers", "1,4")
    few = run("collect", "--num-questions", 30, "--output-dir", folder, *layers)
    assert few.exit_code == 0, few.stderr
    analyzed = run("analyze", "--data-dir", folder)
    longer = run("collect", "--num-questions", FEWEST, "--output-dir", folder, *layers)
    assert analyzed.exit_code == longer.exit_code == 2
    assert "holds a run of another range" in longer.stderr and "another spec" not in longer.stderr
    assert f"questions.stop: stored 30, asked for {FEWEST}" in longer.stderr
    steps = [re.findall(r"^ +actscope introspect (.+)$", found.stderr, re.M)
             for found in (analyzed, longer)]  # fmt: skip
    assert steps[0] == steps[1] and len(steps[0]) == 2
    collecting, merging = map(shlex.split, steps[0])
    assert run(*collecting, *layers).exit_code == 0
    merged = run(*merging)
    assert merged.exit_code == 0 and f"{FEWEST} questions of 2 collections" in merged.stdout
    assert len(inputs_of(open_collection(merging[-1])[0])) == FEWEST
    other = run("collect", "--num-questions", 20, "--output-dir", folder, *layers)
    assert "--offset 0 --num-questions 30 asks for what is stored" in other.stderr
    spec = run("collect", "--num-questions", FEWEST, "--output-dir", folder, "--layers", "1")
    assert "another spec" in spec.stderr and "questions.stop" in spec.stderr


def test_a_collection_that_was_interrupted_is_to_be_finished_first(tmp_path):
    folder, some = tmp_path / "run", ("--num-questions", 44, "--unit-size", 11, "--layers", 1)
    assert run("collect", "--output-dir", folder, *some).exit_code == 0
    (folder / "units" / "000000033-000000044.json").unlink()
    found = run("analyze", "--data-dir", folder)
    assert "33, 33 and 33 questions" in found.stderr and "run its collect command" in found.stderr
    assert "merge" not in found.stderr


def test_the_least_number_of_questions_is_written_where_a_user_reads():
    docs = Path(__file__).parents[2] / "docs"
    said = [run("analyze", "--help").output]
    said += [
        (docs / page).read_text() for page in ("introspection.md", "tutorial-introspection.md")
    ]
    for text in said:
        assert f"at least {FEWEST} questions" in " ".join(text.split()).lower()


def test_an_adapter_that_is_not_there_says_where_was_looked(tmp_path, monkeypatch):
    monkeypatch.setenv("HF_HUB_OFFLINE", "1")
    monkeypatch.chdir(tmp_path)
    found = run(
        "collect", "--model-type", "finetuned", "--lora-checkpoint", "ckpt_step_1280",
        "--output-dir", tmp_path / "x",
    )  # fmt: skip
    assert found.exit_code == 2
    said = found.stderr.replace("\n", " ")
    for place in ("the folder", "local_checkpoints/ckpt_step_1280", "the hub"):
        assert place in said


def test_ctrl_c_keeps_finished_units_and_says_how_to_go_on(actscope_process, tmp_path):
    command = (
        "introspect",
        "collect",
        "--num-questions",
        12,
        "--unit-size",
        3,
        "--output-dir",
        "r",
    )
    stopped = actscope_process(*command, ACTSCOPE_FAIL_AT="data.renamed:2:SIGINT")
    assert stopped.returncode == 130, stopped.stderr
    assert "stopped: 6 of 12 examples are safe in r" in stopped.stderr.replace("\n", " ")
    assert len(json.loads((tmp_path / "r" / "mcq" / "metadata.json").read_text())) == 6
    partial = run("inspect", "--data-dir", tmp_path / "r", "--no-figure")
    assert "6 questions of the range are not on the disk yet" in partial.stderr
    again = actscope_process(*command)
    assert again.returncode == 0 and re.search(r"on disk before\s+6", again.stdout), again.stderr
    assert len(json.loads((tmp_path / "r" / "other_conf" / "metadata.json").read_text())) == 12


def test_files_without_a_question_say_so(tmp_path):
    (tmp_path / "none.jsonl").write_text("\n")
    found = run(
        "collect", "--output-dir", tmp_path / "x", "--dataset-path", tmp_path / "none.jsonl"
    )
    assert found.exit_code == 2 and "has no question" in found.stderr.replace("\n", " ")


def test_the_hint_after_a_collection_of_one_pass_works(tmp_path):
    made = run(
        "collect", "--num-questions", 2, "--which-questions", "self", "--layers", 0,
        "--output-dir", tmp_path / "run",
    )  # fmt: skip
    [hint] = re.findall(r"next: actscope introspect (.+)", made.stdout)
    found = run(*hint.split())
    assert found.exit_code == 0, found.output
    assert "self_conf" in found.stdout


def test_an_analysis_loads_the_model_from_where_it_is_now(folders, tmp_path):
    """Its adapter was moved after the collection."""
    checkpoint = tmp_path / "before" / "ckpt"
    shutil.copytree(demo_folder() / "lora", checkpoint)
    made = run(
        "collect", "--model-type", "finetuned", "--lora-checkpoint", checkpoint,
        "--num-questions", 42, "--layers", "1,4", "--output-dir", tmp_path / "run",
    )  # fmt: skip
    assert made.exit_code == 0, made.output
    (tmp_path / "before").rename(tmp_path / "after")
    checkpoint = tmp_path / "after" / "ckpt"
    few = ("--shuffles", 2, "--pairs", 2, "--steered", 2)
    lost = run("analyze", "--data-dir", tmp_path / "run", *few)
    assert lost.exit_code == 2 and "before" in lost.stderr
    done = run("analyze", "--data-dir", tmp_path / "run", *few, "--lora-checkpoint", checkpoint)
    assert done.exit_code == 0, done.output
