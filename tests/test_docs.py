"""The documentation is true: its Python runs as it stands, and every command line in it parses."""

from __future__ import annotations

import json
import re
import shlex
from pathlib import Path

import click
import pytest

ROOT = Path(__file__).parent.parent
RUNNABLE = [
    "README.md",
    "docs/tutorial.md",
    "docs/tutorial-introspection.md",
    "docs/backends.md",
    "docs/trackers.md",
    "docs/studies.md",
    "docs/analysis.md",
    "docs/demo-model.md",
    "docs/interventions.md",
]
PAGES = ["README.md", *sorted(str(p.relative_to(ROOT)) for p in (ROOT / "docs").glob("*.md"))]


def blocks(page: str, language: str) -> list[str]:
    text = (ROOT / page).read_text(encoding="utf-8")
    return re.findall(rf"^```{language}\n(.*?)^```$", text, re.S | re.M)


@pytest.mark.parametrize("page", RUNNABLE)
def test_python_blocks_run_in_order(
    page: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    found = blocks(page, "python")
    assert found
    names: dict[str, object] = {}
    for number, block in enumerate(found):
        exec(compile(block, f"{page}, block {number}", "exec"), names)


def command_lines(page: str) -> list[str]:
    lines = [
        line for block in blocks(page, "(?:sh|bash)?") for line in block[-1:] and block.splitlines()
    ]
    return [
        re.split(r"\s{2,}|\s#", line)[0].strip() for line in lines if line.startswith("actscope ")
    ]


@pytest.mark.parametrize("page", PAGES)
def test_command_lines_parse(page: str) -> None:
    """Verbs and options exist and take what they are given; nothing is run."""
    from actscope.cli.main import main

    for line in command_lines(page):
        first, *rest = line.split(" | ")
        group = " ".join(first.split()[:2])
        for text in [first, *(f"{group} {other}" for other in rest)]:
            parse(main, shlex.split(text)[1:], text)


def parse(command: click.Command, arguments: list[str], text: str) -> None:
    with command.make_context(command.name or "actscope", list(arguments)) as context:
        if isinstance(command, click.Group) and context._protected_args:
            name, inner, rest = command.resolve_command(
                context, [*context._protected_args, *context.args]
            )
            assert inner is not None, f"{text}: no command {name}"
            parse(inner, rest, text)


def test_the_readme_tree_names_every_room() -> None:
    tree = (ROOT / "README.md").read_text(encoding="utf-8").partition("## The tree")[2]
    for room in (ROOT / "src" / "actscope").iterdir():
        if room.is_dir() and not room.name.startswith("__"):
            assert f"  {room.name}/" in tree, room.name


def test_every_seam_is_documented() -> None:
    from actscope.core import protocols

    pages = "".join((ROOT / page).read_text(encoding="utf-8") for page in PAGES)
    rooms = re.findall(r"^(\w+)/ ", str(protocols.__doc__), re.M)
    assert len(rooms) >= 7
    for room in rooms:
        assert f"{room}/" in pages, f"no page mentions the room {room}/"


def test_links_lead_somewhere() -> None:
    for page in [*PAGES, "CONTRIBUTING.md"]:
        text = (ROOT / page).read_text(encoding="utf-8")
        for target in re.findall(r"\]\((?!https?:)([^)#]+)", text):
            assert ((ROOT / page).parent / target).exists(), f"{page}: {target}"


def test_the_bundled_models_page_shows_the_committed_figures(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.syspath_prepend(str(ROOT / "benchmarks"))
    import demo_model

    text = (ROOT / "benchmarks/results/demo_model.json").read_text(encoding="utf-8")
    page = (ROOT / "docs/demo-model.md").read_text(encoding="utf-8")
    assert demo_model.markdown(json.loads(text)) in page


def test_the_reliability_page_shows_the_committed_figures(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.syspath_prepend(str(ROOT / "benchmarks"))
    import reliability

    text = (ROOT / "benchmarks/results/reliability.json").read_text(encoding="utf-8")
    page = (ROOT / "docs/reliability.md").read_text(encoding="utf-8")
    results = json.loads(text)
    assert reliability.markdown(results) in page
    assert all(row["right"] == row["times"] > 0 for row in results["faults"])


def test_the_performance_page_shows_the_committed_figures(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.syspath_prepend(str(ROOT / "benchmarks"))
    import capture_page

    found = json.loads((ROOT / "benchmarks/results/capture.json").read_text(encoding="utf-8"))
    page = (ROOT / "docs/performance.md").read_text(encoding="utf-8")
    assert found["rows"]
    assert capture_page.markdown(found) in page
    for row in found["rows"]:
        if "most" in row:
            found_here = row["ratio"]["median"]
            met = all(found_here[clock] <= most for clock, most in row["most"].items())
            assert row["met"] == met, row


def test_the_introspection_page_shows_the_committed_figures(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.syspath_prepend(str(ROOT / "benchmarks"))
    import introspection

    text = (ROOT / "benchmarks/results/introspection.json").read_text(encoding="utf-8")
    page = (ROOT / "docs/introspection.md").read_text(encoding="utf-8")
    assert introspection.markdown(json.loads(text)) in page


def test_the_committed_introspection_figures_are_what_the_page_expects() -> None:
    """The column `expected` of the page, read from the measurement itself."""
    text = (ROOT / "benchmarks/results/introspection.json").read_text(encoding="utf-8")
    found = json.loads(text)
    assert found["questions"] == 448 and found["seconds"]["all"] < 15 * 60
    assert 0.60 <= found["right answers"]["base"]["often"]["value"] <= 0.95
    measures = found["comparison"]["measures"]
    assert measures["ECE"]["difference"]["high"] < 0
    assert measures["Brier score"]["difference"]["high"] < 0
    assert found["tokens shared by the passes"] >= 0.6
    findings = found["findings"]
    entropy = findings["1_emergence"]["entropy"]
    assert entropy["n_shuffles"] == 200
    assert max(s["low"] for s in entropy["scores"]) > entropy["best_control_p95"]
    blocks = findings["5_causal_patching"]["by_block"]
    inner = [one for layer, one in blocks.items() if layer != max(blocks)]
    assert max(one["difference"]["low"] for one in inner) > 0
    apart = findings["4_self_versus_other"]["decoding_r"].values()
    assert any(min(d["gap"]["low"], d["own"]["low"], d["others"]["low"]) > 0 for d in apart)
