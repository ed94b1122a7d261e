"""One contender on one model in a process of its own; run.py starts it.

    python child.py hooks --model FOLDER --texts FILE --tasks all_layers --out FOLDER --threads 1

It runs in the contender's environment, where there may be no actscope. The figures go to
``OUT/figures.json``, what was captured to ``OUT/TASK``. What fails is a reason in that file.
"""

from __future__ import annotations

import argparse
import ctypes
import gc
import importlib
import json
import os
import resource
import shutil
import sys
import time
import traceback
from importlib import metadata
from pathlib import Path
from typing import Any

RECORDED = (
    "actscope",
    "torch",
    "transformers",
    "transformer-lens",
    "nnsight",
    "nnterp",
    "sae-lens",
)
WARM = 4


def versions() -> dict[str, str]:
    """What is installed here of what matters."""
    found: dict[str, str] = {}
    for name in RECORDED:
        try:
            found[name] = metadata.version(name)
        except metadata.PackageNotFoundError:
            continue
    return found


def forget_peak() -> None:
    """Give free memory back and start the peak of resident memory anew (Linux)."""
    gc.collect()
    try:
        ctypes.CDLL("libc.so.6").malloc_trim(0)
        Path("/proc/self/clear_refs").write_text("5")
    except OSError:  # elsewhere the peak is that of the whole process
        return


def peak_bytes() -> int:
    """The largest resident memory since ``forget_peak``."""
    status = Path("/proc/self/status")
    if status.exists():
        line = next(x for x in status.read_text().splitlines() if x.startswith("VmHWM"))
        return int(line.split()[1]) * 1024
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024


def call(contender: Any, task: str, texts: list[list[int]], out: Path) -> None:
    from peers.tasks import HEADS, middle

    layer = middle(contender.n_layers)
    more = {"last_token_layer": (layer,), "pattern": (layer, HEADS)}.get(task, ())
    getattr(contender, task)(texts, *more, out)


def measure(contender: Any, task: str, texts: list[list[int]], out: Path) -> dict[str, Any]:
    """Warm up on a few texts, then run the task once on all."""
    from peers.tasks import NotOfferedError

    try:
        call(contender, task, texts[:WARM], out / "warm")
        shutil.rmtree(out / "warm", ignore_errors=True)
        forget_peak()
        os.sync()
        cpu, wall = time.process_time(), time.perf_counter()
        call(contender, task, texts, out / task)
        wall, cpu = time.perf_counter() - wall, time.process_time() - cpu
        size = sum(f.stat().st_size for f in (out / task).rglob("*") if f.is_file())
        return {"cpu": cpu, "wall": wall, "peak_rss": peak_bytes(), "bytes": size}
    except NotOfferedError as reason:
        return {"skipped": str(reason)}
    except Exception as error:  # whatever a peer raises is its result
        traceback.print_exc()
        first = next((line.strip() for line in str(error).splitlines() if line.strip()), "")
        return {"skipped": f"{type(error).__name__}: {first}"[:300]}
    finally:
        shutil.rmtree(out / "warm", ignore_errors=True)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("contender")
    parser.add_argument("--model", type=Path, required=True)
    parser.add_argument("--texts", type=Path, required=True)
    parser.add_argument("--tasks", required=True)
    parser.add_argument("--out", type=Path, required=True)
    parser.add_argument("--threads", type=int, required=True)
    args = parser.parse_args()
    import torch

    torch.set_num_threads(args.threads)
    args.out.mkdir(parents=True, exist_ok=True)
    began = time.perf_counter()
    contender = importlib.import_module(f"peers.adapter_{args.contender}").load(args.model)
    torch.set_num_threads(args.threads)  # again: whatever the library has set meanwhile
    record: dict[str, Any] = {
        "versions": versions(),
        "load_seconds": time.perf_counter() - began,
        "last_is_normed": contender.last_is_normed,
        "tasks": {},
    }
    texts = json.loads(args.texts.read_text())
    for task in args.tasks.split(","):
        record["tasks"][task] = measure(contender, task, texts, args.out)
    (args.out / "figures.json").write_text(json.dumps(record))


if __name__ == "__main__":
    # The folder of this file and its parent hold names such as ``coverage``: found last, they
    # cover no package of the peer's.
    sys.path[:] = [*sys.path[1:], str(Path(__file__).parent.parent)]
    main()
