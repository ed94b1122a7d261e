"""Ctrl-C at the command line: exit code 130, what is safe, and how to go on."""

import re

import pytest

from actscope import open_run

PROMPTS = [arg for i in range(150) for arg in ("--prompt", f"w{i % 90} w{(i * 7) % 90} w3")]


@pytest.mark.parametrize("name", ["SIGINT", "SIGTERM"])
def test_ctrl_c_says_how_to_go_on(actscope_process, actscope_cli, model_folder, tmp_path, name):
    out = tmp_path / "r"
    arguments = ["capture", *PROMPTS, "--unit-size", 1, "--model", model_folder, "--out", out]
    done = actscope_process(*arguments, ACTSCOPE_FAIL_AT=f"commit.folder-synced:3:{name}")
    assert done.returncode == 130, done.stderr
    found = re.search(r"stopped: (\d+) of 150 examples are safe in (\S+)", done.stderr)
    assert found, done.stderr
    assert "run the same command again" in done.stderr
    assert "Traceback" not in done.stderr
    safe = len(open_run(tmp_path / "r"))
    assert safe == int(found[1])
    assert 3 <= safe < 150
    again = actscope_cli(*arguments)
    assert again.exit_code == 0, again.stderr
    assert re.search(rf"on disk before\s+{safe} examples", again.stdout)
    run = open_run(tmp_path / "r")
    assert (len(run), run.complete, run.verify().ok) == (150, True, True)


def test_before_there_is_a_run_nothing_is_called_safe(
    actscope_cli, model_folder, tmp_path, monkeypatch
):
    def stopped(*arguments, **options):
        raise KeyboardInterrupt

    out = tmp_path / "r"
    arguments = ["capture", "--prompt", "w1", "--model", model_folder, "--out", out]
    for place in ("actscope.cli._models.load", "actscope.capture.runner.resolve"):
        with monkeypatch.context() as patched:
            patched.setattr(place, stopped)
            done = actscope_cli(*arguments)
        assert done.exit_code == 130
        assert "stopped at once" in done.stderr and "safe" not in done.stderr
        assert not out.exists()


def test_a_second_ctrl_c_says_that_the_run_is_safe(
    actscope_cli, model_folder, tmp_path, monkeypatch
):
    from actscope.capture.units import UnitWorker

    capture = UnitWorker.capture

    def stopped(worker, start, stop):
        if start:
            raise KeyboardInterrupt
        return capture(worker, start, stop)

    monkeypatch.setattr(UnitWorker, "capture", stopped)
    out = tmp_path / "r"
    arguments = ["capture", *PROMPTS, "--unit-size", 1, "--model", model_folder, "--out", out]
    done = actscope_cli(*arguments)
    assert done.exit_code == 130
    assert f"stopped at once; what was committed to {out} is safe" in done.stderr
    assert open_run(out).verify().ok
