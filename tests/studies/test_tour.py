"""The tour on the bundled model: what it stores, what it says, and that it resumes."""

import json
import re
import shutil

import numpy as np
import pytest
import torch
from click.testing import CliRunner

from actscope.backends.hf import load_model
from actscope.core.errors import BadInputError, DamagedRunError, RunMismatchError
from actscope.core.protocols import GenerationParams
from actscope.sources import open_source
from actscope.stores import open_run
from actscope.studies import STUDIES
from actscope.studies.tour import TourParams
from actscope.studies.tour.result import (
    answers_of,
    middle_layers,
    norms_of,
    shares_of,
    similarity_of,
    spread,
)
from actscope.studies.tour.run import run_tour


@pytest.fixture(scope="module")
def model():
    return load_model("demo", "cpu")


@pytest.fixture(scope="module")
def tour(model, tmp_path_factory):
    """The whole tour, once: its folder and its result."""
    out = tmp_path_factory.mktemp("tour")
    params = TourParams(out=out / "runs", report=out / "report.html")
    return params, run_tour(model, params)


@pytest.fixture
def copied(tour, tmp_path):
    """A copy of the runs that a test may spoil."""
    shutil.copytree(tour[0].out, tmp_path / "runs")
    return TourParams(out=tmp_path / "runs", report=tmp_path / "report.html")


@pytest.fixture
def unembed(model):
    return lambda rows: model.unembed(torch.from_numpy(np.array(rows))).numpy()


def test_everything_bundled_is_captured_at_every_layer(model, tour):
    params, result = tour
    found = {one.name: open_run(params.out / one.name) for one in result.captured}
    assert [len(run) for run in found.values()] == [20, 51, 12, 160]
    assert result.newly_captured == 243 and result.resumed == 0
    bundled = {"texts": "texts", "prompts": "prompts", "requests": "censorship/marren"}
    for name, source in bundled.items():
        ids = [example.id for example in open_source(f"demo:{source}").examples()]
        assert [record.id for record in found[name].examples] == ids
    for run in found.values():
        assert run.layers == list(range(model.n_layers))
        assert run.complete and not run.failures
        assert run.verify().ok


def test_stored_rows_are_what_the_model_computes(model, tour):
    run = open_run(tour[0].out / "prompts")
    place = 30
    tokens = run.tokens(place)[None]
    with torch.no_grad():
        states = model.hf(tokens, output_hidden_states=True).hidden_states
    for layer in range(model.n_layers - 1):
        found = run.get("resid_post", layer, example=place)
        torch.testing.assert_close(found, states[layer + 1][0], rtol=1e-4, atol=1e-3)


def test_answers_are_what_the_model_says(model, tour):
    params, _ = tour
    run = open_run(params.out / "answers")
    rows = [model.encode(e, chat=True) for e in _examples(params.questions)]
    alone = [
        model.generate_rows([r], GenerationParams(TourParams().max_new_tokens, 0.0))[0].text
        for r in rows
    ]
    assert [record.response for record in run.examples] == alone
    assert all(alone)


def _examples(questions):
    from actscope.core.text import Example

    return [Example(f"question_{i:02d}", text=q) for i, q in enumerate(questions, start=1)]


def test_a_second_tour_captures_nothing(model, copied):
    before = {p: p.stat().st_mtime_ns for p in copied.out.rglob("*") if p.is_file()}
    again = run_tour(model, copied)
    assert again.newly_captured == 0 and again.resumed == 243
    assert {p: p.stat().st_mtime_ns for p in copied.out.rglob("*") if p.is_file()} == before
    assert copied.report.is_file()


def test_a_tour_goes_on_where_it_was_stopped(model, copied):
    shutil.rmtree(copied.out / "answers")
    again = run_tour(model, copied)
    assert [one.done.captured for one in again.captured] == [0, 0, 12, 0]


def test_damage_is_an_error_that_says_what_to_do(model, copied):
    shard = next((copied.out / "texts" / "shards").iterdir())
    content = bytearray(shard.read_bytes())
    content[len(content) // 2] ^= 1
    shard.write_bytes(content)
    with pytest.raises(DamagedRunError, match="run the tour again"):
        run_tour(model, copied)
    assert not copied.report.exists()


def test_runs_of_other_questions_are_refused(model, copied):
    other = TourParams(out=copied.out, report=copied.report, questions=("Who is Mira?",))
    with pytest.raises(RunMismatchError, match="give another folder with --out"):
        run_tour(model, other)


def test_matplotlib_is_missed_before_anything_is_captured(model, tmp_path, monkeypatch):
    monkeypatch.setitem(__import__("sys").modules, "matplotlib", None)
    with pytest.raises(BadInputError, match="pip install"):
        run_tour(model, TourParams(out=tmp_path / "runs", report=tmp_path / "r.html"))
    assert not (tmp_path / "runs").exists()


def test_a_folder_with_something_else_in_it_is_refused(model, tmp_path):
    (tmp_path / "notes.txt").write_text("mine")
    params = TourParams(out=tmp_path, report=tmp_path / "report.html")
    with pytest.raises(BadInputError, match=r"not the tour's[\s\S]*notes\.txt"):
        run_tour(model, params)
    assert [p.name for p in tmp_path.iterdir()] == ["notes.txt"]


def test_norms_are_those_of_the_stored_rows(model, tour):
    layer = model.n_layers - 2
    runs = [open_run(tour[0].out / name) for name in ("texts", "prompts")]
    found = norms_of(runs)
    rows = [run.get("resid_post", layer, example=i) for run in runs for i in range(len(run))]
    first = torch.stack([r[0].norm() for r in rows]).double()
    later = torch.cat([r[1:].double().norm(dim=1) for r in rows])
    assert found.first[layer].median == pytest.approx(float(np.median(first)), rel=1e-6)
    assert found.later[layer].median == pytest.approx(float(np.median(later)), rel=1e-9)
    assert found.later[layer].count == len(later)


def test_similarity_is_of_pooled_texts_without_their_first_token(model, tour):
    run = open_run(tour[0].out / "texts")
    found = similarity_of(run)
    assert found.layers == middle_layers(model.n_layers)
    rows = [
        torch.stack([run.get("resid_post", k, example=i)[1:] for k in found.layers])
        for i in (4, 17)
    ]
    a, b = (r.double().mean(dim=(0, 1)) for r in rows)
    expected = float(torch.nn.functional.cosine_similarity(a, b, dim=0))
    assert found.raw[4, 17] == pytest.approx(expected, abs=1e-9)
    assert np.nanmedian(found.centred) < np.nanmedian(found.raw)


def test_the_last_block_of_the_lens_is_the_models_own_prediction(model, tour, unembed):
    run = open_run(tour[0].out / "answers")
    answers = answers_of(run, unembed, run.layers)
    assert len(answers) == 12
    answer = answers[0]
    tokens = torch.as_tensor(answer.token_ids)[None]
    with torch.no_grad():
        p = model.hf(tokens).logits[0].double().softmax(-1)
    expected = p[torch.arange(len(answer.token_ids) - 1), tokens[0, 1:]]
    np.testing.assert_allclose(answer.lens.actual_prob[-1], expected, rtol=1e-3, atol=1e-6)
    assert answer.token_ids[answer.answer_from + 1 :].size == answer.n_tokens
    told = model.tokenizer.decode(
        answer.token_ids[answer.answer_from + 1 :], skip_special_tokens=True
    )
    assert told == answer.text
    shares = shares_of(answers)
    assert shares.first_guess[-1] == 1.0, "greedy answers are the last block's best guess"
    assert shares.kl_to_final[-1] == 0
    assert shares.n_tokens == sum(a.n_tokens for a in answers)


def test_the_report_states_what_the_runs_hold(model, tour):
    params, result = tour
    page = params.report.read_text(encoding="utf-8")
    assert result.report == params.report
    for finding in (
        rf"The residual norm \w+ .* from block 0 to block {model.n_layers - 1}",
        r"Of the answers’ tokens, the lens guesses right \d+% after block",
        r"The two answers part at token \d+: for the request to refuse",
        r"Before the answer begins, .*block \d.* AUROC of \d\.\d\d \(95 % interval",
        r"The refusal direction of block \d .* before the answer \(",
        r"n = 80 questions",
        r"Raw cosines of the texts lie within",
        r"n = 190 pairs",
        r"All [\d,]+ stored bytes are what was captured",
    ):
        assert re.search(finding, page), finding
    for one in result.captured:
        assert one.done.fingerprint in page
    for question in params.questions:
        assert question.replace("'", "&#39;") in page
    assert page.count("<svg") == 8
    assert "<script" not in page


def test_the_protocols_name_and_registry(tmp_path):
    study = STUDIES.get("tour")
    assert study.name == "tour" in STUDIES.names()
    report = study.run(tmp_path)
    assert report == tmp_path / "demo-report.html" and report.is_file()


def test_the_command(copied):
    from actscope.cli.main import main

    def call(*more):
        paths = ["--out", str(copied.out), "--report", str(copied.report)]
        return CliRunner().invoke(main, ["demo", *paths, *more])

    done = call()
    assert done.exit_code == 0, done.output
    assert "nothing was captured again" in done.output
    assert f"report: {copied.report}" in done.output
    assert re.search(r"total\s+243\s", done.output)
    assert done.output.count("next:") == 1
    shown = json.loads(
        CliRunner().invoke(main, ["runs", "show", str(copied.out / "texts"), "--json"]).output
    )
    assert shown["summary"]["n_examples"] == 20
    assert call("--model", "no/such/folder/anywhere").exit_code == 2


def test_middle_layers_and_spread():
    assert middle_layers(36) == (25, 26, 27)
    assert middle_layers(5) == (1, 2, 3)
    assert middle_layers(2) == (0, 1)
    assert middle_layers(1) == (0,)
    assert spread([0, 1, 2], 12) == [0, 1, 2]
    many = spread(range(48), 12)
    assert len(set(many)) == 12 and many[0] == 0 and many[-1] == 47
