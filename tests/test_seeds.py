"""Every command, option, file and field that docs/seeds.md promises for seed 001 is there.

The table is read from the page; every word in code font in it must be a kind of promise that is
checked here, against what ``introspect collect``, ``inspect`` and ``analyze`` really write.
"""

from __future__ import annotations

import json
import os
import re
import shlex
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import click
import numpy as np
import pytest
from click.testing import CliRunner

from actscope.sources.demo import demo_folder
from actscope.studies.introspection.job import questions_of
from actscope.studies.introspection.passes import PASSES

ROOT = Path(__file__).parent.parent
N = 44
"""Questions: one more than the seed's ``acts[42]`` needs, and enough for two answers a third."""

IN_WORDS = {
    "safe to interrupt and resume": "studies/test_introspection_collect.py: a_kill_loses_at_most",
    "saves every 10 batches, Ctrl-C and resume": "cli/test_introspect.py: ctrl_c_keeps_finished",
    "batch size and memory tips": "test_docs.py: links_lead_somewhere",
}
"""Rows that promise nothing in code font, and the test that holds them."""


def table() -> list[tuple[str, str]]:
    text = (ROOT / "docs/seeds.md").read_text(encoding="utf-8")
    section = text.partition("## Seed 001")[2].partition("\n## ")[0]
    rows = [line.strip("| ").split(" | ") for line in section.splitlines() if line.startswith("| ")]
    assert all(len(row) == 2 for row in rows)
    return [(there, here) for there, here in rows[1:]]


SEED_FIELDS = """
question_id question_text options correct_answer_letter model_name checkpoint_id prompt_type
prompt_text temperature top_p max_new_tokens output_text parsed_answer is_correct logits probs
entropy logit_margin answer_token_index confidence_token_index self_confidence other_confidence
char_length token_length question_type has_negation has_ambiguity token_rarity_mean token_rarity_max
"""
"""What the seed lists under What Gets Collected."""

ROWS = table()


def in_code(text: str) -> list[str]:
    return re.findall(r"`([^`]+)`", text)


@dataclass(frozen=True)
class Made:
    """What the commands left behind.

    Attributes:
        base: A collection of the plain model.
        tuned: One of ``ckpt_step_1280``, found under ``local_checkpoints``.
        fields: Of the rows of any pass.
    """

    base: Path
    tuned: Path
    fields: set[str]


def run(*arguments: object) -> str:
    from actscope.cli.main import main

    done = CliRunner().invoke(main, ["introspect", *(str(a) for a in arguments)])
    assert done.exit_code == 0, done.output
    return done.output


@pytest.fixture(scope="module")
def made(tmp_path_factory: pytest.TempPathFactory) -> Made:
    """The seed's own commands, in its own spelling."""
    folder = tmp_path_factory.mktemp("seed001")
    checkpoints = folder / "local_checkpoints" / "2025-12-03-22-26-59_checkpoints"
    checkpoints.mkdir(parents=True)
    (checkpoints / "ckpt_step_1280").symlink_to(demo_folder() / "lora")
    before = Path.cwd()
    os.chdir(folder)
    try:
        asked = ("--num_questions", N, "--batch_size", 8)
        run("collect", "--model_type", "base", *asked, "--output_dir", "base")
        run("collect", "--model_type", "finetuned", "--lora_checkpoint", "ckpt_step_1280", *asked,
            "--output_dir", "tuned")  # fmt: skip
        shown = run("inspect", "--data_dir", "base/mcq", "--show_examples", 2,
                    "--compare_with", "tuned")  # fmt: skip
        run("analyze", "--data-dir", "base", "--shuffles", 2, "--pairs", 2, "--steered", 2)
    finally:
        os.chdir(before)
    assert "Example 2" in shown and "questions in both" in shown
    rows = [
        row
        for which in PASSES
        for row in json.loads((folder / "base" / which.folder / "metadata.json").read_text())
    ]
    return Made(folder / "base", folder / "tuned", {name for row in rows for name in row})


def command_of(path: list[str]) -> click.Command:
    from actscope.cli.main import main

    command: click.Command = main
    for name in path:
        assert isinstance(command, click.Group)
        found = command.get_command(click.Context(command), name)
        assert found is not None, f"there is no command {' '.join(path)}"
        command = found
    return command


def options_of(*path: str) -> set[str]:
    return {
        option.replace("_", "-")
        for parameter in command_of(list(path)).params
        for option in parameter.opts
    }


def is_command(word: str, row: str, made: Made) -> None:
    """It exists, and takes the options that are written behind it."""
    words = shlex.split(word)[1:] if word.startswith("actscope ") else shlex.split(word)
    path = []
    for part in words:
        if not re.fullmatch(r"[a-z]+", part):
            break
        path.append(part)
    known = options_of(*path)
    assert {part for part in words if part.startswith("--")} <= known, word


def is_program(word: str, row: str, made: Made) -> None:
    """The seed's program: the row names its command, which takes the same options."""
    command = in_code(row.split(" | ")[1])[0]
    assert command.startswith("actscope introspect ")
    wanted = {part.replace("_", "-") for part in word.split() if part.startswith("--")}
    assert wanted <= options_of(*command.split()[1:])


def is_option(word: str, row: str, made: Made) -> None:
    """Of the row's command; of ``introspect collect`` or ``capture`` where it names none."""
    commands = [w.split()[1:] for w in in_code(row) if w.startswith("actscope ")]
    paths = [[p for p in c if re.fullmatch(r"[a-z]+", p)] for c in commands]
    paths = [*paths[:1], ["introspect", "collect"], ["capture"]]
    wanted = {part.replace("_", "-") for part in word.split() if part.startswith("--")}
    assert any(wanted <= options_of(*path) for path in paths), word


def is_source(word: str, row: str, made: Made) -> None:
    if word.startswith("demo:"):
        assert questions_of(word)
        return
    assert word == "mcq:FILE.jsonl"
    path = made.base.parent / "FILE.jsonl"
    line = {"id": "a", "question": "Which?", "correct": "x", "distractors": ["y", "z", "w"]}
    path.write_text(json.dumps(line) + "\n")
    [question] = questions_of(f"mcq:{path}")
    shuffled = [tuple(question.options(seed).values()) for seed in range(8)]
    assert len(set(shuffled)) > 1 and {*shuffled[0]} == {"x", "y", "z", "w"}
    assert question.options(3) == questions_of(str(path))[0].options(3)


def is_file(word: str, row: str, made: Made) -> None:
    name = word.replace("NN", "03").rstrip("/")
    places = [made.base / name, made.base / "mcq" / name, made.base / "analysis" / name]
    found = next((place for place in places if place.exists()), None)
    assert found is not None and found.is_dir() == word.endswith("/"), word
    if name == "run_config.json":
        assert json.loads(found.read_text())["num_questions"] == N
    if name == "units":
        assert sum(len(json.loads(p.read_text())["rows"]["mcq"]) for p in found.iterdir()) == N
    for which in PASSES:
        if name in ("metadata.json", "activations_layer_00.npy"):
            assert (made.base / which.folder / name).is_file()


def is_field(word: str, row: str, made: Made) -> None:
    assert word in made.fields


def is_shape(word: str, row: str, made: Made) -> None:
    config = json.loads((made.base / "run_config.json").read_text())
    for which in PASSES:
        found = np.load(made.base / which.folder / "activations_layer_03.npy", mmap_mode="r")
        assert found.shape == (N, config["seq_len"][which.folder], config["d_model"])
        assert found.dtype == np.float16


def is_expression(word: str, row: str, made: Made) -> None:
    """The seed's own Python, with a file in the place of the dots."""
    file = made.base / "mcq" / "activations_layer_03.npy"
    names = {"np": np, "file": file, "acts": np.load(file)}
    found = eval(word.replace("...", "file"), names)
    if word == "acts[42, -1]":
        rows = json.loads((made.base / "mcq" / "metadata.json").read_text())
        assert rows[42]["answer_token_index"] == names["acts"].shape[1] - 1
        assert found.shape == names["acts"].shape[2:] and np.abs(found).max() > 0
    elif word.endswith(".shape"):
        assert found[0] == N
    else:
        assert found.shape == names["acts"].shape[1:]


def is_mapped(word: str, row: str, made: Made) -> None:
    file = made.base / "mcq" / "activations_layer_03.npy"
    assert isinstance(eval(f"np.load(file, {word})", {"np": np, "file": file}), np.memmap)


def is_adapter(word: str, row: str, made: Made) -> None:
    """The finetuned collection is that of the adapter, whichever name it was given."""
    config = json.loads((made.tuned / "run_config.json").read_text())
    assert config["model_type"] == "finetuned"
    assert "ckpt_step_1280" in config["lora_source"]
    base, tuned = (
        json.loads((folder / "self_conf" / "metadata.json").read_text())
        for folder in (made.base, made.tuned)
    )
    assert [r["self_confidence"] for r in base] != [r["self_confidence"] for r in tuned]
    if word == "demo-lora":
        from actscope.studies.introspection.params import ADAPTER

        assert word == ADAPTER


KINDS: list[tuple[str, Callable[[str, str, Made], None]]] = [
    (r"python \w+\.py.*", is_program),
    (r"actscope .*|runs .*", is_command),
    (r"--.*", is_option),
    (r"(demo|mcq):.*", is_source),
    (r"finetuned|ckpt_step_1280|demo-lora|local_checkpoints/.*", is_adapter),
    (r"[\w/]+\.(json|npy|html)|\w+/", is_file),
    (r"\[\w+, \w+, d\]", is_shape),
    (r"mmap_mode=.*", is_mapped),
    (r"(np\.load\(|acts\[).*", is_expression),
    (r"[a-z_]+", is_field),
]


@pytest.mark.parametrize("row", ROWS, ids=[there[:40] for there, _ in ROWS])
def test_what_a_row_promises_is_there(row: tuple[str, str], made: Made) -> None:
    there, here = row
    words = in_code(there) + in_code(here)
    if not words:
        place, name = IN_WORDS[there].split(": ")
        assert f"def test_{name}" in (ROOT / "tests" / place).read_text(encoding="utf-8")
    for word in words:
        check = next((check for kind, check in KINDS if re.fullmatch(kind, word)), None)
        assert check is not None, f"nobody knows how to check {word!r}"
        check(word, f"{there} | {here}", made)


def test_the_page_has_every_field_of_the_seed(made: Made) -> None:
    """The seed's list of what is collected, and no field that its table does not name."""
    seed = set(SEED_FIELDS.split())
    named = {word for row in ROWS for cell in row for word in in_code(cell)}
    assert seed <= named
    assert made.fields <= named
    page = (ROOT / "docs/introspection.md").read_text(encoding="utf-8")
    listed = page.partition("| field | meaning |")[2].partition("\n\n")[0]
    described = {w for line in listed.splitlines() for w in in_code(line.split(" | ")[0])}
    assert made.fields <= described


def test_a_broken_promise_is_caught(made: Made) -> None:
    for word, check in (
        ("--no-such-option", is_option),
        ("actscope introspect collect --no-such-option", is_command),
        ("actscope introspect guess", is_command),
        ("nothing.json", is_file),
        ("no_field", is_field),
    ):
        with pytest.raises(AssertionError):
            check(word, f"x | `{word}`", made)
