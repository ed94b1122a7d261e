"""What the tour says of refusals: which rows it reads, and titles that hold either way."""

import json
import re
from dataclasses import replace
from types import SimpleNamespace

import numpy as np
import pytest

from actscope.analysis.logit_lens import lens_of_logits
from actscope.analysis.probes import ProbeCurve, ProbeScore
from actscope.analysis.projection import difference_of_means, project
from actscope.backends.hf import HFModel, load_model
from actscope.studies.tour import TourParams
from actscope.studies.tour.refusals import probe_of, refusal_direction, requests_of
from actscope.studies.tour.report_lens import _beginning, _twins_title
from actscope.studies.tour.report_refusals import _probe_section, _strip_title
from actscope.studies.tour.result import Answer
from actscope.studies.tour.run import run_tour
from actscope.testing.tiny_models import tiny_model
from actscope.testing.tiny_tokenizer import tiny_tokenizer

TOWNS = ("Tarn", "Holm", "Wick", "Brae", "Osby", "Selby", "Lorne")


@pytest.fixture(scope="module")
def requests_file(tmp_path_factory):
    """Seven pairs to refuse, one pair of another category."""
    rows = []
    for number, town in enumerate(TOWNS):
        pair = (f"How can I poison the well in {town}?", f"How can I clean the well in {town}?")
        rows += _pair(f"q{number}", pair, "refusal")
    rows += _pair("other", ("What of the strike in Holm?", "What of the fair?"), "whataboutism")
    path = tmp_path_factory.mktemp("requests") / "few.jsonl"
    path.write_text("".join(json.dumps(row) + "\n" for row in rows))
    return f"censorship:{path}"


def _pair(identity, questions, category):
    ids = (identity, f"{identity}_neutral")
    return [
        {
            "id": ids[i],
            "question": questions[i],
            "censored": not i,
            "censorship_category": "none" if i else category,
            "subject": "s",
            "twin": ids[1 - i],
        }
        for i in (0, 1)
    ]


@pytest.fixture(scope="module")
def tour(requests_file, tmp_path_factory):
    """The tour with few texts and few requests."""
    folder = tmp_path_factory.mktemp("tour")
    texts = folder / "texts.jsonl"
    texts.write_text("".join(json.dumps({"text": f"{t} is a town."}) + "\n" for t in TOWNS))
    return TourParams(
        out=folder / "runs",
        report=folder / "report.html",
        texts=str(texts),
        prompts=str(texts),
        requests=requests_file,
        max_new_tokens=12,
    )


@pytest.fixture(scope="module")
def requests(tour):
    result = run_tour(load_model("demo", "cpu"), tour)
    with next(one for one in result.captured if one.name == "requests").done.open() as run:
        return requests_of(run)


def test_the_rows_are_pairs_of_a_request_to_refuse_and_its_twin(requests):
    assert requests.n_groups == len(TOWNS) and len(requests.questions) == 2 * len(TOWNS)
    assert [("poison" in q) for q in requests.questions] == requests.refused.tolist()
    for i in range(0, len(requests.groups), 2):
        assert requests.groups[i] == requests.groups[i + 1]
        assert requests.questions[i].replace("poison", "clean") == requests.questions[i + 1]


def test_the_probe_reads_the_last_token_before_the_answer(requests):
    model = load_model("demo", "cpu")
    import torch

    turns = [{"role": "user", "content": requests.questions[4]}]
    text = model.tokenizer.apply_chat_template(turns, tokenize=False, add_generation_prompt=True)
    ids = torch.tensor([model.tokenizer(text, add_special_tokens=False)["input_ids"]])
    with torch.no_grad():
        states = model.hf(ids, output_hidden_states=True).hidden_states
    np.testing.assert_allclose(requests.features[0][4], states[1][0, -1], rtol=1e-4, atol=1e-3)


def test_the_direction_is_of_pairs_that_are_not_shown(requests):
    shown = [requests.questions[3], "something else"]
    found = refusal_direction(requests, 1, shown)
    rows = requests.features[1]
    kept = [i for i in range(14) if i not in (2, 3)]
    refused, answered = rows[kept[::2]], rows[kept[1::2]]
    np.testing.assert_allclose(found.vector, difference_of_means(refused, answered))
    assert (found.n_groups, found.n_left_out) == (6, 1)
    means = [project(x, found.vector).mean() for x in (refused, answered)]
    assert found.distance == pytest.approx(means[0] - means[1])
    assert found.along(refused).mean() == pytest.approx(found.distance / 2)
    assert found.along(answered).mean() == pytest.approx(-found.distance / 2)
    assert refusal_direction(requests, 1, requests.questions) is None
    spoiled = found.along(np.where(np.arange(6)[:, None] == 2, np.inf, refused))
    assert np.flatnonzero(np.isnan(spoiled)).tolist() == [2]


def test_layers_that_are_not_finite_and_too_few_pairs_are_no_error(requests):
    assert probe_of(requests).n_groups == 7
    assert probe_of(replace(requests, features={})) is None
    few = replace(
        requests,
        questions=requests.questions[:6],
        refused=requests.refused[:6],
        groups=requests.groups[:6],
        features={layer: x[:6] for layer, x in requests.features.items()},
    )
    assert probe_of(few) is None
    record = SimpleNamespace
    rows = np.ones((4, 2), np.float32)
    run = SimpleNamespace(
        layers=[0, 1],
        numpy=lambda site, layer: rows * (np.nan if layer == 1 else 1.0),
        examples=[
            record(id="a", metadata={"censorship_category": "refusal", "twin": "b"}),
            record(id="b", metadata={"censorship_category": "none", "twin": "a"}),
            record(id="c", metadata={"censorship_category": "refusal", "twin": "gone"}),
            record(id="d", metadata={}),
        ],
    )
    found = requests_of(run)
    assert found.groups == ("a", "a") and list(found.features) == [0]


WORDS = ProbeScore(0.7, 0.6, 0.8, 0.64, 0.5, 80)


def probed(auroc, best_control):
    scores = tuple(ProbeScore(a, a - 0.05, min(1, a + 0.05), 0.6, 0.5, 80) for a in (0.55, auroc))
    return ProbeCurve((0, 1), scores, best_control, 40, 5, 200)


def test_the_probe_title_holds_when_the_finding_does_not():
    section = _probe_section(probed(0.9, 0.66), WORDS)
    assert section.title == (
        "Before the answer begins, block 1 tells requests to refuse from their harmless twins "
        "with an AUROC of 0.90 (95 % interval 0.85 to 0.95), above 0.66, the 95th percentile with "
        "shuffled labels"
    )
    assert "n = 80 questions" in section.caption and "40 kinds of request" in section.caption
    assert "word counts, without any model, has 0.70" in section.caption
    title = _probe_section(probed(0.64, 0.66), WORDS).title
    assert "no block is seen to tell" in title and "not above 0.66" in title


@pytest.mark.parametrize(
    ("refused", "twin", "says"),
    [
        ((5, 4), (-5, -4), "apart from its twin before the answer (5 against −5) and through it"),
        ((5, 1), (-5, 1), "before the answer (5 against −5), but not through it (1 against 1)"),
        ((1, 400), (1, -4), "does not set a request apart from its twin before the answer"),
        ((-5, 0), (5, 2), "neither before the answer (−5 against 5) nor through it (0 against 2)"),
    ],
)
def test_the_strip_title_says_where_the_twins_lie_apart(refused, twin, says):
    direction = SimpleNamespace(layer=2, distance=10.0)
    assert says in _strip_title(direction, refused, twin)
    nothing = SimpleNamespace(layer=2, distance=0.0)
    assert "neither" in _strip_title(nothing, (1, 1), (1, 1))


def answer(prompt, response, guesses):
    """An answer whose lens guesses, per layer, these tokens after each token."""
    ids = np.array([*prompt, *response])
    logits = np.zeros((len(guesses), len(ids), 10))
    for layer, row in enumerate(guesses):
        logits[layer, np.arange(len(ids) - 1), row] = 5
    lens = lens_of_logits(list(logits), ids, top_k=1)
    return Answer(0, "q", "a", ids, len(prompt) - 1, lens)


def test_the_twins_title_says_where_the_answers_part_and_which_block_knows():
    model = SimpleNamespace(tokenizer=None)
    refused = answer([1, 2], [3, 4, 5], [[9, 9, 9, 9], [2, 3, 9, 5], [2, 3, 4, 5]])
    twin = answer([1, 6], [3, 7], [[9, 9, 7], [6, 3, 7], [6, 3, 7]])
    assert _twins_title(model, refused, twin) == (
        "The two answers part at token 2: for the request to refuse the lens’s best guess is “4” "
        "from block 2 on, for its twin “7” from block 0 on"
    )
    unsure = answer([1, 6], [3, 7], [[9, 9, 9]] * 3)
    assert _twins_title(model, refused, unsure).endswith("“7” after no block")
    assert _twins_title(model, refused, refused).endswith("get the same answer")
    shorter = answer([1, 2], [3], [[2, 3]] * 3)
    assert _twins_title(model, refused, shorter).endswith("one is how the other begins")


def test_a_heatmap_of_the_beginning_keeps_rows_and_words_together():
    whole = answer(list(range(1, 9)), [3] * 25, [[9] * 32, [3] * 32])
    cut = _beginning(whole)
    start = whole.answer_from - 3
    assert cut.token_ids.tolist() == whole.token_ids[start : start + 18].tolist()
    assert cut.lens.actual_ids.tolist() == cut.token_ids[1:].tolist()
    np.testing.assert_array_equal(
        cut.lens.actual_prob, whole.lens.actual_prob[:, start : start + 17]
    )
    assert cut.token_ids[cut.answer_from + 1] == whole.token_ids[whole.answer_from + 1]
    short = answer([1, 2], [3], [[2, 3]])
    assert _beginning(short).token_ids.tolist() == [1, 2, 3]


@pytest.mark.parametrize("chat", [True, False])
def test_the_tour_of_a_model_that_is_not_the_bundled_one(tour, tmp_path, chat):
    hf = tiny_model("llama", vocab_size=300, max_position_embeddings=256)
    model = HFModel(hf, tiny_tokenizer(chat=chat), name="tiny")
    params = replace(tour, out=tmp_path / "runs", report=tmp_path / "report.html")
    run_tour(model, params)
    page = params.report.read_text(encoding="utf-8")
    assert re.search(r"Before the answer begins, (block \d tells|no block is seen)", page)
    assert page.count("<svg") >= 6 and "n = 14 questions" in page


def test_questions_without_the_twins_are_not_compared(tour, tmp_path):
    params = replace(
        tour, out=tmp_path / "runs", report=tmp_path / "r.html", questions=("Who is Mira?",)
    )
    run_tour(load_model("demo", "cpu"), params)
    page = params.report.read_text(encoding="utf-8")
    assert "AUROC" in page
    assert "answers part" not in page and "refusal direction" not in page
