"""Inject every fault into stores and captures, and write down how often each came out right.

    python benchmarks/reliability.py --out benchmarks/results/reliability.json \
        --page docs/reliability.md

The faults are the tests of ``tests/faults``, all of them, those that ``make test`` leaves out too.
Every test counts what it injects. The page's tables stand between two marks and are replaced; a
test compares them with the results. One violation fails its test, and then nothing is written.
"""

from __future__ import annotations

import argparse
import json
import os
import platform
import re
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterable
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

from actscope.core.provenance import environment

ROOT = Path(__file__).parent.parent
BEGIN, END = "<!-- figures begin -->\n", "<!-- figures end -->"


def inject(arguments: list[str]) -> tuple[list[dict[str, Any]], float]:
    """Run the tests; what each of them counted, and the seconds it took."""
    began = time.perf_counter()
    with tempfile.TemporaryDirectory() as folder:
        lines = Path(folder) / "figures.jsonl"
        tests = ["-m", "pytest", "-q", "--timeout=3600", "tests/faults"]
        command = [sys.executable, *tests, *arguments]
        settings = {**os.environ, "ACTSCOPE_FIGURES": str(lines)}
        done = subprocess.run(command, cwd=ROOT, env=settings, check=False)
        if done.returncode:
            raise SystemExit(done.returncode)
        found = [json.loads(line) for line in lines.read_text(encoding="utf-8").splitlines()]
    return found, time.perf_counter() - began


def together(lines: Iterable[dict[str, Any]]) -> list[dict[str, Any]]:
    """One row for each kind of fault."""
    rows: dict[str, dict[str, Any]] = {}
    for line in lines:
        if not line["times"]:
            continue
        row = rows.setdefault(
            line["fault"], {"fault": line["fault"], "promises": line["promises"]} | dict.fromkeys(
                ("times", "right"), 0
            )
        )  # fmt: skip
        row["times"] += line["times"]
        row["right"] += line["right"]
    return sorted(rows.values(), key=lambda row: (row["promises"], row["fault"]))


def file_system(folder: str) -> str:
    """The kind of file system that a folder lies on, where the system tells."""
    command = ["df", "--output=fstype", folder]
    done = subprocess.run(command, check=False, capture_output=True, text=True)
    return done.stdout.split()[-1] if done.stdout else "unknown"


def markdown(results: dict[str, Any]) -> str:
    """The tables of the page."""
    lines = ["| fault | promises | injected | came out right |", "|---|---|---|---|"]
    lines += [
        f"| {row['fault']} | {row['promises']} | {row['times']:,} | {row['right']:,} |"
        for row in results["faults"]
    ]
    lines.append("")
    made = results["made_with"]
    versions = ", ".join(f"{name} {version}" for name, version in sorted(made.items()))
    lines.append(
        f"{results['minutes']:.0f} minutes on {results['system']}, file system "
        f"{results['file_system']}, {results['date']}. {versions}."
    )
    return "\n".join(lines) + "\n"


def write_page(page: Path, tables: str) -> None:
    """Replace what stands between the marks."""
    text = page.read_text(encoding="utf-8")
    head, _, rest = text.partition(BEGIN)
    _, _, tail = rest.partition(END)
    page.write_text(head + BEGIN + tables + END + tail, encoding="utf-8")


def main() -> None:
    parser = argparse.ArgumentParser(description=str(__doc__).partition("\n")[0])
    parser.add_argument("--out", type=Path, help="write the results as JSON")
    parser.add_argument("--page", type=Path, help="replace the tables of this page")
    parser.add_argument("pytest", nargs="*", help="arguments of pytest, after --")
    given = parser.parse_args()
    lines, seconds = inject(given.pytest)
    results = {
        "date": datetime.now(UTC).date().isoformat(),
        "system": re.sub(r"-.*", "", platform.platform()) + f", {os.cpu_count()} cores",
        "file_system": file_system(tempfile.gettempdir()),
        "minutes": round(seconds / 60, 1),
        "made_with": environment(),
        "faults": together(lines),
    }
    tables = markdown(results)
    print(tables)
    if given.out:
        given.out.write_text(json.dumps(results, indent=1) + "\n", encoding="utf-8")
    if given.page:
        write_page(given.page, tables)


if __name__ == "__main__":
    main()
