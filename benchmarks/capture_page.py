"""docs/performance.md, from the measurements."""

from __future__ import annotations

import json
import sys
from pathlib import Path
from typing import Any

BEGIN, END = "<!-- measured: begin -->", "<!-- measured: end -->"
MEASURES = {
    "disk": ("all layers, all tokens, to disk, durable", "F + W"),
    "loop": ("the same", "a good plain loop: sorted, 16 rows, hooks, early stop, `np.save`"),
    "naive": ("the same", "naive loop: `output_hidden_states`, 16 rows as they come, `np.save`"),
    "last": ("last token, all layers, to disk", "F"),
    "mean": ("mean over tokens, all layers, to disk", "F"),
    "half": ("last token of layer k of n, half way up, to disk", "F x (k + 1) / n"),
    "pattern": ("pattern of 2 heads of the last layer, to disk", "F"),
    "generation": ("50 tokens of 32 prompts, all layers of every token", "bare `generate`"),
    "prefix": ("three prompts a question sharing 80 %, `share_prefix`", "our run without it"),
    "again-disk": ("the bare passes themselves, beside the rows to disk", "the same"),
    "again-pooled": ("the bare passes themselves, beside the pooled rows", "the same"),
}
OTHERS = ("memory", "layer-warm", "layer-cold", "example", "token", "open", "resume")
MODELS = ("llama256x8", "llama768x12", "gpt2", "neox512x6")


def place(row: dict[str, Any]) -> tuple[int, int]:
    return [*MEASURES, *OTHERS].index(row["row"]), MODELS.index(row["model"])


def _met(row: dict[str, Any]) -> str:
    if "met" not in row:
        return ""
    if row.get("close"):
        return "just" if row["met"] else "**just not**"
    return "yes" if row["met"] else "**no**"


def _both(clocks: dict[str, float]) -> str:
    return f"{clocks['cpu']:.2f} ({clocks['wall']:.2f})"


def _ratios(rows: list[dict[str, Any]]) -> list[str]:
    lines = [
        "| measure | against | model | texts | ours, CPU s (wall) | floor, CPU s (wall) | "
        "ratio, CPU (wall) | CPU ratio of each time | target | met |",
        "|---|---|---|---|---|---|---|---|---|---|",
    ]
    for row in rows:
        what, floor = MEASURES[row["row"]]
        most = row.get("most", {})
        target = ", ".join(f"{clock} <= {limit:g}" for clock, limit in most.items())
        if "alone" in row:
            target += f" (F + W alone: {row['alone']['cpu']:.2f})"
        ours, other = (_both(row[key]) for key in ("ours", "floor"))
        ratio = _both(row["ratio"]["median"])
        each = " to ".join(f"{row['ratio'][end]['cpu']:.2f}" for end in ("least", "most"))
        lines.append(
            f"| {what} | {floor} | {row['model']} | {row['texts']} | {ours} | {other} | {ratio} | "
            f"{each} | {target} | {_met(row)} |"
        )
    return lines


def _other(row: dict[str, Any]) -> tuple[str, str, str]:
    kind = row["row"]
    if kind == "memory":
        small, large = row["examples"]
        what = f"peak memory at {small} and {large} examples ({row['model']})"
        what += f", medians of {row['runs']} runs"
        got = (
            f"{row['peak_mb'][0]:.0f} and {row['peak_mb'][1]:.0f} MB; bare {row['bare_mb']:.0f} MB"
        )
        return what, got, f"growth <= 5 %, at most {row['allowed_mb']} MB"
    if kind.startswith("layer"):
        state = kind.partition("-")[2]
        share = f", {row['read_share']:.2f} of its bytes read" if "read_share" in row else ""
        what = f"one layer of a whole run, {row['bytes'] / 2**20:.0f} MiB, {state}"
        low, high = row["middle_half"]
        got = f"{row['speed']:.2f} of a sequential read (half of {row['runs']} pairs: {low:.2f} to"
        return what, f"{got} {high:.2f}){share}", ">= 0.8"
    if kind in ("example", "token"):
        what = {"example": "one example, 8 layers, warm", "token": "one token, warm"}[kind]
        return what, f"{row['ms']:.3f} ms", f"<= {row['most_ms']:g} ms"
    what = {"open": "opening a run of {:,} units", "resume": "scanning for what to resume, {:,}"}
    return what[kind].format(row["units"]), f"{row['seconds']:.3f} s", f"<= {row['most_s']:g} s"


def markdown(found: dict[str, Any]) -> str:
    """The tables of the page."""
    m = found["machine"]
    rows = found["rows"]
    revisions = ", ".join(sorted({row["at"] for row in rows}))
    rounds = " and ".join(
        map(str, sorted({row["rounds"] for row in rows if row["row"] in MEASURES}))
    )
    loads = " to ".join(f"{end(row['load'] for row in rows):g}" for end in (min, max))
    lines = [
        f"Measured on {m['chip']}, {m['cores']} cores, {m['threads']} threads of torch "
        f"{m['torch']}, transformers {m['transformers']}; load before the "
        f"rows {loads}; every way in a process of its own, by turns; medians of at least {rounds} "
        f"times, ratios of pairs in the same minutes; revision {revisions}.",
        "",
        *_ratios([row for row in rows if row["row"] in MEASURES]),
        "",
        "| measure | found | target | met |",
        "|---|---|---|---|",
    ]
    others = [row for row in rows if row["row"] not in MEASURES]
    lines += [f"| {' | '.join(_other(row))} | {_met(row)} |" for row in others]
    return "\n".join(lines)


def write(page: Path, found: dict[str, Any]) -> None:
    """Put the tables between the page's marks."""
    text = page.read_text(encoding="utf-8")
    head, rest = text.split(BEGIN)
    tail = rest.split(END)[1]
    page.write_text(f"{head}{BEGIN}\n{markdown(found)}\n{END}{tail}", encoding="utf-8")


if __name__ == "__main__":
    root = Path(__file__).parents[1]
    results = root / "benchmarks/results/capture.json"
    sys.exit(write(root / "docs/performance.md", json.loads(results.read_text(encoding="utf-8"))))
