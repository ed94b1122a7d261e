"""One contender on one model in a process of its own; run.py starts it.

    python child.py hooks --model FOLDER --texts FILE --out FOLDER --threads 1

It runs in the contender's environment, where there may be no actscope. It says that it is loaded,
and then, for each task that it reads from stdin (``{"task": "all_layers", "times": 2}``), the
figures of a first time and of so many more, in lines of JSON. What the first time captured stays
in ``OUT/TASK``. What fails is a reason instead of figures.
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
from typing import IO, Any

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


def first(contender: Any, task: str, texts: list[list[int]], out: Path) -> dict[str, Any]:
    """Warm up on a few texts, then run the task once on all: memory, bytes and how long it took."""
    from peers.tasks import NotOfferedError

    try:
        call(contender, task, texts[:WARM], out / "warm")
        shutil.rmtree(out / "warm", ignore_errors=True)
        forget_peak()
        began = time.monotonic()
        call(contender, task, texts, out / task)
        took = time.monotonic() - began
        size = sum(f.stat().st_size for f in (out / task).rglob("*") if f.is_file())
        return {"peak_rss": peak_bytes(), "bytes": size, "took": took}
    except NotOfferedError as reason:
        return {"skipped": str(reason)}
    except Exception as error:  # whatever a peer raises is its result
        traceback.print_exc()
        first = next((line.strip() for line in str(error).splitlines() if line.strip()), "")
        return {"skipped": f"{type(error).__name__}: {first}"[:300]}
    finally:
        shutil.rmtree(out / "warm", ignore_errors=True)


def again(contender: Any, task: str, texts: list[list[int]], out: Path) -> dict[str, float]:
    """Run a task on all texts: CPU seconds, and when it began and ended."""
    gc.collect()
    cpu, began = time.process_time(), time.monotonic()
    call(contender, task, texts, out / "again")
    cpu, at = time.process_time() - cpu, time.monotonic()
    shutil.rmtree(out / "again")
    return {"cpu": cpu, "began": began, "at": at}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("contender")
    parser.add_argument("--model", type=Path, required=True)
    parser.add_argument("--texts", type=Path, required=True)
    parser.add_argument("--out", type=Path, required=True)
    parser.add_argument("--threads", type=int, required=True)
    args = parser.parse_args()
    with os.fdopen(os.dup(1), "w", buffering=1) as told:
        os.dup2(2, 1)  # whatever a library prints is none of our lines
        serve(args, told)


def serve(args: argparse.Namespace, told: IO[str]) -> None:
    import torch

    torch.set_num_threads(args.threads)
    args.out.mkdir(parents=True, exist_ok=True)
    began = time.monotonic()
    contender = importlib.import_module(f"peers.adapter_{args.contender}").load(args.model)
    torch.set_num_threads(args.threads)  # again: whatever the library has set meanwhile
    loaded = {"load_seconds": time.monotonic() - began, "last_is_normed": contender.last_is_normed}
    told.write(json.dumps({**loaded, "versions": versions()}) + "\n")
    texts = json.loads(args.texts.read_text())
    for line in sys.stdin:
        asked = json.loads(line)
        figures = first(contender, asked["task"], texts, args.out)
        told.write(json.dumps(figures) + "\n")
        for _ in range(0 if "skipped" in figures else asked["times"]):
            told.write(json.dumps(again(contender, asked["task"], texts, args.out)) + "\n")


if __name__ == "__main__":
    # The folder of this file and its parent hold names such as ``coverage``: found last, they
    # cover no package of the peer's.
    sys.path[:] = [*sys.path[1:], str(Path(__file__).parent.parent)]
    main()
