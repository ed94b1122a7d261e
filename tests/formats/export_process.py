"""A program that exports a run, to be killed at will: ``export_process.py FORM RUN OUT``."""

from __future__ import annotations

import sys

from actscope.formats import export_run

if __name__ == "__main__":
    export_run(sys.argv[2], sys.argv[1], sys.argv[3])
