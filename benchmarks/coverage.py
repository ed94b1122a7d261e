"""Which sites are verified on which types of model, and is each of them right?

    python benchmarks/coverage.py                      # every type, resuming where it stopped
    python benchmarks/coverage.py --only bert,mamba    # some types, always again
    python benchmarks/coverage.py --page               # write docs/coverage.md from the results

Every causal type of the installed transformers and some encoders, built tiny from config alone with
random weights (``coverage_models``), each in a process of its own with a time limit. What actscope
offers is judged by ``coverage_oracle``, which knows nothing of the resolver.
"""

from __future__ import annotations

import argparse
import datetime
import json
import logging
import multiprocessing
import time
import traceback
import warnings
from pathlib import Path
from typing import Any

import coverage_models
import coverage_oracle
import torch
import transformers
from coverage_page import page
from rich.console import Console

import actscope
from actscope.core.errors import ModelLoadError
from actscope.core.provenance import environment

HERE = Path(__file__).parent
RESULTS = HERE / "results" / "coverage.json"
PAGE = HERE.parent / "docs" / "coverage.md"


def measure(name: str, dtype: str) -> dict[str, Any]:
    """Build a type and judge every kind of site."""
    try:
        hf = coverage_models.tiny_model(name, getattr(torch, dtype))
    except Exception as error:  # whatever the type's own code raises
        first = next((line for line in str(error).splitlines() if line.strip()), "")
        return {"built": False, "reason": f"{type(error).__name__}: {first.strip()}"[:200]}
    try:
        model = actscope.wrap_model(hf)
    except ModelLoadError as error:
        verdicts = coverage_oracle.judge_refusal(name, hf, f"{error.what}: {error.got}")
    else:
        verdicts = coverage_oracle.judge(name, model)
    sites = {k: {"status": v.status, **({"reason": v.reason} if v.reason else {})}
             for k, v in verdicts.items()}  # fmt: skip
    return {"built": True, "class": type(hf).__name__, "sites": sites}


def child(name: str, dtype: str, pipe: Any) -> None:
    warnings.filterwarnings("ignore")
    logging.disable(logging.WARNING)
    transformers.logging.set_verbosity_error()
    try:
        pipe.send(measure(name, dtype))
    except BaseException:  # a crash of actscope is a result
        pipe.send({"built": True, "crash": traceback.format_exc().strip().splitlines()[-12:]})


def in_a_process(name: str, dtype: str, limit: float) -> dict[str, Any]:
    context = multiprocessing.get_context("fork")
    ours, theirs = context.Pipe(duplex=False)
    process = context.Process(target=child, args=(name, dtype, theirs), daemon=True)
    start = time.monotonic()
    process.start()
    theirs.close()
    try:
        found = ours.recv() if ours.poll(limit) else {"built": True, "crash": [f"over {limit:g} s"]}
    except EOFError:
        found = {"built": True, "crash": ["the process died"]}
    process.join(1)
    if process.is_alive():
        process.kill()
        process.join()
    return {**found, "seconds": round(time.monotonic() - start, 1)}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--only", help="types, separated by commas; measured again")
    parser.add_argument("--again", action="store_true", help="measure every type again")
    parser.add_argument("--limit", type=float, default=120, help="seconds for one type")
    parser.add_argument("--dtype", default="float32", choices=["float32", "bfloat16"])
    parser.add_argument("--out", type=Path, default=RESULTS)
    parser.add_argument("--page", action="store_true", help="only write the page")
    options = parser.parse_args()
    record = json.loads(options.out.read_text()) if options.out.exists() else {}
    results: dict[str, Any] = {} if options.again else record.get("types", {})
    if not options.page:
        names = options.only.split(",") if options.only else coverage_models.all_types()
        coverage_models.tiny_model("llama")  # what every child needs is imported once
        for place, name in enumerate(names):
            if options.only or name not in results:
                results[name] = in_a_process(name, options.dtype, options.limit)
                save(options.out, results)
                Console().print(
                    f"{place + 1}/{len(names)} {line(name, results[name])}", soft_wrap=True
                )
    if options.out == RESULTS:
        PAGE.write_text(page(results, json.loads(RESULTS.read_text())["environment"]))


def save(path: Path, results: dict[str, Any]) -> None:
    """After every type, so that a run can stop anywhere; the new file takes the old one's place."""
    path.parent.mkdir(parents=True, exist_ok=True)
    order = {name: i for i, name in enumerate(coverage_models.all_types())}
    types = {k: results[k] for k in sorted(results, key=lambda k: order.get(k, 999))}
    new = path.with_suffix(".new")
    lines = ",\n".join(f"  {json.dumps(k)}: {json.dumps(v)}" for k, v in types.items())
    today = datetime.date.today().isoformat()
    head = json.dumps({**environment(), "date": today})
    new.write_text(f'{{\n "environment": {head},\n "types": {{\n{lines}\n }}\n}}\n')
    new.replace(path)


def line(name: str, result: dict[str, Any]) -> str:
    if not result["built"]:
        return f"{name}: not built: {result['reason'][:100]}"
    if "crash" in result:
        return f"{name}: CRASH {result['crash'][-1][:200]}"
    bad = {k: v for k, v in result["sites"].items() if v["status"] in ("WRONG", "unavailable")}
    told = "; ".join(f"{k} {v['status']}: {v['reason'][:110]}" for k, v in bad.items())
    return f"{name} {result['seconds']} s {told or 'ok'}"


if __name__ == "__main__":
    main()
