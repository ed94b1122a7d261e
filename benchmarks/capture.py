"""Speed and memory of captures against floors and plain loops: every row of docs/performance.md.

    python benchmarks/capture.py [--only disk,pooled] [--model llama256x8] [--runs 5] [--quick]

Everything that is compared runs in turns of a fraction of a second (``capture_clock.py``), in CPU
seconds of the process and its children and in wall clock; medians count. Models and texts are made
on the spot (``capture_models.py``). Results go to benchmarks/results/capture.json and
docs/performance.md; with --only or --model the other rows stay as they were measured before. Every
row says at which revision of the repository it was measured. A --quick run writes nothing there.
"""

from __future__ import annotations

import argparse
import json
import os
import statistics
import subprocess
import tempfile
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import capture_children as children
import capture_models
import capture_page
import capture_reading as reading
import capture_ways as ways
import torch
from capture_clock import Times, by_turns, in_a_process, medians, plus, ratios

from actscope import wrap_model
from actscope.core.provenance import environment

ROOT = Path(__file__).parents[1]
TEXTS = {"llama256x8": 512, "llama768x12": 48, "gpt2": 48, "neox512x6": 128}
"""How many of the texts each model reads, in full runs."""
MAIN = "llama256x8"
TWICE = "F512"
"""The bare passes that are measured twice."""
LOOPS = {"hooks": "loop", "naive": "naive"}
"""The rows of two loops by hand."""
Row = dict[str, Any]


@dataclass
class Bench:
    """What all rows of one model share."""

    name: str
    count: int
    runs: int
    where: Path
    quick: bool
    threads: int = 0
    fastest: str = ""

    def __post_init__(self) -> None:
        shape = capture_models.shape(self.name)
        self.n_layers, self.d_model = shape
        self.texts = capture_models.texts()[: self.count]
        self.tokens = sum(len(text) for text in self.texts)

    def by_turns(self, ways: dict[str, dict[str, Any]]) -> dict[str, Times]:
        """Every way does it in a process of its own, in turns; see ``capture_clock.py``."""
        with tempfile.TemporaryDirectory() as folder:
            weights = Path(folder) / "weights.pt"
            torch.save(capture_models.build(self.name).state_dict(), weights)
            common = {
                "model": self.name, "weights": str(weights), "texts": self.count,
                "where": str(self.where), "threads": self.threads,
            }  # fmt: skip
            return by_turns({name: {**common, **way} for name, way in ways.items()}, self.runs)

    def against(self, others: dict[str, dict[str, Any]]) -> dict[str, Times]:
        """Some ways, and the bare model under ``F``: at its fastest token budget.

        Every budget takes part, for which is fastest is not known before, and one of them twice
        (``again``): how far two processes that do the same are apart tells what a ratio is worth.
        """
        floors = {f"F{budget}": {"way": "bare", "budget": budget} for budget in ways.BUDGETS}
        found = self.by_turns({**floors, **others, "again": floors[TWICE]})
        self.fastest = min(floors, key=lambda name: statistics.median(found[name]["cpu"]))
        return {"F": found[self.fastest], **found}

    def row(self, row: str, floor: Times, ours: Times, part: float = 1.0, **more: Any) -> Row:
        """Ours beside a part of the floor."""
        least = {clock: round(took * part, 5) for clock, took in medians(floor).items()}
        return {
            "row": row, "model": self.name, "texts": self.count, "tokens": self.tokens,
            "floor": least, "ours": medians(ours), "ratio": ratios(ours, floor, part), **more,
        }  # fmt: skip

    def again(self, found: dict[str, Times], group: str) -> Row:
        """The row of the bare passes that were measured twice."""
        budgets = {f"F{budget}": medians(found[f"F{budget}"]) for budget in ways.BUDGETS}
        return self.row(f"again-{group}", found[TWICE], found["again"], budgets=budgets)


def revision() -> str:
    command = ["git", "describe", "--always", "--dirty", "--exclude=*"]
    done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, check=False)
    return done.stdout.strip() or "unknown"


def disk(bench: Bench) -> list[Row]:
    """All layers, all tokens, durable; against F + W, a good loop and a naive one."""
    size = bench.tokens * bench.d_model * 4 * bench.n_layers
    found = bench.against(
        {
            "W": {"way": "write", "bytes": size},
            "ours": {"way": "ours"},
            "hooks": {"way": "hooks"},
            "naive": {"way": "naive"},
        }
    )
    faster = 5.0 if bench.name == MAIN else 4.0
    ours, least = found["ours"], plus(found["F"], found["W"])

    def against(loop: str, most: float) -> Row:
        """Beside the ratio, that of F + W, which nothing can be below."""
        alone = ratios(least, found[loop])["median"]
        return bench.row(LOOPS[loop], found[loop], ours, most={"wall": most}, alone=alone)

    parts = {name: medians(found[name]) for name in ("F", "W")}
    return [
        bench.row("disk", least, ours, budget=int(bench.fastest[1:]), parts=parts,
                  most={"cpu": 1.15, "wall": 1.10}),
        against("hooks", round(1 / 1.25, 3)),
        against("naive", round(1 / faster, 3)),
        bench.again(found, "disk"),
    ]  # fmt: skip


def pooled(bench: Bench) -> list[Row]:
    """One row a text, all layers; and the last token of a layer half way up."""
    layer = bench.n_layers // 2 - 1
    found = bench.against(
        {
            "last": {"way": "ours", "how": {"strategy": "last"}},
            "mean": {"way": "ours", "how": {"strategy": "mean"}},
            "half": {"way": "ours", "how": {"strategy": "last", "layers": [layer]}},
        }
    )
    part = (layer + 1) / bench.n_layers
    return [
        bench.row("last", found["F"], found["last"], most={"cpu": 1.05}),
        bench.row("mean", found["F"], found["mean"], most={"cpu": 1.05}),
        bench.row("half", found["F"], found["half"], part, most={"cpu": 1.10}, layer=layer),
        bench.again(found, "pooled"),
    ]


def pattern(bench: Bench) -> list[Row]:
    """The pattern of two heads of the last layer."""
    sites = [f"pattern.{bench.n_layers - 1}.head[0,1]"]
    found = bench.against({"ours": {"way": "ours", "how": {"sites": sites}}})
    return [
        bench.row("pattern", found["F"], found["ours"], most={"cpu": 1.15}),
        bench.again(found, "pattern"),
    ]


def generation(bench: Bench) -> list[Row]:
    """50 tokens of 32 prompts with all layers of every token, against the bare ``generate``."""
    found = bench.by_turns({"bare": {"way": "generate"}, "ours": {"way": "ours-generate"}})
    return [bench.row("generation", found["bare"], found["ours"], most={"cpu": 1.10})]


def prefix(bench: Bench) -> list[Row]:
    """Three prompts a question that share 80 % of their tokens, against three plain passes."""
    questions = 8 if bench.quick else 32
    common = {"way": "ours", "alike": True, "texts": questions}
    how = {"strategy": "last", "batch_tokens": 1024}
    found = bench.by_turns(
        {
            "three": {**common, "how": how},
            "shared": {**common, "how": {**how, "share_prefix": "auto"}},
        }
    )
    row = bench.row("prefix", found["three"], found["shared"], most={"cpu": 0.56})
    texts = capture_models.alike(questions)
    return [{**row, "texts": len(texts), "tokens": sum(map(len, texts))}]


def memory(bench: Bench) -> list[Row]:
    """Peak resident memory of whole runs, each in a process of its own."""
    sizes = (60, 300) if bench.quick else (500, 5000)
    script = Path(children.__file__)
    bare = in_a_process(script, "bare", bench.name, bench.where, 512)
    peaks = [in_a_process(script, "rss", bench.name, bench.where, n) for n in sizes]
    batch = 512 * bench.d_model * 4 * bench.n_layers / 2**20
    allowed = bare["peak_mb"] + 3 * batch + 400
    growth = peaks[1]["peak_mb"] / peaks[0]["peak_mb"]
    met = growth <= 1.05 and max(p["peak_mb"] for p in peaks) <= allowed
    return [
        {"row": "memory", "model": bench.name, "examples": sizes, "bare_mb": bare["peak_mb"],
         "peak_mb": [p["peak_mb"] for p in peaks], "allowed_mb": round(allowed),
         "growth": round(growth, 3), "met": met}
    ]  # fmt: skip


def read(bench: Bench) -> list[Row]:
    """Reading a run back, and opening and resuming runs of many units."""
    units = 500 if bench.quick else 10_000
    model = wrap_model(capture_models.build(bench.name), None)
    return [
        {**row, "model": bench.name}
        for row in reading.rows(model, bench.texts, bench.where, bench.runs, units)
    ]


ROWS: dict[str, tuple[Callable[[Bench], list[Row]], tuple[str, ...]]] = {
    "disk": (disk, capture_models.MODELS),
    "pooled": (pooled, (MAIN, "gpt2")),
    "pattern": (pattern, (MAIN,)),
    "generation": (generation, (MAIN,)),
    "prefix": (prefix, (MAIN,)),
    "memory": (memory, (MAIN,)),
    "read": (read, (MAIN,)),
}
"""Each group of rows, and the models it is measured on."""
MORE = {"generation": 10, "prefix": 10}
"""Times besides, where one is short."""


def judged(row: Row) -> Row:
    """Whether a row meets its target, where it has one figure for each clock."""
    if "most" not in row:
        return row
    found = row["ratio"]["median"]
    return {**row, "met": all(found[clock] <= most for clock, most in row["most"].items())}


def machine() -> dict[str, Any]:
    chip = "unknown"
    if Path("/proc/cpuinfo").exists():
        lines = Path("/proc/cpuinfo").read_text(encoding="utf-8").splitlines()
        chip = next((x.split(":")[1].strip() for x in lines if x.startswith("model name")), chip)
    return {
        "chip": chip, "cores": os.cpu_count(), "threads": torch.get_num_threads(),
        "load_at_start": round(os.getloadavg()[0], 1), **environment(),
    }  # fmt: skip


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("--only", default=",".join(ROWS), help="rows, by comma: " + ", ".join(ROWS))
    parser.add_argument("--model", default=",".join(capture_models.MODELS))
    parser.add_argument("--runs", type=int, default=5)
    parser.add_argument("--threads", type=int, default=0, help="of torch; its own choice if 0")
    parser.add_argument("--quick", action="store_true", help="few texts, two rounds: a rehearsal")
    parser.add_argument("--where", type=Path, default=Path(tempfile.gettempdir()))
    parser.add_argument("--out", type=Path, help="default: benchmarks/results/capture.json")
    parser.add_argument("--page", type=Path, help="default: docs/performance.md")
    given = parser.parse_args()
    if not given.quick:
        given.out = given.out or ROOT / "benchmarks/results/capture.json"
        given.page = given.page or ROOT / "docs/performance.md"
    if given.threads:
        torch.set_num_threads(given.threads)
    runs = 2 if given.quick else given.runs
    found: dict[str, Any] = {"machine": machine()}
    rows: list[Row] = []
    at = revision()
    for name in given.model.split(","):
        wanted = [r for r in given.only.split(",") if name in ROWS[r][1]]
        if not wanted:
            continue
        count = 24 if given.quick else TEXTS[name]
        bench = Bench(name, count, runs, given.where, given.quick, given.threads)
        for group in wanted:
            bench.runs = runs + (0 if given.quick else MORE.get(group, 0))
            made = [{**row, "at": at, "rounds": bench.runs} for row in ROWS[group][0](bench)]
            for row in map(judged, made):
                print(json.dumps(row), flush=True)
                rows.append(row)
    if given.out is None or given.page is None:
        return
    before = json.loads(given.out.read_text(encoding="utf-8")) if given.out.exists() else {}
    new = {(row["row"], row["model"]) for row in rows}
    kept = [row for row in before.get("rows", []) if (row["row"], row["model"]) not in new]
    found["rows"] = sorted(kept + rows, key=capture_page.place)
    given.out.write_text(json.dumps(found, indent=1) + "\n", encoding="utf-8")
    capture_page.write(given.page, found)


if __name__ == "__main__":
    main()
