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


def test_an_export_is_followed_by_units(monkeypatch):
    clock = iter(float(t) for t in range(0, 1000, 10))
    monkeypatch.setattr(_progress.time, "perf_counter", lambda: next(clock))
    out = io.StringIO()
    with _progress.UnitBar(Console(file=out, width=100), "exporting") as bar:
        for done in range(1, 9):
            bar(done, 8)
    lines = out.getvalue().splitlines()
    assert lines == ["exporting: 3 of 8 units", "exporting: 6 of 8 units"]


def test_on_a_terminal_there_is_a_bar():
    out = io.StringIO()
    with _progress.UnitBar(Console(file=out, width=100, force_terminal=True), "exporting") as bar:
        bar(1, 4)
        bar._bar.refresh()
    assert "1/4" in out.getvalue() and "units" in out.getvalue()
