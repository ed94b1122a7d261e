"""What is measured in a process of its own: the last line it prints is JSON."""

from __future__ import annotations

import json
import sys
from pathlib import Path

import capture_models
import capture_ways as ways

LONGEST = 96
"""Tokens of a text here: what matters is how many texts there are."""


def many(n: int) -> list[list[int]]:
    texts = capture_models.texts()
    return [[(token + i // len(texts)) % 1500 for token in texts[i % len(texts)][:LONGEST]]
            for i in range(n)]  # fmt: skip


def peak_mb() -> float:
    """Largest resident memory of this process since its program began.

    Not ``ru_maxrss``: Linux lets a child begin with the peak of the process that started it.
    """
    lines = Path("/proc/self/status").read_text(encoding="utf-8").splitlines()
    return round(int(next(x for x in lines if x.startswith("VmHWM")).split()[1]) / 1024, 1)


def main() -> None:
    what, name, where, n = sys.argv[1], sys.argv[2], Path(sys.argv[3]), int(sys.argv[4])
    hf = capture_models.build(name)
    if what == "bare":  # the model at work, and nothing of ours
        ways.bare(hf, many(60), n)()
    else:
        from actscope import wrap_model

        ways.ours(wrap_model(hf, None), many(n), where)()
    print(json.dumps({"peak_mb": peak_mb()}))


if __name__ == "__main__":
    main()
