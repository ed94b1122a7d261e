"""How far a capture is: a bar on a terminal, a line now and then in a log."""

import io

from rich.console import Console

from actscope.cli import _progress


def test_a_log_gets_a_line_now_and_then(monkeypatch):
    clock = iter(float(t) for t in range(0, 1000, 10))
    monkeypatch.setattr(_progress.time, "perf_counter", lambda: next(clock))
    out = io.StringIO()
    bar = _progress.Bar(Console(file=out, width=100))
    with bar:
        bar.started(100, 20)
        for _ in range(8):
            bar.advanced(10, 500)
    lines = out.getvalue().splitlines()
    assert 2 <= len(lines) < 8  # not one for every batch
    assert lines[0].startswith("captured ") and "of 100 examples" in lines[0]
    assert lines[0].endswith("tokens/s")
