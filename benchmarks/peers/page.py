"""The tables of the peers for a page: how many times as long as actscope each of them takes."""

from __future__ import annotations

import json
import statistics
from pathlib import Path
from typing import Any

BEGIN, END = "<!-- peers: begin -->", "<!-- peers: end -->"

TITLES = {
    "all_layers": "all layers, all tokens",
    "last_token_all_layers": "last token, all layers",
    "last_token_layer": "last token, one layer",
    "pattern": "pattern, 2 heads, 1 layer",
}
NAMES = {
    "actscope": "actscope",
    "hooks": "plain hooks with a stop (baukit's way)",
    "nnsight": "nnsight{}, stopped",
    "nnterp": "nnterp{}, stopped",
    "hf": "transformers{}, `output_hidden_states`",
    "transformer_lens": "TransformerLens{}, bridge",
    "hooked_transformer": "TransformerLens{}, `HookedTransformer`",
    "sae_lens": "SAELens{}, activations store",
}
VERSIONED = {
    "nnsight": "nnsight", "nnterp": "nnterp", "hf": "transformers", "sae_lens": "sae-lens",
    "transformer_lens": "transformer-lens", "hooked_transformer": "transformer-lens",
}  # fmt: skip
CLOSE = 0.03
"""Within this, two contenders are alike."""


def _figures(record: dict[str, Any], contender: str, task: str) -> dict[str, Any]:
    return record["contenders"].get(contender, {}).get("tasks", {}).get(task, {})


def ratio(record: dict[str, Any], contender: str, task: str, figure: str) -> float | None:
    """The median over the rounds of a contender's figure by actscope's of the same round."""
    if any("skipped" in record["contenders"].get(n, {}) for n in ("actscope", contender)):
        return None
    ours, theirs = (_figures(record, name, task) for name in ("actscope", contender))
    if any("skipped" in r or figure not in r for r in (ours, theirs)):
        return None
    rounds = zip(theirs[figure], ours[figure], strict=True)
    return statistics.median(a / b for a, b in rounds)


def cell(record: dict[str, Any], contender: str, task: str) -> str:
    """CPU seconds and wall clock, as multiples of actscope's; or why there are none."""
    cpu, wall = (ratio(record, contender, task, figure) for figure in ("cpu", "wall"))
    if cpu is None or wall is None:
        return "-"
    text = f"{cpu:.2f} / {wall:.2f}"
    return f"**{text}**" if min(cpu, wall) < 1 - CLOSE else text


def _own(record: dict[str, Any], task: str) -> str:
    figures = _figures(record, "actscope", task)
    if "skipped" in figures or "cpu" not in figures:
        return "-"
    return f"{statistics.median(figures['cpu']):.2f} s / {statistics.median(figures['wall']):.2f} s"


def _name(record: dict[str, Any], contender: str) -> str:
    version = record["contenders"][contender].get("versions", {}).get(VERSIONED.get(contender, ""))
    return NAMES[contender].format(f" {version}" if version else "")


def _megabytes(record: dict[str, Any], contender: str, task: str = "all_layers") -> str:
    peaks = _figures(record, contender, task).get("peak_rss")
    if not peaks:
        return "-"
    text = f"{max(peaks) / 2**20:.0f} MB"
    ours = _figures(record, "actscope", task).get("peak_rss", [0])
    return f"**{text}**" if max(peaks) < (1 - CLOSE) * max(ours) else text


def reasons(record: dict[str, Any]) -> list[str]:
    """Where actscope is behind, and by how much; what was left out, and why."""
    found = [line for task in TITLES for line in _behind(record, task)]
    for contender, figures in record["contenders"].items():
        name = _name(record, contender)
        if "skipped" in figures:
            found.append(f"{name}: left out, {figures['skipped']}")
        for task, title in TITLES.items():
            one = _figures(record, contender, task)
            if "skipped" in one:
                found.append(f"{name}, {title}: left out, {one['skipped']}")
    return found


def _behind(record: dict[str, Any], task: str) -> list[str]:
    lost: list[str] = []
    for contender in record["contenders"]:
        ratios = {name: ratio(record, contender, task, name) for name in ("cpu", "wall")}
        more = [
            f"{1 / value - 1:.0%} {'CPU seconds' if name == 'cpu' else 'wall clock'}"
            for name, value in ratios.items()
            if value is not None and value < 1 - CLOSE
        ]
        if more:
            lost.append(f"{_name(record, contender)} ({' and '.join(more)})")
    return [f"{TITLES[task]}: actscope takes more than {'; '.join(lost)}"] if lost else []


def largest_difference(record: dict[str, Any]) -> float:
    """Of any value of any contender from plain Hugging Face's, relative to its row's largest."""
    return max(
        task["difference"]
        for contender in record["contenders"].values()
        for task in contender.get("tasks", {}).values()
        if "difference" in task and "skipped" not in task
    )


def _busy(record: dict[str, Any]) -> str:
    """A remark where others had the processors: wall clocks are then mostly theirs."""
    load = record.get("load")
    if load and max(load) > record["cpus"]:
        return f"; load average {max(load):.0f} on {record['cpus']} CPUs: read the CPU seconds"
    return ""


def model_table(name: str, record: dict[str, Any]) -> str:
    """One model: a row per contender, then what is missing or slower."""
    subset = record["texts"] < record["all_texts"]
    extent = f"{record['texts']} of {record['all_texts']}" if subset else "all"
    extra = record["in_batches"] / record["tokens"] - 1
    lines = [
        f"**{name}**, {extent} texts ({record['tokens']:,} tokens; {extra:.0%} more with the "
        f"padding of 16 rows), {record['threads']} thread(s), {record['rounds']} rounds of "
        f"{record['times']} times"
        + ("; a subset, not the benchmark" if subset else "")
        + _busy(record)
        + f". Made by `{record['command']}`.",
        "",
        "| CPU / wall | " + " | ".join(TITLES.values()) + " | peak memory |",
        "|---" * (len(TITLES) + 2) + "|",
    ]
    for contender, figures in record["contenders"].items():
        if "skipped" in figures:
            continue
        own = contender == "actscope"
        cells = [_own(record, task) if own else cell(record, contender, task) for task in TITLES]
        row = [_name(record, contender), *cells, _megabytes(record, contender)]
        lines.append("| " + " | ".join(row) + " |")
    lines += [
        "",
        f"Largest difference of any value from plain Hugging Face, relative to the largest of its "
        f"row: {largest_difference(record):.1e}.",
    ]
    told = reasons(record)
    return "\n".join([*lines, *([""] if told else []), *(f"* {line}" for line in told)]) + "\n"


def peers_table(results: dict[str, Any]) -> str:
    """The section of a page: every model of ``benchmarks/results/peers.json``."""
    intro = (
        "actscope's own row has seconds, the others multiples of it (CPU seconds / wall clock, "
        "the median, each of two times in the same minutes): above 1 they are slower; where "
        "actscope is behind, the figures are bold. All write to disk: actscope with checksums and "
        "fsync, resumable; the others with `np.save` and nothing else, in batches of 16 texts of "
        "like length and without a mask. Peak memory is that of all layers, what a library imports "
        "included; less than actscope's is bold. What `output_hidden_states` calls the last layer "
        "has been through the final norm; the bridge of TransformerLens runs norm and unembedding "
        "where the last layer is wanted.\n"
    )
    return "\n".join([intro, *(model_table(name, record) for name, record in results.items())])


def write(page: Path, results: dict[str, Any]) -> None:
    """Put the tables between the page's marks."""
    head, rest = page.read_text(encoding="utf-8").split(BEGIN)
    tail = rest.split(END)[1]
    page.write_text(f"{head}{BEGIN}\n{peers_table(results)}{END}{tail}", encoding="utf-8")


if __name__ == "__main__":
    root = Path(__file__).parents[2]
    figures = root / "benchmarks/results/peers.json"
    write(root / "docs/performance.md", json.loads(figures.read_text(encoding="utf-8")))
