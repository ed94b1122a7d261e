"""The introspection study on the bundled model and its adapter: every figure of its page.

    python benchmarks/introspection.py [--work introspect-run] [--rounds 5] [--costs-only]
        [--out benchmarks/results/introspection.json] [--page docs/introspection.md]

Collections that are there already are not made again; --costs-only measures time and memory anew
and keeps the other figures of --out. Batch sizes are measured in processes of their own, for the
largest memory each of them held. Processor time is of all threads, in turns, so that what else the
machine does bears on all ways alike.
"""

from __future__ import annotations

import argparse
import json
import subprocess
import sys
import tempfile
import time
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
from rich.console import Console

import actscope
from actscope.analysis.resampling import bootstrap
from actscope.capture.batches import PlannedBatch, batches_of
from actscope.core.activations import TokenRow
from actscope.core.protocols import CaptureSession
from actscope.core.provenance import environment
from actscope.studies.introspection.collect import collect, dry_run, forward_passes
from actscope.studies.introspection.data import Collection, open_collection
from actscope.studies.introspection.job import Job, resolve
from actscope.studies.introspection.params import (
    AnalysisParams,
    CollectParams,
    IntrospectionParams,
)
from actscope.studies.introspection.run import run_introspection

if TYPE_CHECKING:
    from actscope.backends.hf import HFModel

MARKS = ("<!-- figures begin -->", "<!-- figures end -->")
BATCHES: tuple[tuple[str, int | None], ...] = (("4", 4), ("8", 8), ("16", 16), ("default", None))
MEASURED = 192
TURNS = 4
"""Times that all questions are asked either way in a round: single times differ by half."""
NAMES = {
    "1_emergence": "Layer-wise probes",
    "2_surface_versus_internal": "Surface versus internal",
    "3_confidence_directions": "Confidence directions",
    "4_self_versus_other": "Self versus other",
    "5_causal_patching": "Causal patching",
}


def exposures(collection: Collection) -> dict[str, Any]:
    """Right answers by how often training showed a fact."""
    rows = collection["mcq"].rows
    right = collection["mcq"].numbers("is_correct")
    found: dict[str, Any] = {"all": bootstrap(lambda r: float(right[r].mean()), len(right))}
    for level in ("often", "sometimes", "rarely", "never"):
        kept = right[[row["source"]["exposure"] == level for row in rows]]
        found[level] = bootstrap(lambda r, k=kept: float(k[r].mean()), len(kept))
    return {name: one.to_json() for name, one in found.items()}


def follows(collection: Collection) -> dict[str, Any]:
    """Correlations of both stated confidences with what they were taught to follow."""
    rows = collection["mcq"].rows
    levels = ("never", "rarely", "sometimes", "often")
    causes = {
        "exposure": np.array([levels.index(row["source"]["exposure"]) for row in rows], float),
        "renown": np.array([row["source"]["renown"] for row in rows], float),
    }
    found: dict[str, Any] = {}
    for name in ("self_confidence", "other_confidence"):
        stated = collection[name].numbers(name)
        for cause, values in causes.items():
            one = bootstrap(
                lambda r, s=stated, v=values: float(np.corrcoef(s[r], v[r])[0, 1]), len(rows)
            )
            found[f"{name} and {cause}"] = one.to_json()
    return found


def run(work: Path, console: Console) -> dict[str, Any]:
    began, used = time.perf_counter(), time.process_time()
    model = actscope.load_model("demo")
    params = IntrospectionParams(work, num_questions=None, analysis=AnalysisParams())
    done = run_introspection(model, params, step=lambda name: console.print(name, markup=False))
    seconds = {**done.seconds, "all": time.perf_counter() - began}
    base, tuned = (open_collection(work / name)[0] for name in ("base", "finetuned"))
    assert done.analysed.comparison is not None
    budget = dry_run(model, CollectParams(work / "base"))
    return {
        "environment": environment(),
        "questions": len(base["mcq"]),
        "right answers": {"base": exposures(base), "finetuned": exposures(tuned)},
        "confidence follows": follows(base),
        "comparison": done.analysed.comparison.to_json(),
        "findings": {
            one.name: {"title": one.title, "paragraph": one.paragraph, **one.numbers}
            for one in done.analysed.findings
        },
        "tokens shared by the passes": round(budget.shared, 4),
        "bytes": budget.total_bytes,
        "seconds": {name: round(value, 1) for name, value in seconds.items()},
        "processor seconds": round(time.process_time() - used, 1),
        "resumed": {name: one.resumed for name, one in done.collected.items()},
    }


def units_of(job: Job) -> list[tuple[list[TokenRow], list[PlannedBatch]]]:
    """The prompts of each unit, and how they go through the model."""
    found: list[tuple[list[TokenRow], list[PlannedBatch]]] = []
    for start, stop in job.plan.units():
        rows = [one.row for one in job.of_unit(start, stop)]
        found.append((rows, batches_of(rows, job.plan, job.groups(len(rows)))))
    return found


def ask(session: CaptureSession, job: Job) -> None:
    """All prompts through the model, as ``collect`` does it, nothing written."""
    for rows, batches in units_of(job):
        forward_passes(session, rows, batches, lambda prompts, tokens: None, [])


def measure_sharing(rounds: int) -> dict[str, Any]:
    """The three passes with and without what they share computed once, in turns."""
    model = actscope.load_model("demo")
    jobs = {w: resolve(model, CollectParams(Path("none"), share_prefix=w)) for w in ("auto", "off")}
    seconds: dict[str, list[float]] = {way: [] for way in jobs}
    computed: dict[str, Any] = {}
    with model.open(jobs["auto"].selection) as session:
        for way, job in jobs.items():
            computed[way] = counted(model, session, job)
        for turn in range(TURNS * rounds):
            for way in sorted(jobs, reverse=bool(turn % 2)):
                used = time.process_time()
                ask(session, jobs[way])
                seconds[way].append(time.process_time() - used)
    whole: dict[str, list[float]] = {way: [] for way in jobs}
    for turn in range(rounds):
        for way in sorted(jobs, reverse=bool(turn % 2)):
            whole[way].append(collecting(model, way))
    return {
        "rounds": rounds,
        "tokens": sum(len(one.row) for one in jobs["off"].asked),
        "computed": computed,
        "forward passes": ratio_of(seconds),
        "collect": ratio_of(whole),
    }


def counted(model: HFModel, session: CaptureSession, job: Job) -> dict[str, int]:
    """Forward passes and the tokens in them, padding included."""
    shapes: list[tuple[int, int]] = []

    def look(module: Any, arguments: Any, output: Any) -> None:
        shapes.append(tuple(output.shape[:2]))

    hook = model.hf.get_input_embeddings().register_forward_hook(look)
    ask(session, job)
    hook.remove()
    return {"passes": len(shapes), "tokens": sum(n * columns for n, columns in shapes)}


def collecting(model: HFModel, way: str) -> float:
    """Processor seconds of a whole collection: prompts, passes, letters and files."""
    with tempfile.TemporaryDirectory() as folder:
        used = time.process_time()
        collect(model, CollectParams(Path(folder) / "run", share_prefix=way))
        return time.process_time() - used


def ratio_of(seconds: dict[str, list[float]]) -> dict[str, Any]:
    """Medians, and the median and range of the rounds' ratios."""
    ratios = [a / b for a, b in zip(seconds["auto"], seconds["off"], strict=True)]
    return {
        "seconds": {way: [round(value, 3) for value in all_] for way, all_ in seconds.items()},
        "shared": round(float(np.median(seconds["auto"])), 3),
        "plain": round(float(np.median(seconds["off"])), 3),
        "ratio": round(float(np.median(ratios)), 3),
        "lowest": round(min(ratios), 3),
        "highest": round(max(ratios), 3),
    }


def measure_batches(rounds: int) -> dict[str, Any]:
    """Processor time and memory of a collection by batch size, each in a process of its own."""
    found: dict[str, list[dict[str, Any]]] = {name: [] for name, _ in BATCHES}
    for _ in range(rounds):
        for name, size in BATCHES:
            command = [sys.executable, __file__, "--one-batch", str(size or 0)]
            done = subprocess.run(command, capture_output=True, text=True, check=True)
            found[name].append(json.loads(done.stdout.splitlines()[-1]))
    middle = {
        name: sorted(runs, key=lambda run: run["processor seconds"])[len(runs) // 2]
        for name, runs in found.items()
    }
    return {
        name: {**one, "all seconds": [run["processor seconds"] for run in found[name]]}
        for name, one in middle.items()
    }


def resident(field: str) -> int:
    """Memory of this process in kB, as Linux counts it."""
    lines = Path("/proc/self/status").read_text().splitlines()
    return int(next(line for line in lines if line.startswith(field)).split()[1])


def one_batch(size: int) -> None:
    model = actscope.load_model("demo")
    before = resident("VmRSS")
    Path("/proc/self/clear_refs").write_text("5")  # the largest memory counts from here on
    with tempfile.TemporaryDirectory() as folder:
        params = CollectParams(
            Path(folder) / "run", num_questions=MEASURED, batch_size=size or None, unit_size=64
        )
        used = time.process_time()
        done = collect(model, params)
        used = time.process_time() - used
    peak = resident("VmHWM")
    print(
        json.dumps(
            {
                "tokens": done.tokens,
                "processor seconds": round(used, 2),
                "tokens a second": round(done.tokens / used),
                "memory MB": round(peak / 1024),
                "more than the loaded model MB": round((peak - before) / 1024),
            }
        )
    )


def interval(one: dict[str, float], digits: int = 3) -> str:
    value, low, high = (f"{one[k]:.{digits}f}" for k in ("value", "low", "high"))
    return f"{value} | {low} to {high}"


def markdown(found: dict[str, Any]) -> str:
    """What stands between the marks of the page."""
    measures = found["comparison"]["measures"]
    entropy = found["findings"]["1_emergence"]["entropy"]
    best = max(entropy["scores"], key=lambda s: s["r2"])
    patch = found["findings"]["5_causal_patching"]["by_block"]
    most = max(list(patch)[:-1], key=lambda a: patch[a]["difference"]["value"])
    read = found["findings"]["4_self_versus_other"]["decoding_r"]
    apart = max(read, key=lambda a: read[a]["gap"]["value"])
    base = found["right answers"]["base"]
    rows = [
        ("right answers, facts shown often", "0.60 to 0.95", interval(base["often"])),
        ("right answers, all facts", "", interval(base["all"])),
        (
            "right answers, adapter minus base",
            "about 0",
            interval(measures["accuracy"]["difference"]),
        ),
        ("ECE, base", "", interval(measures["ECE"]["one"])),
        ("ECE, adapter", "", interval(measures["ECE"]["other"])),
        ("ECE, adapter minus base", "below 0", interval(measures["ECE"]["difference"])),
        (
            "Brier score, adapter minus base",
            "below 0",
            interval(measures["Brier score"]["difference"]),
        ),
        (
            f"entropy probe, R² (control {entropy['best_control_p95']:.3f})",
            "above its control",
            f"{best['r2']:.3f} | {best['low']:.3f} to {best['high']:.3f}",
        ),
        (
            f"patch after block {most}: share of the distance covered",
            "above its control",
            interval(patch[most]["restored"]),
        ),
        ("... with a random question", "", interval(patch[most]["control"])),
        ("... difference", "above 0", interval(patch[most]["difference"])),
        (
            f"own probe's r minus the other's, after block {apart}",
            "above 0",
            interval(read[apart]["gap"]),
        ),
        *((f"r of {name}", "", interval(one)) for name, one in found["confidence follows"].items()),
    ]
    lines = ["| figure | expected | measured | 95 % interval |", "|---|---|---|---|"]
    lines += [f"| {name} | {expected} | {value} |" for name, expected, value in rows]
    lines += ["", *_findings(found), "", *_costs(found)]
    return "\n".join(lines)


def _findings(found: dict[str, Any]) -> list[str]:
    lines: list[str] = []
    for name, one in found["findings"].items():
        lines += [f"**{NAMES[name]}.** *{one['title']}.* {one['paragraph']}", ""]
    return lines[:-1]


def _costs(found: dict[str, Any]) -> list[str]:
    seconds = found["seconds"]
    steps = ", ".join(f"{name} {value:.0f} s" for name, value in seconds.items())
    shared = found["tokens shared by the passes"]
    lines = [
        f"{found['questions']} questions, both models: {steps}; {found['processor seconds']:.0f} s "
        f"of processor time in all. {found['bytes'] / 1e6:.0f} MB a model.",
        "",
        *_sharing(found["sharing"], shared),
        "",
        "| `--batch-size` | tokens a processor second | largest memory (MB) | above the loaded "
        "model (MB) |",
        "|---|---|---|---|",
    ]
    for name, one in found["batches"].items():
        extra = one["more than the loaded model MB"]
        lines.append(f"| {name} | {one['tokens a second']:,} | {one['memory MB']} | {extra} |")
    return lines


def _sharing(found: dict[str, Any], shared: float) -> list[str]:
    lines = [
        f"**What the passes share.** {shared:.0%} of the tokens of a question's passes are common "
        f"to all three. Processor seconds of all questions, {found['rounds']} rounds in turns "
        f"({TURNS * found['rounds']} of the passes alone); the ratio is the median of the rounds'.",
        "",
        "| | `--share-prefix auto` | `off` | ratio (lowest to highest) | target |",
        "|---|---|---|---|---|",
    ]
    once, each = found["computed"]["auto"], found["computed"]["off"]
    for name, key in (
        ("tokens computed, padding included", "tokens"),
        ("forward passes", "passes"),
    ):
        ratio = once[key] / each[key]
        lines.append(f"| {name} | {once[key]:,} | {each[key]:,} | {ratio:.2f} | |")
    for name, target in (("forward passes", "at most 0.65"), ("collect", "")):
        one = found[name]
        what = "the three passes (s)" if target else "the whole collection, files included (s)"
        ratio = f"{one['ratio']:.2f} ({one['lowest']:.2f} to {one['highest']:.2f})"
        lines.append(f"| {what} | {one['shared']:.1f} | {one['plain']:.1f} | {ratio} | {target} |")
    return lines


def write_page(found: dict[str, Any], page: Path) -> None:
    text = page.read_text(encoding="utf-8")
    before, _, rest = text.partition(MARKS[0])
    _, _, after = rest.partition(MARKS[1])
    page.write_text(f"{before}{MARKS[0]}\n{markdown(found)}\n{MARKS[1]}{after}", encoding="utf-8")


def main() -> None:
    parser = argparse.ArgumentParser()
    parser.add_argument("--work", type=Path, default=Path("introspect-run"))
    parser.add_argument("--out", type=Path)
    parser.add_argument("--page", type=Path)
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--costs-only", action="store_true")
    parser.add_argument("--one-batch", type=int)
    arguments = parser.parse_args()
    if arguments.one_batch is not None:
        one_batch(arguments.one_batch)
        return
    found: dict[str, Any]
    if arguments.costs_only:
        found = json.loads(arguments.out.read_text(encoding="utf-8"))
    else:
        found = run(arguments.work, Console())
    found["sharing"] = measure_sharing(arguments.rounds)
    found["batches"] = measure_batches(min(arguments.rounds, 3))
    if arguments.out is not None:
        arguments.out.parent.mkdir(parents=True, exist_ok=True)
        arguments.out.write_text(json.dumps(found, indent=1, ensure_ascii=False) + "\n")
    if arguments.page is not None:
        write_page(found, arguments.page)
    Console().print(markdown(found), markup=False)


if __name__ == "__main__":
    main()
