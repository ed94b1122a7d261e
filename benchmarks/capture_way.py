"""One of the ways of ``capture_ways.py``, over and over, until it is killed.

    python benchmarks/capture_way.py '{"model": "gpt2", "weights": "gpt2.pt", "texts": 48,
                                       "way": "bare", "budget": 512, "where": "/tmp"}'

Every time it is done, a line of JSON tells the CPU seconds, and when it began and was over on the
system's monotonic clock. Weights are mapped from a file: all processes read the same pages of
memory.
"""

from __future__ import annotations

import gc
import json
import resource
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import capture_models
import capture_ways as ways
import torch

from actscope import wrap_model


def cpu_seconds() -> float:
    """Of this process and its finished children, all threads, in user and kernel mode."""
    usage = [resource.getrusage(who) for who in (resource.RUSAGE_SELF, resource.RUSAGE_CHILDREN)]
    return sum(one.ru_utime + one.ru_stime for one in usage)


def chosen(told: dict[str, Any]) -> Callable[[Path], None]:
    """The way that is asked for, on its model and texts; it is told where its files go."""
    hf = capture_models.build(told["model"])
    hf.load_state_dict(torch.load(told["weights"], mmap=True), assign=True)
    hf.tie_weights()
    n, how = told["texts"], told.get("how", {})
    texts = capture_models.alike(n) if told.get("alike", False) else capture_models.sample(n)
    match told["way"]:
        case "bare":
            return ways.bare(hf, texts, told["budget"])
        case "write":
            return ways.raw_write(told["bytes"])
        case "hooks":
            return ways.hooks(hf, texts)
        case "naive":
            return ways.naive(hf, texts)
        case "ours":
            return ways.ours(wrap_model(hf, None), texts, **how)
        case "generate":
            return ways.bare_generation(hf, ways.prompts(texts))
        case "ours-generate":
            return ways.our_generation(hf, ways.prompts(texts))
        case way:
            raise ValueError(f"no such way: {way}")


def main() -> None:
    told = json.loads(sys.argv[1])
    if told.get("threads"):
        torch.set_num_threads(told["threads"])
    way = chosen(told)
    while True:
        gc.collect()
        with ways.folder(Path(told["where"])) as path:  # emptied where no clock runs
            cpu, began = cpu_seconds(), time.monotonic()
            way(path)
            cpu, at = cpu_seconds() - cpu, time.monotonic()
        print(json.dumps({"cpu": cpu, "began": began, "at": at}), flush=True)


if __name__ == "__main__":
    main()
