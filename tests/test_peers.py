"""The benchmark of the peers: what is missing is skipped with a reason, what is wrong is seen."""

from __future__ import annotations

import json
import shutil
import sys
from pathlib import Path
from typing import Any

import capture_models
import numpy as np
import pytest
import torch
from peers import (
    adapter_actscope,
    adapter_hf,
    adapter_hooks,
    child,
    environments,
    page,
    reference,
    run,
)
from peers.batches import sorted_batches
from peers.tasks import TASKS

from actscope.testing.tiny_models import VOCAB, tiny_model

RESULTS = Path(__file__).parent.parent / "benchmarks" / "results" / "peers.json"
ADAPTERS: dict[str, Any] = {
    "actscope": adapter_actscope, "hf": adapter_hf, "hooks": adapter_hooks,
}  # fmt: skip


def some_texts(count: int) -> list[list[int]]:
    rng = np.random.default_rng(0)
    return [rng.integers(3, VOCAB, size=n).tolist() for n in rng.integers(4, 40, size=count)]


def arguments(tmp_path: Path, *more: str) -> Any:
    return run.arguments(["--scratch", str(tmp_path), "--rounds", "1", "--texts", "20", *more])


def test_what_does_not_install_is_skipped_with_pips_own_reason(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "requirements-gone.txt").write_text("# a peer\nno-such-peer-of-ours==9.9\n")
    monkeypatch.setattr(run, "HERE", tmp_path)
    venvs = tmp_path / "venvs"
    for _ in range(2):  # a failure is not taken for an environment the next time
        found = run.pythons(["gone", "unheard"], venvs, ("--no-index",))
        assert found["actscope"] == Path(sys.executable)
        assert found["gone"].startswith("pip: ")
        assert "no-such-peer-of-ours" in found["gone"]
        assert found["unheard"] == "there is no requirements-unheard.txt"


def test_an_environment_is_made_once_for_the_same_pins(tmp_path: Path) -> None:
    first, second = tmp_path / "requirements-a.txt", tmp_path / "requirements-b.txt"
    first.write_text("# one peer\n")
    second.write_text("# another with the same pins\n")
    python = environments.prepare(first, tmp_path / "venvs")
    made = python.parent.stat().st_mtime_ns
    assert environments.prepare(second, tmp_path / "venvs") == python
    assert python.parent.stat().st_mtime_ns == made
    second.write_text("no-such-peer-of-ours==9.9\n")
    with pytest.raises(environments.SkippedError, match="no-such-peer-of-ours"):
        environments.prepare(second, tmp_path / "venvs", ("--no-index",))


def test_a_missing_peer_stands_in_the_record_and_on_the_page(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(capture_models, "build", tiny_model)
    monkeypatch.setattr(capture_models, "texts", lambda: some_texts(40))
    [record] = run.measure("llama", {"nnsight": "pip: no such thing"}, arguments(tmp_path))
    assert record["contenders"] == {"nnsight": {"skipped": "pip: no such thing"}}
    assert (record["texts"], record["all_texts"]) == (16, 40)
    assert page.reasons(record) == ["nnsight, stopped: left out, pip: no such thing"]
    assert not list(tmp_path.iterdir())


@pytest.mark.parametrize("family", ["llama", "gpt2", "gpt_neox"])
def test_plain_adapters_and_actscope_agree_with_hugging_face(family: str, tmp_path: Path) -> None:
    texts = some_texts(20)  # more than one batch of 16
    tiny_model(family).save_pretrained(tmp_path / "model")
    truth, n_layers = reference.values(tmp_path / "model", texts, reference.sample(texts))
    assert len({text for text, _ in truth}) == reference.SAMPLE
    for name, adapter in ADAPTERS.items():
        contender = adapter.load(tmp_path / "model")
        assert contender.n_layers == n_layers
        for task in TASKS:
            figures = child.first(contender, task, texts, tmp_path / name)
            assert figures["bytes"] > 0, figures
            off = reference.difference(
                name, task, tmp_path / name / task, truth, n_layers,
                last_is_normed=contender.last_is_normed,
            )  # fmt: skip
            assert off < 1e-5, (name, task, off)


def test_wrong_values_and_shapes_are_seen(tmp_path: Path) -> None:
    texts = some_texts(5)
    tiny_model("llama").save_pretrained(tmp_path / "model")
    truth, n_layers = reference.values(tmp_path / "model", texts, reference.sample(texts))
    contender = adapter_hooks.load(tmp_path / "model")
    contender.all_layers(texts, tmp_path / "out")

    def off(normed: bool = False) -> float:
        return reference.difference(
            "hooks", "all_layers", tmp_path / "out", truth, n_layers, last_is_normed=normed
        )

    assert off() < 1e-5
    assert off(normed=True) > reference.WRONG  # the stream is not what the final norm makes of it
    file = tmp_path / "out" / "00000.1.npy"
    values = np.load(file)
    spoiled = values.copy()
    spoiled[0, 0, 0] = np.nan
    np.save(file, spoiled)
    assert off() == np.inf
    np.save(file, values[..., :-1])
    with pytest.raises(ValueError, match=r"all_layers, 1: .* and not"):
        off()
    shutil.rmtree(tmp_path / "out")
    with pytest.raises(OSError, match=r"batches\.json"):
        off()


def test_batches_hold_every_text_once_and_pad_on_the_right() -> None:
    texts = some_texts(37)
    batches = list(sorted_batches(texts))
    assert sorted(i for batch in batches for i in batch.texts) == list(range(37))
    assert [len(batch.texts) for batch in batches] == [16, 16, 5]
    for batch in batches:
        for row, (text, length) in enumerate(zip(batch.texts, batch.lengths, strict=True)):
            assert batch.ids[row].tolist()[:length] == texts[text]
        hidden = torch.arange(batch.ids.numel()).reshape(*batch.ids.shape, 1)
        wanted = [hidden[row, n - 1].tolist() for row, n in enumerate(batch.lengths)]
        assert batch.last(hidden).tolist() == wanted


def test_a_peer_that_was_dropped_in_a_later_round_is_behind_nothing() -> None:
    record = a_record(0.5)
    record["contenders"]["hooks"]["skipped"] = "over 5 s"
    for clock in ("cpu", "wall"):
        record["contenders"]["hooks"]["tasks"]["all_layers"][clock].pop()
    assert [line for line in page.reasons(record) if "takes more" in line] == []
    assert page.cell(record, "hooks", "all_layers") == "-"


def a_record(theirs: float, difference: float = 1e-7) -> dict[str, Any]:
    def figures(seconds: float) -> dict[str, Any]:
        each = {"cpu": [seconds] * 3, "wall": [seconds] * 3, "peak_rss": [2**20] * 3}
        return {"tasks": {task: {**each, "difference": difference} for task in TASKS}}

    return {"texts": 4, "all_texts": 4, "tokens": 9, "in_batches": 9, "threads": 1, "rounds": 3,
            "times": 1, "command": "run.py",
            "contenders": {"actscope": figures(1.0), "hooks": figures(theirs)}}  # fmt: skip


def test_the_page_says_where_actscope_is_behind() -> None:
    ahead, behind = page.model_table("m", a_record(2.0)), page.model_table("m", a_record(0.8))
    assert "| 2.00 / 2.00 |" in ahead
    assert "actscope takes more" not in ahead
    assert "| **0.80 / 0.80** |" in behind
    told = "plain hooks with a stop (baukit's way) (25% CPU seconds and 25% wall clock)"
    assert behind.count(f"actscope takes more than {told}\n") == len(TASKS)


def test_the_page_says_that_the_machine_was_busy() -> None:
    busy, calm = ({**a_record(2.0), "cpus": 2, "load": [0.5, load]} for load in (7.8, 1.5))
    assert "load average 8 on 2 CPUs" in page.model_table("m", busy)
    assert "load average" not in page.model_table("m", calm)


def test_wrong_values_have_no_figures(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    record = a_record(0.5)["contenders"]["hooks"]
    found = {"last_is_normed": False, "tasks": {"all_layers": {"cpu": [0.5]}}}
    monkeypatch.setattr(reference, "difference", lambda *_a, **_k: 0.5)
    run.compare("hooks", found, record, tmp_path, ({}, 3))
    assert record["tasks"]["all_layers"]["skipped"].startswith("wrong values: off by 5.0e-01")
    whole = a_record(0.5)
    whole["contenders"]["hooks"] = record
    assert page.cell(whole, "hooks", "all_layers") == "-"


def test_the_committed_figures_make_a_page_and_no_value_in_them_is_wrong() -> None:
    results = json.loads(RESULTS.read_text(encoding="utf-8"))
    text = page.peers_table(results)
    docs = Path(__file__).parent.parent / "docs" / "performance.md"
    assert text in docs.read_text(encoding="utf-8")
    for name, record in results.items():
        assert name in capture_models.MODELS
        assert f"**{name}**" in text
        assert page.largest_difference(record) < reference.WRONG
        assert ("a subset" in text) == (record["texts"] < record["all_texts"])
        for contender, figures in record["contenders"].items():
            assert "skipped" in figures or set(figures["tasks"]) == set(TASKS), contender


@pytest.mark.slow
def test_a_contender_runs_in_a_process_of_its_own(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(capture_models, "build", lambda name: tiny_model(name, vocab_size=2000))
    monkeypatch.setattr(capture_models, "texts", lambda: some_texts(8))
    here = Path(sys.executable)
    found = {"actscope": here, "hooks": here, "nnsight": here}
    [record] = run.measure("llama", found, arguments(tmp_path))
    assert "nnsight" in record["contenders"]["nnsight"]["skipped"]  # it is not installed here
    for name in ("actscope", "hooks"):
        tasks = record["contenders"][name]["tasks"]
        assert set(tasks) == set(TASKS)
        for task in tasks.values():
            assert task["difference"] < 1e-5
            assert task["cpu"][0] > 0
            assert task["peak_rss"][0] > 2**20
