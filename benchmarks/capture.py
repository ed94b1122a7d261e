"""Speed and memory of captures against floors and plain loops: every row of docs/performance.md.

    python benchmarks/capture.py [--only disk,pooled] [--model llama256x8] [--runs 5] [--quick]

Everything that is compared runs by turns, in parts of its job (``capture_clock.py``), in CPU
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
from capture_clock import (
    Times,
    by_turns,
    end_in_order,
    in_a_process,
    means,
    medians,
    plus,
    ratios,
)  # fmt: skip

from actscope.core.provenance import environment

ROOT = Path(__file__).parents[1]
TEXTS = {"llama256x8": 512, "llama768x12": 48, "gpt2": 64, "neox512x6": 128}
"""How many of the texts each model reads, in full runs: groups of like length, evenly spread."""
MAIN = "llama256x8"
TWICE = "F512"
"""The bare passes that are measured twice."""
DECIDED = 0.04
"""Nearer to its target than this a ratio decides little: most twins differ by as much."""
READS, RUNS_OF_MEMORY = 31, 3
MOST = {"last": 1.05, "mean": 1.05, "half": 1.10, "pattern": 1.15}
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
        self.budgets = ways.BUDGETS[self.d_model >= ways.WIDE]
        self.texts = capture_models.sample(self.count)
        self.count = len(self.texts)
        self.tokens = sum(len(text) for text in self.texts)

    def by_turns(self, ways: dict[str, dict[str, Any]]) -> dict[str, Times]:
        """Every way does it in a process of its own, in turns; see ``capture_clock.py``."""
        with tempfile.TemporaryDirectory(dir=self.where) as folder:
            weights = Path(folder) / "weights.pt"
            torch.save(capture_models.build(self.name).state_dict(), weights)
            common = {
                "model": self.name, "weights": str(weights), "texts": self.count,
                "where": folder, "threads": self.threads,
            }  # fmt: skip
            return by_turns({name: {**common, **way} for name, way in ways.items()}, self.runs)

    def against(self, others: dict[str, dict[str, Any]]) -> dict[str, Times]:
        """Some ways, and the bare model under ``F``: at its fastest token budget.

        Every budget takes part, for which is fastest is not known before, and one of them twice
        (``again``): how far two processes that do the same are apart tells what a ratio is worth.
        """
        floors = {f"F{budget}": {"way": "bare", "budget": budget} for budget in self.budgets}
        found = self.by_turns({**floors, **others, "again": floors[TWICE]})
        self.fastest = min(floors, key=lambda name: statistics.median(found[name]["cpu"]))
        alike = self.fastest == TWICE
        floor = means(found[TWICE], found["again"]) if alike else found[self.fastest]
        return {"F": floor, **found}

    def row(self, row: str, floor: Times, ours: Times, part: float = 1.0, **more: Any) -> Row:
        """Ours beside a part of the floor."""
        least = {clock: round(took * part, 5) for clock, took in medians(floor).items()}
        return {
            "row": row, "model": self.name, "texts": self.count, "tokens": self.tokens,
            "floor": least, "ours": medians(ours), "ratio": ratios(ours, floor, part), **more,
        }  # fmt: skip

    def again(self, found: dict[str, Times], group: str) -> Row:
        """The row of the bare passes that were measured twice."""
        budgets = {f"F{budget}": medians(found[f"F{budget}"]) for budget in self.budgets}
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
        """Beside the ratio, that of F + W."""
        alone = ratios(least, found[loop])["median"]
        return bench.row(LOOPS[loop], found[loop], ours, most={"cpu": most}, alone=alone)

    parts = {name: medians(found[name]) for name in ("F", "W")}
    return [
        bench.row("disk", least, ours, budget=int(bench.fastest[1:]), parts=parts,
                  most={"cpu": 1.15, "wall": 1.10}),
        against("hooks", round(1 / 1.25, 3)),
        against("naive", round(1 / faster, 3)),
        bench.again(found, "disk"),
    ]  # fmt: skip


def pooled(bench: Bench) -> list[Row]:
    """One row a text, all layers; the last token of a layer half way up; two heads' pattern."""
    layer = bench.n_layers // 2 - 1
    chosen = {
        "last": {"strategy": "last"},
        "mean": {"strategy": "mean"},
        "half": {"strategy": "last", "layers": [layer]},
    }
    if bench.name == MAIN:
        chosen["pattern"] = {"sites": [f"pattern.{bench.n_layers - 1}.head[0,1]"]}
    found = bench.against({row: {"way": "ours", "how": how} for row, how in chosen.items()})
    parts, more = {"half": (layer + 1) / bench.n_layers}, {"half": {"layer": layer}}
    return [
        bench.row(row, found["F"], found[row], parts.get(row, 1.0), most={"cpu": MOST[row]},
                  budget=int(bench.fastest[1:]), **more.get(row, {}))
        for row in chosen
    ] + [bench.again(found, "pooled")]  # fmt: skip


def generation(bench: Bench) -> list[Row]:
    """50 tokens of 32 prompts with all layers of every token, against the bare ``generate``."""
    found = bench.by_turns({"bare": {"way": "generate"}, "ours": {"way": "ours-generate"}})
    row = bench.row("generation", found["bare"], found["ours"], most={"cpu": 1.10})
    texts = ways.prompts(bench.texts)
    return [{**row, "texts": len(texts), "tokens": sum(map(len, texts)) + 50 * len(texts)}]


def prefix(bench: Bench) -> list[Row]:
    """Three prompts a question that share 80 % of their tokens, against a run without sharing."""
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
    runs = 1 if bench.quick else RUNS_OF_MEMORY
    with ways.folder(bench.where) as path:
        bare = in_a_process(script, "bare", bench.name, path, 512)
        found = {n: [in_a_process(script, "rss", bench.name, path, n)["peak_mb"]
                     for _ in range(runs)] for n in sizes}  # fmt: skip
    peaks = [statistics.median(found[n]) for n in sizes]
    batch = 512 * bench.d_model * 4 * bench.n_layers / 2**20
    allowed = bare["peak_mb"] + 3 * batch + 400
    growth = peaks[1] / peaks[0]
    return [
        {"row": "memory", "model": bench.name, "examples": sizes, "bare_mb": bare["peak_mb"],
         "peak_mb": peaks, "each_mb": list(found.values()), "allowed_mb": round(allowed),
         "growth": round(growth, 3), "runs": runs,
         "met": growth <= 1.05 and max(peaks) <= allowed}
    ]  # fmt: skip


def read(bench: Bench) -> list[Row]:
    """Reading a run back, and opening and resuming runs of many units."""
    script, units = Path(reading.__file__), 500 if bench.quick else 10_000
    with ways.folder(bench.where) as path:
        found = in_a_process(script, bench.name, bench.count, path, READS, units)
    return [{**row, "model": bench.name} for row in found]


ROWS: dict[str, tuple[Callable[[Bench], list[Row]], tuple[str, ...]]] = {
    "disk": (disk, capture_models.MODELS),
    "pooled": (pooled, (MAIN, "gpt2")),
    "generation": (generation, (MAIN,)),
    "prefix": (prefix, (MAIN,)),
    "memory": (memory, (MAIN,)),
    "read": (read, (MAIN,)),
}
"""Each group of rows, and the models it is measured on."""
MORE = {"generation": 10, "prefix": 10}
"""Times besides, where one is short."""


def judged(row: Row) -> Row:
    """Whether a row meets its target, and whether that is further off than twins are."""
    if "most" not in row:
        return row
    off = [row["ratio"]["median"][clock] / most - 1 for clock, most in row["most"].items()]
    return {**row, "met": max(off) <= 0, "close": abs(max(off)) < DECIDED}


def machine() -> dict[str, Any]:
    chip = "unknown"
    if Path("/proc/cpuinfo").exists():
        lines = Path("/proc/cpuinfo").read_text(encoding="utf-8").splitlines()
        chip = next((x.split(":")[1].strip() for x in lines if x.startswith("model name")), chip)
    return {
        "chip": chip, "cores": os.cpu_count(), "threads": torch.get_num_threads(),
        **environment(),
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
    end_in_order()
    if not given.quick:
        given.out = given.out or ROOT / "benchmarks/results/capture.json"
        given.page = given.page or ROOT / "docs/performance.md"
    if given.threads:
        torch.set_num_threads(given.threads)
    runs = 2 if given.quick else given.runs
    at = revision()
    for name in given.model.split(","):
        wanted = [r for r in given.only.split(",") if name in ROWS[r][1]]
        count = 24 if given.quick else TEXTS[name]
        bench = Bench(name, count, runs, given.where, given.quick, given.threads)
        for group in wanted:
            bench.runs = runs + (0 if given.quick else MORE.get(group, 0))
            about = {"at": at, "rounds": bench.runs, "load": round(os.getloadavg()[0], 1)}
            rows = [judged({**about, **row}) for row in ROWS[group][0](bench)]
            for row in rows:
                print(json.dumps(row), flush=True)
            if given.out is not None and given.page is not None:
                keep(rows, given.out, given.page)


def keep(rows: list[Row], out: Path, page: Path) -> None:
    """Put rows in the place of those measured before: a benchmark that is stopped has the rest."""
    before = json.loads(out.read_text(encoding="utf-8")) if out.exists() else {}
    new = {(row["row"], row["model"]) for row in rows}
    kept = [row for row in before.get("rows", []) if (row["row"], row["model"]) not in new]
    found = {"machine": machine(), "rows": sorted(kept + rows, key=capture_page.place)}
    out.write_text(json.dumps(found, indent=1) + "\n", encoding="utf-8")
    capture_page.write(page, found)


if __name__ == "__main__":
    main()
