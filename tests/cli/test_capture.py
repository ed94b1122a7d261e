"""``actscope capture`` from the outside: what it writes, and what it refuses."""

import json
import re
from pathlib import Path

import numpy as np
import pytest
import torch

from actscope import load_model, open_run


def out_args(folder, model):
    return ["--model", model, "--out", folder]


def test_prompts_in_activations_on_disk(actscope_process, model_folder, tmp_path):
    """One real process, from start to end, then the same again."""
    arguments = ["capture", "--prompt", "w1 w2 w3", "--prompt", "w4", *out_args("r", model_folder)]
    done = actscope_process(*arguments)
    assert done.returncode == 0, done.stderr
    assert "2 examples" in done.stdout
    assert "Warning" not in done.stderr
    run = open_run(tmp_path / "r")
    assert [str(s) for s in run.sites] == [f"blocks.{i}.resid_post" for i in range(3)]
    assert [e.n_tokens for e in run.examples] == [4, 2]  # BOS, once
    want = load_model(model_folder).capture(["w1 w2 w3", "w4"])
    for layer in range(3):
        for i in range(2):
            torch.testing.assert_close(
                run.get("resid_post", layer, example=i), want["resid_post", layer][i]
            )
    again = actscope_process(*arguments)
    assert again.returncode == 0, again.stderr
    assert re.search(r"captured\s+0 examples", again.stdout)
    assert re.search(r"on disk before\s+2 examples", again.stdout)


def test_sites_layers_pool_and_span(actscope_cli, model_folder, prompts, tmp_path):
    out = tmp_path / "r"
    done = actscope_cli(
        "capture", "--source", prompts, "--sites", "attn_out,ln_final", "--sites", "resid_mid[0]",
        "--layers", "0,-1", "--pool", "mean", "--span", "last:2", "--exclude_special",
        *out_args(out, model_folder),
    )  # fmt: skip
    assert done.exit_code == 0, done.output
    run = open_run(out)
    keys = ["blocks.0.attn_out", "blocks.2.attn_out", "ln_final", "blocks.0.resid_mid"]
    assert [str(s) for s in run.sites] == keys
    assert run.spec["span"] == "last:2-special"
    assert [e.id for e in run.examples] == [f"p{i}" for i in range(6)]
    assert [e.metadata["n"] for e in run.examples] == list(range(6))
    text = run.examples[3].text
    want = load_model(model_folder).capture([text], sites="attn_out", layers=[-1])
    torch.testing.assert_close(
        run.get("attn_out", -1, example=3), want["attn_out", -1][0][-2:].mean(0)
    )


def test_offset_and_limit(actscope_cli, model_folder, prompts, tmp_path):
    done = actscope_cli(
        "capture", "--source", prompts, "--offset", 2, "--limit", 3,
        *out_args(tmp_path / "r", model_folder),
    )  # fmt: skip
    assert done.exit_code == 0, done.output
    run = open_run(tmp_path / "r")
    assert [(e.id, e.index) for e in run.examples] == [("p2", 2), ("p3", 3), ("p4", 4)]


def test_generated_answers_are_replayed_and_seeded(actscope_cli, model_folder, prompts, tmp_path):
    base = ["capture", "--source", prompts, "--generate", 6, "--seed", 3, "--model", model_folder]
    for name, more in (("a", []), ("b", ["--batch-size", 1]), ("c", ["--unit-size", 2])):
        done = actscope_cli(*base, *more, "--out", tmp_path / name)
        assert done.exit_code == 0, done.output
    a, b, c = (open_run(tmp_path / name) for name in "abc")
    model = load_model(model_folder)
    for i in range(6):
        assert a.tokens(i).tolist() == b.tokens(i).tolist() == c.tokens(i).tolist()
        phase = a.phase(i).tolist()
        record = a.examples[i]
        assert phase == [0] * record.n_prompt_tokens + [1] * (len(phase) - record.n_prompt_tokens)
        assert 1 <= sum(phase) <= 6
        assert record.response == a.examples[i].response == b.examples[i].response
        want = model.capture([a.tokens(i).tolist()])["resid_post", 1][0]
        torch.testing.assert_close(a.get("resid_post", 1, example=i), want)


def test_chat_writes_one_bos(actscope_cli, model_folder, tmp_path):
    done = actscope_cli(
        "capture", "--prompt", "w1 w2", "--chat", *out_args(tmp_path / "r", model_folder)
    )
    assert done.exit_code == 0, done.output
    run = open_run(tmp_path / "r")
    assert run.tokens(0).tolist().count(1) == 1
    assert run.examples[0].text.startswith("<s>")


def test_no_text_keeps_texts_and_tokens_out(actscope_cli, model_folder, tmp_path):
    source = tmp_path / "s.jsonl"
    source.write_text('{"text": "w7 w8 w9", "secret": "w7 w8", "n": 4}\n')
    out = tmp_path / "r"
    done = actscope_cli("capture", "--source", source, "--no-text", *out_args(out, model_folder))
    assert done.exit_code == 0, done.output
    for path in out.rglob("*"):
        if path.is_file():
            assert b"w7 w8" not in path.read_bytes()
    record = open_run(out).examples[0]
    assert (record.text, record.n_tokens, dict(record.metadata)) == (None, 4, {"n": 4})


@pytest.mark.parametrize("store", ["npz", "hdf5"])
def test_other_stores(actscope_cli, model_folder, tmp_path, store):
    out = tmp_path / "r"
    done = actscope_cli(
        "capture",
        "--prompt",
        "w1",
        "--store",
        store,
        "--pool",
        "last",
        *out_args(out, model_folder),
    )
    assert done.exit_code == 0, done.output
    assert open_run(out).stack("resid_post", 0).shape == (1, 32)


def test_a_dry_run_writes_nothing_and_tells_what_is_then_written(
    actscope_cli, model_folder, prompts, tmp_path
):
    out = tmp_path / "r"
    arguments = ["capture", "--source", prompts, *out_args(out, model_folder)]
    dry = actscope_cli(*arguments, "--dry-run")
    assert dry.exit_code == 0, dry.output
    assert not out.exists()
    assert actscope_cli(*arguments).exit_code == 0
    summary = open_run(out).summary()
    for key, site in summary.sites.items():
        assert re.search(rf"{re.escape(key)}\s+float32\s+{site.bytes:,}\s*\n", dry.stdout)
    assert re.search(rf"tokens\s+{summary.n_tokens}\s*\n", dry.stdout)
    assert re.search(r"examples\s+6 to capture, 0 on disk", dry.stdout)
    after = actscope_cli(*arguments, "--dry-run")
    assert re.search(r"examples\s+0 to capture, 6 on disk", after.stdout)


def test_a_run_that_cannot_fit_is_refused(
    actscope_cli, model_folder, prompts, tmp_path, monkeypatch
):
    """Free disk is read from the operating system; here it answers that there is little."""
    import shutil

    usage = shutil.disk_usage(tmp_path)._replace(free=20_000)
    monkeypatch.setattr("actscope.capture.disk.shutil.disk_usage", lambda path: usage)
    arguments = ["capture", "--source", prompts, *out_args(tmp_path / "r", model_folder)]
    for more in ([], ["--dry-run"]):
        done = actscope_cli(*arguments, *more)
        assert done.exit_code == 2
        assert "does not fit" in done.stderr
        assert "20.0 kB free" in done.stderr
        assert not (tmp_path / "r").exists()
    assert "disk free" in done.stdout  # the figures are printed all the same


def refused(done, *says):
    assert done.exit_code == 2, done.output
    assert "Traceback" not in done.output
    for text in says:
        assert text in done.stderr, done.stderr


@pytest.mark.parametrize("name", ["empty.jsonl", "empty.txt"])
def test_an_empty_source_is_refused_before_anything_is_written(
    actscope_cli, model_folder, tmp_path, name
):
    """A run of it would refuse the source once that is filled."""
    source, out = tmp_path / name, tmp_path / "r"
    source.write_text("")
    for more in ([], ["--dry-run"], ["--limit", "0"]):
        done = actscope_cli("capture", "--source", source, *more, *out_args(out, model_folder))
        refused(done, f"{source} holds no example", "fill it first")
        assert not out.exists()


def test_an_empty_range_makes_an_empty_complete_run(actscope_cli, model_folder, prompts, tmp_path):
    asked = ["capture", "--source", prompts, "--limit", 0]
    done = actscope_cli(*asked, *out_args(tmp_path / "r", model_folder))
    assert done.exit_code == 0, done.output
    run = open_run(tmp_path / "r")
    assert (len(run), run.complete, run.verify().ok) == (0, True, True)
    bad = ["--generate", "2", "--temperature", "inf"]
    done = actscope_cli(*asked, *bad, *out_args(tmp_path / "b", model_folder))
    refused(done, "temperature must")
    assert actscope_cli("runs", "show", tmp_path / "r").exit_code == 0


@pytest.mark.parametrize(
    ("arguments", "says"),
    [
        (["--sites", "resid_pots"], ["unknown site 'resid_pots'", "did you mean 'resid_post'?"]),
        (["--sites", "resid_post.7"], ["layer out of range", "the model has 3 layers"]),
        (["--layers", "0,7"], ["layer out of range", "got: 7"]),
        (["--layers", "first"], ["a layer must be a whole number"]),
        (["--layers", "1-3"], ["got: '1-3'", "1,2,3"]),
        (["--layers", "0,0"], ["layer 0 was asked for twice"]),
        (["--layers", "0,-3"], ["layer 0 was asked for twice"]),
        (["--span", "response"], ["no answer", "--generate"]),
        (["--generate", "64"], ["64 new tokens leave no room in a context of 64"]),
        (["--text-field", "q"], ["--text-field", "--source"]),
        (["--id_field", "q"], ["--id-field", "--source"]),
        (["--temperature", "0.7"], ["--temperature", "--generate"]),
        (["--top-p", "1"], ["--top-p", "--generate"]),
        (["--top_k", "3"], ["--top-k", "--generate"]),
        (["--seed", "0"], ["--seed", "--generate"]),
        (["--temperature", "nan", "--generate", "2"], ["temperature must"]),
        (["--top-p", "nan", "--generate", "2"], ["top_p must"]),
        (["--storage-dtype", "bfloat16", "--store", "npz"], ["no bfloat16"]),
        (["--sites", "model.layer.0"], ["model.layers.0"]),
        (["--sites", "pooler"], ["unavailable"]),
        (["--pool", "meen"], ["unknown", "did you mean 'mean'?"]),
        (["--pool", "cls"], ["CLS"]),
        (["--span", "reply"], ["unknown span 'reply'"]),
        (["--store", "zip"], ["unknown store 'zip'"]),
        (["--dtype", "float12"], ["unknown dtype 'float12'"]),
        (["--device", "tpu9"], ["unknown device"]),
        (["--on-too-long", "explode"], ["explode"]),
        (["--temperature", "-1", "--generate", "2"], ["temperature must not be negative"]),
        (["--batch-size", "2", "--batch-tokens", "9"], ["not both"]),
        (["--source", "x.jsonl"], ["--source or --prompt, not both"]),
        (["--offset", "9"], ["beyond the dataset"]),
    ],
)
def test_bad_options_are_named(actscope_cli, model_folder, tmp_path, arguments, says):
    out = tmp_path / "r"
    done = actscope_cli("capture", "--prompt", "w1 w2", *out_args(out, model_folder), *arguments)
    refused(done, *says)
    assert not out.exists()


def test_nothing_to_capture_and_nowhere_to_put_it(actscope_cli, model_folder, tmp_path):
    refused(actscope_cli("capture", *out_args(tmp_path / "r", model_folder)), "--source FILE")
    refused(actscope_cli("capture", "--prompt", "w1", "--model", model_folder), "--out DIR")


def test_sources_that_cannot_be_read(actscope_cli, model_folder, prompts, tmp_path):
    out = out_args(tmp_path / "r", model_folder)
    refused(actscope_cli("capture", "--source", tmp_path / "no.jsonl", *out), "no.jsonl")
    done = actscope_cli("capture", "--source", prompts, "--text-field", "txet", *out)
    refused(done, "txet", "text")
    broken = tmp_path / "broken.jsonl"
    broken.write_text('{"text": "w1"}\n{"text": \n')
    refused(actscope_cli("capture", "--source", broken, *out), "broken.jsonl")
    assert not (tmp_path / "r").exists()


def test_a_model_folder_without_a_config(actscope_cli, tmp_path):
    (tmp_path / "m").mkdir()
    (tmp_path / "m" / "notes.txt").write_text("x")
    done = actscope_cli("capture", "--prompt", "w1", *out_args(tmp_path / "r", tmp_path / "m"))
    refused(done, "no config.json", "notes.txt")
    done = actscope_cli("capture", "--prompt", "w1", *out_args(tmp_path / "r", tmp_path / "none"))
    refused(done, "no model folder")


def test_a_tokenizer_without_pad_and_bos(actscope_cli, bare_model_folder, prompts, tmp_path):
    out = tmp_path / "r"
    done = actscope_cli("capture", "--source", prompts, *out_args(out, bare_model_folder))
    assert done.exit_code == 0, done.output
    run = open_run(out)
    assert [e.n_tokens for e in run.examples] == [3, 9, 1, 6, 2, 7]
    alone = load_model(bare_model_folder).capture([run.examples[2].text])["resid_post", 2][0]
    torch.testing.assert_close(run.get("resid_post", 2, example=2), alone)
    done = actscope_cli(
        "capture",
        "--source",
        prompts,
        "--generate",
        3,
        *out_args(tmp_path / "g", bare_model_folder),
    )
    assert done.exit_code == 0, done.output
    done = actscope_cli("capture", "--prompt", "w1", "--chat", *out_args(out, bare_model_folder))
    refused(done, "no chat template")


def test_an_empty_text_is_a_failure_on_record(actscope_cli, bare_model_folder, tmp_path):
    out = tmp_path / "r"
    done = actscope_cli(
        "capture", "--prompt", "w1", "--prompt", "", "--prompt", "w2",
        *out_args(out, bare_model_folder),
    )  # fmt: skip
    assert done.exit_code == 0, done.output
    assert "1 no_tokens" in done.output
    run = open_run(out)
    assert [e.id for e in run.examples] == ["0", "2"]
    assert [(f.id, f.index, f.kind) for f in run.failures] == [("1", 1, "no_tokens")]


def test_a_run_in_which_everything_failed_says_so(actscope_cli, bare_model_folder, tmp_path):
    out = tmp_path / "r"
    arguments = ["capture", "--prompt", "", "--prompt", " ", *out_args(out, bare_model_folder)]
    done = actscope_cli(*arguments)
    assert done.exit_code == 1, done.output
    assert "error: nothing was captured: 2 examples failed" in done.stderr
    assert "2 no_tokens" in done.stderr
    assert "Traceback" not in done.output
    run = open_run(out)
    assert (len(run), len(run.failures), run.complete) == (0, 2, True)
    done = actscope_cli(*arguments)  # nothing is tried again
    assert done.exit_code == 0, done.output


def test_places_that_hold_no_run(actscope_cli, model_folder, tmp_path):
    file = tmp_path / "some.py"
    file.write_text("")
    for more in ([], ["--dry-run"]):
        base = ["capture", "--prompt", "w1", *more]
        done = actscope_cli(*base, *out_args(file / "sub", model_folder))
        refused(done, f"{file} is a file")
        if Path("/proc/self").exists():
            done = actscope_cli(*base, *out_args("/proc/foo", model_folder))
            refused(done, "nothing can be written in /proc")
            assert "does not fit" not in done.output


def test_bfloat16_on_disk(actscope_cli, model_folder, tmp_path):
    out = out_args(tmp_path / "r", model_folder)
    done = actscope_cli("capture", "--prompt", "w1 w2", "--storage-dtype", "bfloat16", *out)
    assert done.exit_code == 0, done.output
    assert str(open_run(tmp_path / "r").array("resid_post", 0, example=0).dtype) == "bfloat16"


def test_a_prompt_over_the_context(actscope_cli, model_folder, tmp_path):
    long = " ".join(f"w{i % 90}" for i in range(80))
    base = ["capture", "--prompt", "w1", "--prompt", long, "--model", model_folder]
    done = actscope_cli(*base, "--out", tmp_path / "error")
    refused(done, "example '1' has 81 tokens; the limit is 64", "--on-too-long")
    assert not (tmp_path / "error").exists()
    done = actscope_cli(*base, "--on-too-long", "skip", "--out", tmp_path / "skip")
    assert done.exit_code == 0, done.output
    assert [f.kind for f in open_run(tmp_path / "skip").failures] == ["too_long"]
    kept = {"truncate-left": range(17, 80), "truncate-right": range(63)}
    for policy, positions in kept.items():
        done = actscope_cli(*base, "--on_too_long", policy, "--out", tmp_path / policy)
        assert done.exit_code == 0, done.output
        run = open_run(tmp_path / policy)
        assert run.tokens(1).tolist() == [1, *(6 + i for i in positions)]  # BOS stays
        side = policy.removeprefix("truncate-")
        assert run.examples[1].note == f"truncated 17 tokens on the {side}"


def test_an_output_folder_that_holds_something_else(actscope_cli, model_folder, prompts, tmp_path):
    out = tmp_path / "r"
    out.mkdir()
    (out / "thesis.txt").write_text("years of work")
    done = actscope_cli("capture", "--source", prompts, *out_args(out, model_folder))
    refused(done, "holds something that is no run", "thesis.txt")
    assert [p.name for p in out.iterdir()] == ["thesis.txt"]
    done = actscope_cli("capture", "--source", prompts, *out_args(out / "thesis.txt", model_folder))
    refused(done, "is a file")


@pytest.mark.parametrize("given", ["0", "-3", "abc", "1.5"])
def test_a_token_budget_is_a_number_or_auto(actscope_cli, model_folder, tmp_path, given):
    out = out_args(tmp_path / "r", model_folder)
    done = actscope_cli("capture", "--prompt", "w1", f"--batch-tokens={given}", *out)
    assert done.exit_code == 2
    assert "neither a number from 1 on nor the word auto" in " ".join(done.stderr.split())
    assert not (tmp_path / "r").exists()


def test_a_run_of_another_spec(actscope_cli, model_folder, prompts, tmp_path):
    arguments = ["capture", "--source", prompts, *out_args(tmp_path / "r", model_folder)]
    assert actscope_cli(*arguments).exit_code == 0
    before = {p: p.read_bytes() for p in (tmp_path / "r").rglob("*") if p.is_file()}
    refused(actscope_cli(*arguments, "--pool", "mean"), "another spec", "strategy.name")
    refused(actscope_cli(*arguments, "--limit", "3"), "range", "examples 0 to 6")
    refused(actscope_cli(*arguments, "--store", "npz"), "another store")
    done = actscope_cli(*arguments, "--unit-size", "2")
    assert done.exit_code == 0
    kept = open_run(tmp_path / "r").plan.unit_size
    assert f"keeps the unit_size it was begun with, {kept}" in " ".join(done.stderr.split())
    assert {p: p.read_bytes() for p in (tmp_path / "r").rglob("*") if p.is_file()} == before


def test_float16_that_does_not_hold_every_value(actscope_cli, model_folder, tmp_path):
    """Weights scaled up until the residual stream leaves the range of float16."""
    from transformers import AutoModelForCausalLM, AutoTokenizer

    big = tmp_path / "big"
    model = AutoModelForCausalLM.from_pretrained(model_folder)
    with torch.no_grad():
        model.model.layers[1].mlp.down_proj.weight.mul_(1e7)
    model.save_pretrained(big)
    AutoTokenizer.from_pretrained(model_folder).save_pretrained(big)
    arguments = ["capture", "--prompt", "w1 w2", "--storage-dtype", "float16"]
    done = actscope_cli(*arguments, *out_args(tmp_path / "r", big))
    assert done.exit_code == 1
    assert "blocks.1.resid_post" in done.stderr
    assert not list((tmp_path / "r" / "commits").iterdir())
    done = actscope_cli(*arguments, *out_args(tmp_path / "fine", model_folder))
    assert done.exit_code == 0, done.output
    stored = open_run(tmp_path / "fine").array("resid_post", 0, example=0)
    assert stored.dtype == np.float16


def test_the_runs_spec_is_on_record(actscope_cli, model_folder, prompts, tmp_path):
    out = tmp_path / "r"
    actscope_cli("capture", "--source", prompts, "--generate", 2, *out_args(out, model_folder))
    shown = json.loads(actscope_cli("runs", "show", out, "--json").stdout)
    assert shown["spec"]["generation"]["max_new_tokens"] == 2
    assert shown["spec"]["model"]["name"] == "tiny"
    assert shown["spec"]["on_too_long"] == "error"
    assert shown["summary"]["n_examples"] == 6
    assert shown["plan"]["share_prefix"] is False and shown["plan"]["batch_tokens"] > 0


@pytest.mark.parametrize("sites", ["ln_final", "blocks.0.resid_post", "resid_post[0,-1],ln_final"])
def test_layers_that_no_site_needs_are_refused(actscope_cli, model_folder, tmp_path, sites):
    out = out_args(tmp_path / "r", model_folder)
    done = actscope_cli("capture", "--prompt", "w1", "--sites", sites, "--layers", "1", *out)
    refused(done, "--layers has no effect", "resid_post")
    done = actscope_cli("capture", "--prompt", "w1", "--sites", sites, *out)
    assert done.exit_code == 0, done.output


def test_an_unknown_site_is_named_before_its_layers(actscope_cli, model_folder, tmp_path):
    out = out_args(tmp_path / "r", model_folder)
    done = actscope_cli("capture", "--prompt", "w1", "--sites", "resid_pots", "--layers", "1", *out)
    refused(done, "resid_pots", "resid_post")


def test_an_adapter_makes_a_run_of_its_own(
    actscope_cli, actscope_process, model_folder, adapter_folder, prompts, tmp_path
):
    import json

    out = tmp_path / "adapted"
    done = actscope_process(
        "capture", "--model", model_folder, "--adapter", adapter_folder, "--source", prompts,
        "--out", out,
    )  # fmt: skip
    assert done.returncode == 0, done.stderr
    assert "with the adapter tiny-lora@" in done.stderr
    assert "trained on someone/another-base; this base is tiny" in done.stderr
    assert "torchao" not in done.stderr
    shown = actscope_cli("runs", "show", out)
    assert "model.adapter" in shown.stdout and "tiny-lora@" in shown.stdout
    again = actscope_cli("capture", "--model", model_folder, "--source", prompts, "--out", out)
    assert again.exit_code == 2
    assert "model.adapter: stored 'tiny-lora@" in again.output
    plain = tmp_path / "plain"
    actscope_cli("capture", "--model", model_folder, "--source", prompts, "--out", plain)
    specs = [
        json.loads(actscope_cli("runs", "show", run, "--json").stdout)["spec"]["model"]
        for run in (out, plain)
    ]
    assert {key for key in specs[0] if specs[0][key] != specs[1][key]} == {"adapter"}


def test_shared_beginnings_are_foreseen_and_on_record(actscope_cli, model_folder, tmp_path):
    """Six prompts of BOS, thirty words in common and three of their own."""
    head = " ".join(f"w{i}" for i in range(30))
    source = tmp_path / "alike.txt"
    source.write_text("".join(f"{head} w{40 + i} w{50 + i} w{60 + i}\n" for i in range(6)))
    out = tmp_path / "r"
    plain = ["capture", "--source", source, "--batch-tokens", 128, *out_args(out, model_folder)]
    asked = [*plain, "--share-prefix", "auto"]
    dry = actscope_cli(*asked, "--dry-run")
    assert dry.exit_code == 0, dry.output
    share = f"{6 * 31 / (6 * 34):.0%}"
    says = rf"shared beginnings\s+{share} of the tokens, computed once: {31 + 6 * 3} tokens go"
    assert re.search(says, dry.stdout), dry.stdout
    assert "shared beginnings" not in actscope_cli(*plain, "--dry-run").stdout
    done = actscope_cli(*asked)
    assert done.exit_code == 0 and "shared beginnings" in done.stdout, done.output
    assert "shared beginnings" in actscope_cli("runs", "show", out).stdout
    cannot = actscope_cli(*asked, "--sites", "pattern", "--out", tmp_path / "p", "--dry-run")
    assert "do not share that part" in cannot.stderr
    assert "shared beginnings" not in cannot.stdout


def test_a_dry_run_names_what_is_longer_than_a_batch(actscope_cli, model_folder, prompts, tmp_path):
    """With BOS the six prompts have 4, 10, 2, 7, 3 and 8 tokens."""
    asked = ["capture", "--source", prompts, *out_args(tmp_path / "r", model_folder), "--dry-run"]
    dry = actscope_cli(*asked, "--batch-tokens", 7)
    assert re.search(r"longer than a batch\s+2 examples, each in one of its own", dry.stdout)
    assert re.search(r"time\s+about \S+ s, without loading", dry.stdout)
    assert re.search(r"tables\s+[\d,]+ bytes: ids, texts, metadata, tokens, positions", dry.stdout)
    assert "longer than a batch" not in actscope_cli(*asked, "--batch-tokens", 10).stdout


def test_help_shows_how_heads_and_neurons_are_named(actscope_cli):
    said = " ".join(actscope_cli("capture", "--help").stdout.split())
    assert "pattern.head[0,3]" in said and "mlp_post.neuron[7]" in said
