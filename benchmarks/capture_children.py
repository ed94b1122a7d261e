"""What is measured in a process of its own: the last line it prints is JSON."""

from __future__ import annotations

import json
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import capture_models
import capture_ways as ways

LONGEST = 96
"""Tokens of a text here: what matters is how many texts there are."""


class Many(Sequence[list[int]]):
    """So many texts, each made when it is asked for: what they weigh is not the run's."""

    def __init__(self, n: int) -> None:
        self.n, self.texts = n, capture_models.texts()

    def __len__(self) -> int:
        return self.n

    def __getitem__(self, i: Any) -> Any:
        if not 0 <= i < self.n:
            raise IndexError(i)
        again, place = divmod(i, len(self.texts))
        return [(token + again) % 1500 for token in self.texts[place][:LONGEST]]


def peak_mb() -> float:
    """Largest resident memory of this process since its program began.

    Not ``ru_maxrss``: Linux lets a child begin with the peak of the process that started it.
    """
    lines = Path("/proc/self/status").read_text(encoding="utf-8").splitlines()
    return round(int(next(x for x in lines if x.startswith("VmHWM")).split()[1]) / 1024, 1)


def main() -> None:
    what, name, where, n = sys.argv[1], sys.argv[2], Path(sys.argv[3]), int(sys.argv[4])
    hf = capture_models.build(name)
    with ways.folder(where) as path:
        if what == "bare":  # the model at work, and nothing of ours
            ways.bare(hf, Many(60), n)(path)
        else:
            from actscope import wrap_model

            ways.ours(wrap_model(hf, None), Many(n))(path)
    print(json.dumps({"peak_mb": peak_mb()}))


if __name__ == "__main__":
    main()
