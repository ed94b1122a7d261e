"""Speed and memory of captures against floors and plain loops: every row of docs/performance.md.

    python benchmarks/capture.py [--only disk,pooled] [--model llama256x8] [--runs 5] [--quick]

Everything that is compared runs in turns (A B C A B C ...), in CPU seconds of the process and its
children and in wall clock; medians count. Models and texts are made on the spot
(``capture_models.py``). Results go to benchmarks/results/capture.json and docs/performance.md; with
--only or --model the other rows stay as they were measured before. Every row says at which revision
of the repository it was measured. A --quick run writes nothing there.
"""

from __future__ import annotations

import argparse
import json
import os
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
import numpy as np
import torch
from capture_clock import in_a_process, in_turns

from actscope import wrap_model
from actscope.core.provenance import environment

ROOT = Path(__file__).parents[1]
TEXTS = {"llama256x8": 512, "llama768x12": 48, "gpt2": 48, "neox512x6": 128}
"""How many of the texts each model reads, in full runs."""
MAIN = "llama256x8"
LOOPS = {"hooks": "loop", "naive": "naive"}
"""The rows of two loops by hand."""
Row = dict[str, Any]


@dataclass
class Bench:
    """What all rows of one model share."""

    name: str
    texts: list[list[int]]
    runs: int
    where: Path
    quick: bool
    fastest: str = ""

    def __post_init__(self) -> None:
        self.hf = capture_models.build(self.name)
        self.model = wrap_model(self.hf, None)
        self.tokens = sum(len(text) for text in self.texts)

    def against(self, others: dict[str, Callable[[], None]]) -> dict[str, dict[str, float]]:
        """Medians of some ways, and of the bare model under ``F``: of its fastest token budget.

        Every budget takes part in every round: which is fastest is not known before. It is the one
        whose fastest round is fastest, which varies less than medians do.
        """
        floors = {f"F{b}": ways.bare(self.hf, self.texts, b) for b in ways.BUDGETS}
        found = in_turns({**floors, **others}, self.runs)
        self.fastest = min(floors, key=lambda name: found[name]["least_cpu"])
        return {"F": found[self.fastest], **found}

    def ours(self, **what: Any) -> Callable[[], None]:
        return ways.ours(self.model, self.texts, self.where, **what)

    def row(self, row: str, floor: dict[str, float], ours: dict[str, float], **more: Any) -> Row:
        ratio = {clock: round(ours[clock] / floor[clock], 3) for clock in floor}
        return {
            "row": row, "model": self.name, "texts": len(self.texts), "tokens": self.tokens,
            "floor": floor, "ours": ours, "ratio": ratio, **more,
        }  # fmt: skip


def plus(a: dict[str, float], b: dict[str, float]) -> dict[str, float]:
    return {clock: round(a[clock] + b[clock], 5) for clock in a}


def revision() -> str:
    command = ["git", "describe", "--always", "--dirty", "--exclude=*"]
    done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, check=False)
    return done.stdout.strip() or "unknown"


def disk(bench: Bench) -> list[Row]:
    """All layers, all tokens, durable; against F + W, a good loop and a naive one."""
    hf, model, texts, where = bench.hf, bench.model, bench.texts, bench.where
    size = bench.tokens * model.d_model * 4 * model.n_layers
    found = bench.against(
        {
            "W": ways.raw_write(size, where),
            "ours": bench.ours(),
            "hooks": ways.hooks(hf, texts, where),
            "naive": ways.naive(hf, texts, where),
        }
    )
    faster = 5.0 if bench.name == MAIN else 4.0
    ours, least = found["ours"], plus(found["F"], found["W"])

    def against(loop: str, most: float) -> Row:
        """Beside the ratio, that of F + W, which nothing can be below."""
        best = {clock: round(least[clock] / found[loop][clock], 3) for clock in least}
        return bench.row(LOOPS[loop], found[loop], ours, most={"wall": most}, alone=best)

    return [
        bench.row("disk", least, ours, budget=int(bench.fastest[1:]),
                  parts={"F": found["F"], "W": found["W"]}, most={"cpu": 1.15, "wall": 1.10}),
        against("hooks", round(1 / 1.25, 3)),
        against("naive", round(1 / faster, 3)),
    ]  # fmt: skip


def pooled(bench: Bench) -> list[Row]:
    """One row a text, all layers; and the last token of a layer half way up."""
    layer = bench.model.n_layers // 2 - 1
    found = bench.against(
        {
            "last": bench.ours(strategy="last"),
            "mean": bench.ours(strategy="mean"),
            "half": bench.ours(strategy="last", layers=[layer]),
        }
    )
    part = {clock: took * (layer + 1) / bench.model.n_layers for clock, took in found["F"].items()}
    return [
        bench.row("last", found["F"], found["last"], most={"cpu": 1.05}),
        bench.row("mean", found["F"], found["mean"], most={"cpu": 1.05}),
        bench.row("half", part, found["half"], most={"cpu": 1.10}, layer=layer),
    ]


def pattern(bench: Bench) -> list[Row]:
    """The pattern of two heads of the last layer."""
    site = f"pattern.{bench.model.n_layers - 1}.head[0,1]"
    found = bench.against({"ours": bench.ours(sites=[site])})
    return [bench.row("pattern", found["F"], found["ours"], most={"cpu": 1.15})]


def generation(bench: Bench) -> list[Row]:
    """50 tokens of 32 prompts with all layers of every token, against the bare ``generate``."""
    prompts = [text[:64] for text in bench.texts[:32]]
    bench.hf.generation_config.eos_token_id = []
    width = max(len(text) for text in prompts)
    ids = torch.zeros(len(prompts), width, dtype=torch.long)
    mask = torch.zeros_like(ids)
    for row, text in enumerate(prompts):
        ids[row, width - len(text) :] = torch.tensor(text)
        mask[row, width - len(text) :] = 1

    def bare() -> None:
        with torch.no_grad():
            bench.hf.generate(
                ids, attention_mask=mask, max_new_tokens=50, do_sample=False, pad_token_id=0
            )

    def ours() -> None:
        bench.model.generate(prompts, 50, temperature=0, sites="resid_post", batch_tokens=1 << 20)

    found = in_turns({"bare": bare, "ours": ours}, bench.runs)
    return [bench.row("generation", found["bare"], found["ours"], most={"cpu": 1.10})]


def prefix(bench: Bench) -> list[Row]:
    """Three prompts a question that share 80 % of their tokens, against three plain passes."""
    rng = np.random.default_rng(0)
    texts: list[list[int]] = []
    for _ in range(8 if bench.quick else 32):
        head = rng.integers(10, 1500, 160).tolist()
        texts += [head + rng.integers(10, 1500, 40).tolist() for _ in range(3)]
    how = {"strategy": "last", "batch_tokens": 1024}
    found = in_turns(
        {
            "three": ways.ours(bench.model, texts, bench.where, **how),
            "shared": ways.ours(bench.model, texts, bench.where, share_prefix="auto", **how),
        },
        bench.runs,
    )
    row = bench.row("prefix", found["three"], found["shared"], most={"cpu": 0.56})
    return [{**row, "texts": len(texts), "tokens": sum(map(len, texts))}]


def memory(bench: Bench) -> list[Row]:
    """Peak resident memory of whole runs, each in a process of its own."""
    sizes = (60, 300) if bench.quick else (500, 5000)
    script = Path(children.__file__)
    bare = in_a_process(script, "bare", bench.name, bench.where, 512)
    peaks = [in_a_process(script, "rss", bench.name, bench.where, n) for n in sizes]
    batch = 512 * bench.model.d_model * 4 * bench.model.n_layers / 2**20
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
    return [
        {**row, "model": bench.name}
        for row in reading.rows(bench.model, bench.texts, bench.where, bench.runs, units)
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
MORE = {"pooled": 2, "generation": 10, "prefix": 10}
"""Rounds besides, where a few per cent count or a round is short."""


def judged(row: Row) -> Row:
    """Whether a row meets its target, where it has one figure for each clock."""
    if "most" not in row:
        return row
    return {**row, "met": all(row["ratio"][clock] <= most for clock, most in row["most"].items())}


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
        texts = capture_models.texts()[: 24 if given.quick else TEXTS[name]]
        bench = Bench(name, texts, runs, given.where, given.quick)
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
