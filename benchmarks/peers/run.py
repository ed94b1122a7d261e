"""actscope and its peers on the same tasks, files on disk included.

    python benchmarks/peers/run.py                     # everything: 4 models, 512 texts
    python benchmarks/peers/run.py --models llama256x8 --texts 64 --rounds 2 --peers hooks,nnsight

Every contender runs in a process and an environment of its own, with the same number of threads. In
each round, of new processes, they do every task some times by turns
(``capture_clock.py``), so that what disturbs the machine disturbs all alike. The values of the
first round are compared with plain Hugging Face's. The figures of a model replace those that are in
the file, after every round: a run that is stopped has its whole rounds.
"""

from __future__ import annotations

import argparse
import json
import os
import shutil
import sys
import tempfile
from collections.abc import Iterator
from importlib import resources
from pathlib import Path
from typing import Any

HERE = Path(__file__).resolve().parent
sys.path.append(str(HERE.parent))

import capture_models  # noqa: E402
from capture_clock import CLOCKS, end_in_order  # noqa: E402
from transformers import PreTrainedTokenizerFast  # noqa: E402

from actscope.core.provenance import environment  # noqa: E402
from peers import environments, page, reference, rounds  # noqa: E402
from peers.batches import sorted_batches  # noqa: E402
from peers.tasks import TASKS  # noqa: E402

RESULTS = HERE.parent / "results" / "peers.json"
PAGE = HERE.parents[1] / "docs" / "performance.md"
PEERS = (
    "hooks", "nnsight", "nnterp", "hf", "transformer_lens", "hooked_transformer", "sae_lens",
)  # fmt: skip
REQUIREMENTS = {"hooked_transformer": "sae_lens"}


def pythons(peers: list[str], venvs: Path, options: tuple[str, ...] = ()) -> dict[str, Any]:
    """The Python of each contender, or why there is none."""
    found: dict[str, Any] = {"actscope": Path(sys.executable)}
    for peer in peers:
        requirements = HERE / f"requirements-{REQUIREMENTS.get(peer, peer)}.txt"
        try:
            found[peer] = environments.prepare(requirements, venvs, options)
        except environments.SkippedError as reason:
            found[peer] = str(reason)
        print(f"{peer}: {found[peer]}", flush=True)
    return found


def add(record: dict[str, Any], found: dict[str, Any]) -> None:
    """Put one round's figures to those of the rounds before."""
    if "skipped" in found:
        record["skipped"] = found["skipped"]
        return
    record["versions"] = found["versions"]
    record.setdefault("load_seconds", []).append(found["load_seconds"])
    for task, figures in found["tasks"].items():
        into = record.setdefault("tasks", {}).setdefault(task, {})
        if "skipped" in figures:
            into["skipped"] = figures["skipped"]
            continue
        into["bytes"] = figures["bytes"]
        into.setdefault("peak_rss", []).append(figures["peak_rss"])
        for clock in CLOCKS:
            into.setdefault(clock, []).extend(figures[clock])


def compare(
    contender: str, found: dict[str, Any], record: dict[str, Any], work: Path, truth: Any
) -> None:
    """How far what is on disk is from plain Hugging Face; what is wrong has no figures."""
    known, n_layers = truth
    for task, figures in found.get("tasks", {}).items():
        if "skipped" in figures:
            continue
        normed = found["last_is_normed"]
        into = record["tasks"][task]
        try:
            into["difference"] = reference.difference(
                contender,
                task,
                work / "out" / contender / task,
                known,
                n_layers,
                last_is_normed=normed,
            )
        except (ValueError, KeyError, OSError) as error:
            into["skipped"] = f"wrong: {error}"
            continue
        if into["difference"] > reference.WRONG:
            into["skipped"] = f"wrong values: off by {into['difference']:.1e} of the row's largest"


def save_model(name: str, folder: Path) -> None:
    """The model where any library loads it; with a tokenizer, which some do not start without."""
    capture_models.build(name).save_pretrained(folder)
    demo = str(resources.files("actscope.demo") / "model")
    PreTrainedTokenizerFast.from_pretrained(demo).save_pretrained(folder)


def measure(name: str, found: dict[str, Any], args: argparse.Namespace) -> Iterator[dict[str, Any]]:
    """All contenders on one model: the record as it stands after each round."""
    all_texts = capture_models.texts()
    texts = capture_models.sample(args.texts)
    record: dict[str, Any] = {
        "environment": environment(), "cpus": os.cpu_count(), "threads": args.threads,
        "rounds": 0, "times": args.times, "texts": len(texts), "all_texts": len(all_texts),
        "tokens": sum(map(len, texts)), "load": [], "contenders": {},
        "in_batches": sum(batch.ids.numel() for batch in sorted_batches(texts)),
        "command": f"python benchmarks/peers/run.py --models {name} --texts {args.texts} "
        f"--rounds {args.rounds} --times {args.times} --threads {args.threads}",
    }  # fmt: skip
    with tempfile.TemporaryDirectory(dir=args.scratch, prefix="actscope-peers-") as folder:
        work = Path(folder)
        save_model(name, work / "model")
        (work / "texts.json").write_text(json.dumps(texts))
        truth = reference.values(work / "model", texts, reference.sample(texts))
        pythons = {name: how for name, how in found.items() if isinstance(how, Path)}
        for number in range(args.rounds):
            record["load"].append(os.getloadavg()[0])
            contenders = record["contenders"]
            left = {n: p for n, p in pythons.items() if "skipped" not in contenders.get(n, {})}
            figures = one_round(left, work, args)
            for name, how in found.items():
                into = contenders.setdefault(name, {})
                if name not in left:
                    into.setdefault("skipped", how)
                    continue
                add(into, figures[name])
                if number == 0:
                    compare(name, figures[name], into, work, truth)
            shutil.rmtree(work / "out", ignore_errors=True)
            record["rounds"] = number + 1
            yield record


def one_round(left: dict[str, Path], work: Path, args: argparse.Namespace) -> dict[str, Any]:
    """The figures of every contender that is left; what they captured lies in ``work/out``."""
    with rounds.begun(left, work, args) as begun:
        for task in args.tasks:
            begun.task(task, args.times)
            for name, found in begun.found.items():
                told = found.get("tasks", {}).get(task, found)
                told = told.get("skipped") or [round(seconds, 2) for seconds in told["cpu"]]
                print(task, name, told, flush=True)
        return begun.found


def arguments(given: list[str] | None = None) -> argparse.Namespace:
    parser = argparse.ArgumentParser(
        description=__doc__.splitlines()[0], formatter_class=argparse.ArgumentDefaultsHelpFormatter
    )
    parser.add_argument("--models", type=_names, default=list(capture_models.MODELS))
    parser.add_argument("--peers", type=_names, default=list(PEERS))
    parser.add_argument("--tasks", type=_names, default=list(TASKS))
    parser.add_argument("--texts", type=int, default=capture_models.TEXTS, help="about so many")
    parser.add_argument("--rounds", type=int, default=3, help="of new processes")
    parser.add_argument("--times", type=int, default=2, help="of every task in a round")
    parser.add_argument("--threads", type=int, default=1)
    parser.add_argument(
        "--limit", type=float, default=1800, help="seconds of loading, and of one task"
    )
    parser.add_argument("--venvs", type=Path, default=environments.default_folder())
    parser.add_argument("--scratch", type=Path, help="where models and captures lie meanwhile")
    parser.add_argument("--out", type=Path, default=RESULTS)
    parser.add_argument("--page", type=Path, help="where the tables go, if not to the docs")
    return parser.parse_args(given)


def _names(text: str) -> list[str]:
    return text.split(",")


def main() -> None:
    args = arguments()
    end_in_order()
    found = pythons(args.peers, args.venvs)
    results = json.loads(args.out.read_text()) if args.out.exists() else {}
    for name in args.models:
        for record in measure(name, found, args):
            results[name] = record
            args.out.parent.mkdir(parents=True, exist_ok=True)
            args.out.write_text(json.dumps(results, indent=1) + "\n")
    if args.page is not None or args.out == RESULTS:
        page.write(args.page or PAGE, results)


if __name__ == "__main__":
    main()
