"""``actscope capture``: spans that follow the text, and how answers are made and captured."""

import json

import numpy as np
import pytest
import torch

from actscope import open_run


@pytest.fixture
def capture(actscope_cli, model_folder, tmp_path):
    """Run the verb into ``tmp_path / "r"`` (or ``out``) on the tiny model."""

    def run(*arguments, out="r"):
        where = ("--model", model_folder, "--out", tmp_path / out)
        return actscope_cli("capture", *arguments, *where)

    return run


def refused(done, *says):
    assert done.exit_code == 2, done.output
    assert "Traceback" not in done.output
    for text in says:
        assert text in done.stderr, done.stderr


def spec_of(tmp_path, name="r"):
    return json.loads((tmp_path / name / "run.json").read_text())["spec"]


@pytest.mark.parametrize(
    ("span", "kept"),
    [("user", [2, 3, 4]), ("match:w2", [3]), ("match:w[23]", [3, 4]), ("answer", [5])],
)
def test_spans_of_a_chat(capture, tmp_path, span, kept):
    """The template writes ``<s><user> w1 w2 w3 <assistant>``."""
    done = capture("--prompt", "w1 w2 w3", "--chat", "--span", span)
    assert done.exit_code == 0, done.output
    run = open_run(tmp_path / "r")
    assert run.tokens(0).tolist()[:2] == [1, 4] and len(run.tokens(0)) == 6
    assert run.positions(0).tolist() == kept
    assert spec_of(tmp_path)["span"] == span


def test_a_conversation_by_role(capture, tmp_path):
    source = tmp_path / "talks.jsonl"
    talk = [("user", "w1 w2"), ("assistant", "w3"), ("user", "w4")]
    turns = [{"role": role, "content": text} for role, text in talk]
    source.write_text(json.dumps({"id": "t", "messages": turns}) + "\n")
    for role, words in (("user", [7, 8, 10]), ("assistant", [9])):
        done = capture("--source", source, "--span", role, out=role)
        assert done.exit_code == 0, done.output
        run = open_run(tmp_path / role)
        assert run.tokens(0)[run.positions(0).long()].tolist() == words
    done = capture("--source", source, "--span", "system", out="system")
    assert done.exit_code == 1 and "1 empty_span" in done.stderr


def test_a_role_without_a_conversation_says_how_to_have_one(capture, tmp_path):
    done = capture("--prompt", "w1", "--span", "user")
    assert done.exit_code == 1 and "1 no_roles" in done.stderr
    assert "plain text" in open_run(tmp_path / "r").failures[0].message


@pytest.mark.parametrize(
    ("arguments", "says"),
    [
        (("--span", "usr"), ("unknown span 'usr'", "did you mean 'user'", "match:REGEX")),
        (("--span", "match:("), ("match:REGEX", "unterminated")),
        (("--span", "match:"), ("needs an expression",)),
        (("--span", "think"), ("the span is think", "--generate")),
        (("--span", "response"), ("the span is response", "--generate")),
        (("--live",), ("--live has no effect without --generate",)),
        (("--replay",), ("--replay has no effect without --generate",)),
        (("--stop", "x"), ("--stop has no effect without --generate",)),
        (("--samples", "2"), ("--samples has no effect without --generate",)),
        (("--generate", "3", "--samples", "0"), ("--samples",)),
        (("--generate", "3", "--stop", ""), ("stop string must be a text that is not empty",)),
        (("--generate", "3", "--samples", "2", "--temperature", "0"), ("greedy",)),
    ],
)
def test_what_cannot_be_is_said(capture, tmp_path, arguments, says):
    refused(capture("--prompt", "w1", *arguments), *says)
    assert not (tmp_path / "r").exists()


def test_live_and_replay_are_part_of_the_spec(capture, tmp_path):
    ask = ("--prompt", "w1 w2", "--prompt", "w3", "--generate", "4", "--temperature", "0")
    assert capture(*ask, "--replay", out="replayed").exit_code == 0
    assert capture(*ask, out="auto").exit_code == 0
    assert spec_of(tmp_path, "replayed")["generation"]["capture"] == "replay"
    assert spec_of(tmp_path, "auto")["generation"]["capture"] == "live"
    assert capture(*ask, "--live", out="auto").exit_code == 0  # what auto came to
    refused(capture(*ask, "--replay", out="auto"), "generation.capture", "'live'", "'replay'")
    a, b = (open_run(tmp_path / name) for name in ("auto", "replayed"))
    for i in range(2):
        assert a.tokens(i).tolist() == b.tokens(i).tolist()
        x, y = (run.get("resid_post", 2, example=i) for run in (a, b))
        np.testing.assert_allclose(x, y, rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize("span", ["match:w1", "match:w[0-9]+", "match:w99", "response", "user"])
def test_a_dry_run_counts_what_an_answer_may_hold(capture, tmp_path, span):
    ask = ("--prompt", "w1 w2", "--chat", "--generate", "5", "--span", span)
    dry = capture(*ask, "--dry-run")
    assert dry.exit_code == 0, dry.output
    assert "1 to capture" in dry.stdout
    done = capture(*ask)
    if done.exit_code == 0:
        rows = open_run(tmp_path / "r").summary().sites["blocks.0.resid_post"].bytes // 128
        bound = int(dry.stdout.split("blocks.0.resid_post")[1].split()[1].replace(",", "")) // 128
        assert 0 < rows <= bound


def test_samples_of_each_prompt_are_examples_of_their_own(capture, tmp_path):
    ask = ("--prompt", "w1 w2", "--prompt", "w3", "--generate", "4", "--temperature", "2")
    assert capture(*ask, out="one").exit_code == 0
    dry = capture(*ask, "--samples", "3", "--dry-run")
    assert "6 to capture" in dry.stdout
    done = capture(*ask, "--samples", "3")
    assert done.exit_code == 0 and "6 examples" in done.stdout
    run, one = open_run(tmp_path / "r"), open_run(tmp_path / "one")
    assert [e.id for e in run.examples] == ["0#0", "0#1", "0#2", "1#0", "1#1", "1#2"]
    assert [e.index for e in run.examples] == [0, 0, 0, 1, 1, 1]
    assert run.verify().ok and len({e.response for e in run.examples}) == 6
    for i in range(2):
        assert run.tokens(3 * i).tolist() == one.tokens(i).tolist()
        torch.testing.assert_close(
            run.get("resid_post", 2, example=3 * i), one.get("resid_post", 2, example=i),
            rtol=1e-4, atol=1e-5,
        )  # fmt: skip
    again = capture(*ask, "--samples", "3")
    assert again.exit_code == 0 and "0 examples" in again.stdout
    refused(capture(*ask, "--samples", "2"), "generation.n", "stored 3", "asked for 2")


def test_stop_strings_are_part_of_the_spec(capture, tmp_path):
    ask = ("--prompt", "w1 w2", "--generate", "12", "--temperature", "0")
    assert capture(*ask, out="free").exit_code == 0
    free = open_run(tmp_path / "free").examples[0].response
    word = free.split()[4]
    first = free.split().index(word)
    assert capture(*ask, "--stop", word, "--stop", r"a\nb\\n").exit_code == 0
    example = open_run(tmp_path / "r").examples[0]
    assert example.response == " ".join(free.split()[:first]) + " " * bool(first)
    assert example.n_tokens == example.n_prompt_tokens + first + 1
    assert spec_of(tmp_path)["generation"]["stop"] == [word, "a\nb\\n"]
    refused(capture(*ask, "--stop", "other"), "generation.stop", word)


def test_progress_and_failures_with_samples(capture, tmp_path):
    source = tmp_path / "some.jsonl"
    source.write_text('{"id": "a", "text": "w1"}\n{"id": "b", "token_ids": [9999]}\n')
    done = capture("--source", source, "--generate", "2", "--samples", "2")
    assert done.exit_code == 0, done.output
    run = open_run(tmp_path / "r")
    assert [e.id for e in run.examples] == ["a#0", "a#1"]
    assert [(f.id, f.kind) for f in run.failures] == [("b", "bad_token")]
