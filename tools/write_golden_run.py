"""Write the golden runs of a format version: tiny runs that every later version has to read.

    python tools/write_golden_run.py tests/golden/v1

Run it once for each new format version, into a new folder, and once more for each kind of run that
is new in it: runs that are there are left alone, because what an old version wrote is the point.
The values are made here, without a model, and go to ``expected.json`` straight from here, without a
store.
"""

from __future__ import annotations

import argparse
import json
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np

from actscope.core.activations import ActivationBatch, ExampleFailure, ExampleRecord
from actscope.core.arrays import DTYPES
from actscope.core.sites import Site
from actscope.core.spec import UnitPlan, unit_id
from actscope.stores import STORES

RESID, Z, PATTERN, WIDE, LAST = (
    Site("resid_post", 0),
    Site("z", 1),
    Site("pattern", 1, parts=(0, 3)),
    Site("mlp_post", 1),
    Site("ln_final"),
)
DTYPE = {
    RESID: "bfloat16",
    Z: "float32",
    PATTERN: "float32",
    WIDE: "float16",
    LAST: "float32",
}
HEADS = {Z: 2, PATTERN: 2}
LENGTHS = (1, 3, 2)
"""Tokens of the three examples; the fourth failed."""

SPECIAL = (-0.0, float("nan"), float("inf"), float("-inf"), 1e-45, 3.4e38)
FAILURE = ExampleFailure("p3", 3, "too_long", "prompt 'p3' has 9 tokens; the limit is 3")
UNITS = ((0, 2), (2, 4))
RUNS: dict[str, tuple[str, bool, str | None]] = {
    "shards": ("shards", False, None),
    "npz": ("npz", False, None),
    "hdf5": ("hdf5", False, None),
    "pickle": ("pickle", False, None),
    "pooled": ("shards", True, None),
    "int8": ("shards", False, "int8"),
    "zstd": ("shards", False, "zstd"),
}


def sites_of(pooled: bool, codec: str | None) -> list[Site]:
    """Coded runs have rows wide enough to be worth coding; pooled ones have no pattern."""
    left_out = {PATTERN} if pooled else set[Site]()
    return [site for site in DTYPE if site not in left_out and (codec or site is not WIDE)]


def records() -> list[ExampleRecord]:
    """The examples, with texts that are easily spoilt."""
    texts = ("plain", "é \ud83d \0 \u202eright to left", "日本 🙂 \n<script>")
    return [
        ExampleRecord(
            f"p{i}", i, n, max(n - 1, 1), text, "and an answer" if n > 1 else None,
            {"rank": i, "score": 0.5 * i, "tags": ["a", None, True]}, "a note" if i else "",
            "hm" if i == 2 else None,
        )
        for i, (n, text) in enumerate(zip(LENGTHS, texts, strict=True))
    ]  # fmt: skip


def values(site: Site, example: int, pooled: bool) -> list[float]:
    """The values of an example at a site: eighths, which every dtype holds."""
    n = LENGTHS[example]
    if site.layout == "blocks":
        count = HEADS[site] * n * n
    else:
        count = (1 if pooled else n) * {Z: 4, WIDE: 100}.get(site, 3)
    made = [(17 * example + 5 * k + len(str(site))) % 64 / 8 - 4.0 for k in range(count)]
    if site is LAST and example == 2 and not pooled:
        made[: len(SPECIAL)] = SPECIAL[: len(made)]
    return made


def batch(start: int, stop: int, pooled: bool, codec: str | None) -> ActivationBatch:
    """The examples of a range; the fourth is a failure."""
    places = [i for i in range(start, stop) if i < len(LENGTHS)]
    lengths = [LENGTHS[i] for i in places]
    rows = [1] * len(places) if pooled else lengths
    sites = sites_of(pooled, codec)
    arrays = {}
    for site in sites:
        flat = np.array([x for i in places for x in values(site, i, pooled)], np.float32)
        shape = (-1,) if site is PATTERN else (sum(rows), -1)
        arrays[site] = flat.astype(DTYPES[DTYPE[site]]).reshape(shape)
    tokens = [(i, at) for i, n in zip(places, lengths, strict=True) for at in range(n)]
    positions = [] if pooled else [at for _, at in tokens]
    return ActivationBatch(
        arrays=arrays,
        offsets=np.cumsum([0, *rows]).astype(np.int64),
        positions=np.array(positions, np.int32),
        examples=tuple(records()[i] for i in places),
        token_ids=np.array([1000 * i + at for i, at in tokens], np.int64),
        token_offsets=np.cumsum([0, *lengths]).astype(np.int64),
        phase=np.array([phase(i, at) for i, at in tokens], np.uint8),
        pooled=pooled,
        failures=(FAILURE,) if stop == 4 else (),
        heads={site: HEADS[site] for site in sites if site in HEADS},
    )


def phase(example: int, position: int) -> int:
    """Prompt, then reasoning in the third example, then the answer."""
    return int(position >= max(LENGTHS[example] - 1, 1)) * (2 if example == 2 else 1)


def spec(pooled: bool, codec: str | None) -> dict[str, Any]:
    """A spec as a capture makes it, of a model that does not exist."""
    return {
        "model": {"name": "golden", "revision": "1" * 40, "n_layers": 2, "d_model": 3},
        "dataset": "d" * 64,
        "sites": [str(site) for site in sites_of(pooled, codec)],
        "span": "all",
        "strategy": {"name": "mean" if pooled else "none", "params": {}},
        "storage_dtype": "native",
        "keep_text": True,
        **({"codec": codec} if codec else {}),
    }


def expected(pooled: bool, codec: str | None) -> dict[str, Any]:
    """What a reader must find: int8 keeps eighths as they are."""
    sites = sites_of(pooled, codec)
    whole = replace(batch(0, 4, pooled, codec), examples=tuple(records()))
    return {
        "spec": spec(pooled, codec),
        "units": [unit_id(*bounds) for bounds in UNITS],
        "examples": [record.to_json() for record in records()],
        "tokens": [whole.tokens(i).tolist() for i in range(3)],
        "phase": [[phase(i, at) for at in range(n)] for i, n in enumerate(LENGTHS)],
        "failures": [FAILURE.to_json()],
        "pooled": pooled,
        "values": {
            str(site): [[repr(x) for x in values(site, i, pooled)] for i in range(3)]
            for site in sites
        },
        "dtypes": {str(site): "float32" if pooled else DTYPE[site] for site in sites},
        "heads": {str(site): HEADS[site] for site in sites if site in HEADS},
    }


def main() -> None:
    parser = argparse.ArgumentParser(description=str(__doc__).partition("\n")[0])
    parser.add_argument("folder", type=Path)
    folder = parser.parse_args().folder
    folder.mkdir(parents=True, exist_ok=True)
    record = folder / "expected.json"
    found = json.loads(record.read_text(encoding="utf-8")) if record.exists() else {}
    for name, (store, pooled, codec) in RUNS.items():
        if name in found:
            continue
        plan = UnitPlan(0, 4, 2, batch_tokens=64)
        writer = STORES.get(store)(folder).open_run(name, spec(pooled, codec), plan.to_json())
        for start, stop in UNITS:
            metadata = {"start": start, "stop": stop, "timings": {"capture": 0.25}}
            writer.append(unit_id(start, stop), batch(start, stop, pooled, codec), metadata)
        found[name] = {"store": store, **expected(pooled, codec)}
    text = json.dumps(found, indent=1) + "\n"
    record.write_text(text, encoding="utf-8")


if __name__ == "__main__":
    main()
