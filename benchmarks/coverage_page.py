"""The page docs/coverage.md, from the results of the benchmark."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

from coverage_references import REFERENCES

__all__ = ["page", "totals"]

SIGNS = {
    "verified": "✓", "not applicable": "·", "unavailable": "✗", "WRONG": "**WRONG**",
    "unjudged": "?",
}  # fmt: skip

TARGETS: tuple[tuple[tuple[str, ...], int | None], ...] = (
    (("resid_pre", "resid_mid", "resid_post"), 98),
    (("attn_out", "mlp_out"), 85),
    (("q", "k", "v", "z", "pattern"), 75),
    (("mlp_pre", "mlp_post", "router"), None),
)
"""Kinds of site, and the percentage of applicable types that each of them is to reach, if any."""

HEAD = """# Coverage: which sites on which types of model

Written by `python benchmarks/coverage.py` (`make coverage`) on {date} with transformers
{transformers}, torch {torch} and actscope {actscope}; the figures are in
`benchmarks/results/coverage.json`. {what}

Every causal type of transformers {transformers}, some encoders and the encoders of
encoder-decoders, built tiny from config alone with random weights in float32: three blocks or more,
every kind of layer that the type has, its constants away from 1.

## Targets

{targets}

A type counts as verified where every block that has such a thing is, and as applicable where its
own code has such a thing anywhere.

## How it is judged

Each row was judged by `benchmarks/coverage_oracle.py`, which does not use the resolver; of actscope
it takes the captured values, what is offered at all, and which modules a contribution is read at:

* **residuals**: bitwise what plain hooks on the type's own decoder layers see, and Hugging Face's
  `hidden_states`; and the same for a text alone, beside longer ones padded on the right, and padded
  on the left;
* **contributions**: set to zero in an untouched copy, with all else as it was, the block's output
  changes by exactly the captured contribution; without all of them the block returns its input,
  bitwise;
* **`resid_mid`**: what the block returns without its MLP;
* **`pattern`**: Hugging Face's own attentions (`output_attentions=True` under eager attention), for
  the real tokens of a ragged batch;
* **`v`, `z`**: Hugging Face's pattern times `v` is `z`; both are what the type's own eager
  attention is given and returns, where it has such a function. Without one head of `v` that head's
  `z` is zero and no other changes; without one head of `z` a sum in the block changes by that
  head's part of the output projection, times at most a constant of the model or of a channel.
  Where a gate or a norm lies before that projection, the pattern times `v` alone decides;
* **`q`, `k`**: the log-ratios of the patterns of two texts follow one scale times `q k`, up to what
  does not depend on the tokens; and they are what the type's own eager attention is given;
* **`mlp_post`**: a linear map of the block receives it, and zeros in some neurons take that
  map's columns out of a sum in the block, times at most such a constant;
* **`mlp_pre`**: changed where it is made, the same neurons of `mlp_post` follow by the type's own
  activation function, and no others;
* **`router`**: what Hugging Face records as router logits, for as many experts as the configuration
  has;
* **ends**: bitwise the embedding's own output, the base model's last hidden state, the model's own
  logits.

For {references} families `q`, `k`, `v`, `z`, `pattern`, `mlp_pre` and `mlp_post` are compared with
formulas written by hand in numpy as well (`benchmarks/coverage_references.py`).

Whether a block attends is seen by what runs in it: a softmax over keys. Linear attention and
recurrent blocks have no pattern, and count as having no such thing. Whether a block has an MLP or a
mixture of experts is read off its own code; the neurons of a mixture are no site, since every token
goes through those of other experts.

| sign | meaning |
|---|---|
| ✓ | offered, and right |
| · | there is no such thing in this type, as the oracle has shown or its code says |
| ✗ | refused by actscope, with the reason |
| **WRONG** | offered, and not what it says |
| ? | offered, and no oracle judges this kind of site on this type |
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
        HEAD.format(
            what=what,
            targets="\n".join(target_rows(results)),
            references=len(REFERENCES),
            **{k: environment[k] for k in ("date", "transformers", "torch", "actscope")},
        ),
        "## Totals\n",
        *total_rows(results),
        "\n## Types\n",
        f"| type | {' | '.join(f'`{k}`' for k in kinds)} | why not |",
        f"|---|{':-:|' * len(kinds)}---|",
        *(row(name, result, kinds) for name, result in built.items()),
        *not_built(results),
    ]
    return "\n".join(parts) + "\n"


def share(counts: dict[str, int]) -> float:
    """The percentage of applicable types that are verified."""
    ok = counts.get("verified", 0)
    return 100 * ok / max(ok + counts.get("WRONG", 0) + counts.get("unavailable", 0), 1)


def target_rows(results: dict[str, Any]) -> Iterator[str]:
    yield "| sites | target | reached | |"
    yield "|---|--:|---|---|"
    found = totals(results)
    for kinds, target in TARGETS:
        reached = {kind: share(found[kind]) for kind in kinds if kind in found}
        missed = [f"`{kind}`" for kind, percent in reached.items() if percent < (target or 0)]
        told = ", ".join(f"`{kind}` {percent:.1f} %" for kind, percent in reached.items())
        names = ", ".join(f"`{kind}`" for kind in reached)
        verdict = f"missed by {', '.join(missed)}" if missed else "met"
        if target is None:
            yield f"| {names} | none set | {told} | |"
        else:
            yield f"| {names} | {target} % | {told} | {verdict} |"
    wrong = sum(counts.get("WRONG", 0) for counts in found.values())
    yield f"| all: WRONG | 0 | {wrong} | {'missed' if wrong else 'met'} |"


def total_rows(results: dict[str, Any]) -> Iterator[str]:
    yield "| site | verified / applicable | | no such thing | not judged | WRONG |"
    yield "|---|--:|--:|--:|--:|--:|"
    for kind, counts in totals(results).items():
        ok, wrong = counts.get("verified", 0), counts.get("WRONG", 0)
        whole = ok + wrong + counts.get("unavailable", 0)
        percent = f"{share(counts):.1f} %" if whole else ""
        absent, open_ones = counts.get("not applicable", 0), counts.get("unjudged", 0)
        yield f"| `{kind}` | {ok} / {whole} | {percent} | {absent} | {open_ones} | {wrong} |"


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
