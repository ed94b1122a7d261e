"""A program that captures with the bundled model, to be killed at will.

    python capture_process.py FOLDER [pool]

It captures sixteen prompts in units of two into the run ``r``. With ``serve`` alone it loads the
model once and forks such a program for every line it is sent, as ``writer_process`` does.
"""

from __future__ import annotations

import sys

from writer_process import serve

from actscope import ActivationExtractor, DatasetRunner, MeanStrategy, ShardStorage, load_model
from actscope.capture import CaptureOptions
from actscope.core.errors import ActscopeError

PROMPTS = [
    f"What trade does {name} of {town} have?"
    for name in ("Lena", "Mira", "Old Tom", "the harbour master")
    for town in ("Pell", "Marren", "Hollow Bay, which lies far in the north of the islands", "Ost")
]
MODEL = load_model("demo", device="cpu")


def capture(folder, *options):
    """Capture what is missing.

    Returns:
        How many examples that was.
    """
    strategy = {"strategy": MeanStrategy()} if "pool" in options else {}
    extractor = ActivationExtractor(MODEL, [0, -1], **strategy)
    chosen = CaptureOptions(unit_size=2, queue_bytes=1)
    storage = ShardStorage(folder)
    runner = DatasetRunner(PROMPTS, None, extractor, storage, options=chosen)
    return runner.run(run_id="r").captured


def guarded(argv):
    try:
        sys.stdout.write(f"{capture(*argv)}\n")
    except ActscopeError as error:
        sys.stderr.write(f"{type(error).__name__}: {error}\n")
        return error.exit_code
    return 0


if __name__ == "__main__":
    if sys.argv[1:] == ["serve"]:
        serve(guarded)
    else:
        sys.exit(guarded(sys.argv[1:]))
