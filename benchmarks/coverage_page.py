"""The page docs/coverage.md, from the results of the benchmark."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

__all__ = ["page", "totals"]

SIGNS = {
    "verified": "✓", "not applicable": "·", "unavailable": "✗", "WRONG": "**WRONG**",
    "unjudged": "?",
}  # fmt: skip

HEAD = """# Coverage: which sites on which types of model

Written by `python benchmarks/coverage.py` (`make coverage`); the figures are in
`benchmarks/results/coverage.json`. {what}

Every causal type of transformers {transformers}, some encoders and the encoders of
encoder-decoders, built tiny from config alone with random weights in float32: three blocks or more,
every kind of layer that the type has, its constants away from 1. Each row was judged by
`benchmarks/coverage_oracle.py`, which does not use the resolver:

* **residuals**: bitwise what plain hooks on the type's own decoder layers see, and Hugging Face's
  `hidden_states`; and the same for a text alone, beside longer ones padded on the right, and padded
  on the left;
* **contributions**: set to zero in an untouched copy, with all else as it was, the block's output
  changes by exactly the captured contribution; without all of them the block returns its input,
  bitwise;
* **`resid_mid`**: what the block returns without its MLP;
* **ends**: bitwise the embedding's own output, the base model's last hidden state, the model's own
  logits.

A type counts as verified where every block that has such a thing is.

| sign | meaning |
|---|---|
| ✓ | offered, and right |
| · | there is no such thing in this type, as the oracle has shown or its code says |
| ✗ | refused by actscope, with the reason |
| **WRONG** | offered, and not what it says |
| ? | offered, and no oracle judges this kind of site |
"""


def totals(results: dict[str, Any]) -> dict[str, dict[str, int]]:
    """Kind of site -> status -> number of types."""
    counts: dict[str, dict[str, int]] = {}
    for result in results.values():
        for kind, verdict in result.get("sites", {}).items():
            of_kind = counts.setdefault(kind, {})
            of_kind[verdict["status"]] = of_kind.get(verdict["status"], 0) + 1
    return counts


def page(results: dict[str, Any], environment: dict[str, Any]) -> str:
    """The whole page."""
    built = {name: r for name, r in results.items() if r["built"]}
    causal = [name for name in results if "/" not in name]
    what = (
        f"Of {len(causal)} causal types {sum(results[n]['built'] for n in causal)} are built; with "
        f"encoders these are {len(built)} rows."
    )
    kinds = list(totals(results))
    parts = [
        HEAD.format(transformers=environment["transformers"], what=what),
        "## Totals\n",
        *total_rows(results),
        "\n## Types\n",
        f"| type | {' | '.join(f'`{k}`' for k in kinds)} | why not |",
        f"|---|{':-:|' * len(kinds)}---|",
        *(row(name, result, kinds) for name, result in built.items()),
        *not_built(results),
    ]
    return "\n".join(parts) + "\n"


def total_rows(results: dict[str, Any]) -> Iterator[str]:
    yield "| site | verified / applicable | | no such thing | WRONG |"
    yield "|---|--:|--:|--:|--:|"
    for kind, counts in totals(results).items():
        ok, wrong = counts.get("verified", 0), counts.get("WRONG", 0)
        whole = ok + wrong + counts.get("unavailable", 0)
        if counts.get("unjudged"):
            yield f"| `{kind}` | offered on {counts['unjudged']}, not judged | | | |"
            continue
        share = f"{100 * ok / whole:.1f} %" if whole else ""
        absent = counts.get("not applicable", 0)
        yield f"| `{kind}` | {ok} / {whole} | {share} | {absent} | {wrong} |"


def row(name: str, result: dict[str, Any], kinds: list[str]) -> str:
    if "crash" in result:
        return f"| {name} | {' | '.join('**crash**' for _ in kinds)} | {result['crash'][-1]} |"
    sites = result["sites"]
    signs = [SIGNS[sites[k]["status"]] if k in sites else "" for k in kinds]
    return f"| {name} | {' | '.join(signs)} | {reasons(sites)} |"


def reasons(sites: dict[str, Any]) -> str:
    """Each reason once, with the sites that it is given for."""
    said: dict[str, list[str]] = {}
    for kind, verdict in sites.items():
        if verdict.get("reason"):
            text = verdict["reason"].replace("; module paths still work as sites", "")
            said.setdefault(text.replace("|", "\\|"), []).append(kind)
    everything = [text for text, kinds in said.items() if len(kinds) == len(sites)]
    if everything:
        return everything[0]
    return "; ".join(
        f"{', '.join(f'`{k}`' for k in kinds)}: {text}" for text, kinds in said.items()
    )


def not_built(results: dict[str, Any]) -> Iterator[str]:
    missing = {name: r["reason"] for name, r in results.items() if not r["built"]}
    if missing:
        yield "\n## Not built\n\n| type | why |\n|---|---|"
        yield from (f"| {name} | {reason} |" for name, reason in missing.items())
