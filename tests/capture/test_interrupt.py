"""Ctrl-C and SIGTERM: a clean stop, and a resume that ends where an uninterrupted run ends."""

import os
import signal
import subprocess
import sys
import threading

import pytest

from actscope import open_run, wrap_model
from actscope.capture.interrupt import GracefulStop, StopRequested
from actscope.testing.tiny_models import tiny_model

N = 120

RUN = f"""
from actscope import ActivationExtractor, DatasetRunner, ShardStorage, wrap_model
from actscope.capture import CaptureInterrupted, CaptureOptions
from actscope.testing.tiny_models import tiny_model

model = wrap_model(tiny_model("llama"), None)
dataset = [[3 + (i * 7 + j) % 90 for j in range(1 + i % 11)] for i in range({N})]

def run(folder):
    extractor, storage = ActivationExtractor(model, "all"), ShardStorage(folder)
    options = CaptureOptions(unit_size=2, queue_bytes=1)
    return DatasetRunner(dataset, None, extractor, storage, options=options).run(run_id="r")
"""

CHILD = (
    RUN
    + """
import sys
try:
    run(sys.argv[1])
except CaptureInterrupted as stop:
    hooks = sum(len(m._forward_hooks) + len(m._forward_pre_hooks) for m in model.hf.modules())
    print("stopped", stop.done, "of", stop.total, "hooks", hooks)
    sys.exit(130)
"""
)


def child(folder, fail_at):
    return subprocess.run(
        [sys.executable, "-c", CHILD, str(folder)],
        check=False,
        capture_output=True,
        text=True,
        timeout=300,
        env={**os.environ, "ACTSCOPE_FAIL_AT": fail_at},
    )


@pytest.fixture(scope="module")
def run():
    """The child's very code, inside this process."""
    names = {}
    exec(RUN, names)
    return names["run"]


def files(folder):
    """Every shard, byte by byte; commit records carry times and may differ."""
    return {p.name: p.read_bytes() for p in (folder / "r" / "shards").iterdir()}


@pytest.fixture(scope="module")
def whole(run, tmp_path_factory):
    folder = tmp_path_factory.mktemp("whole")
    result = run(folder)
    assert (result.captured, result.resumed) == (N, 0)
    return folder


@pytest.mark.parametrize(
    ("name", "point"), [("SIGINT", "data.half-written"), ("SIGTERM", "commit.folder-synced")]
)
def test_stopped_and_resumed_is_the_same_as_never_stopped(run, whole, tmp_path, name, point):
    first = child(tmp_path, f"{point}:5:{name}")
    assert first.returncode == 130, first.stderr
    _, done, _, total, _, hooks = first.stdout.split()
    assert 5 <= int(done) // 2 < N // 2  # the unit in hand was written; the rest was not begun
    assert (int(total), int(hooks)) == (N, 0)
    partial = open_run(tmp_path / "r")
    assert len(partial) == int(done)
    assert partial.verify().ok
    assert not partial.verify().leftovers
    second = run(tmp_path)
    assert (second.captured, second.resumed) == (N - int(done), int(done))
    assert files(tmp_path) == files(whole)


@pytest.mark.parametrize(
    ("fail_at", "code", "safe"),
    [
        ("data.renamed:9:SIGKILL", -signal.SIGKILL, 16),
        ("data.written:4:ENOSPC", 1, 6),
    ],
)
def test_what_was_committed_survives_and_a_resume_goes_on(
    run, whole, tmp_path, fail_at, code, safe
):
    broken = child(tmp_path, fail_at)
    assert broken.returncode == code, broken.stderr
    if "ENOSPC" in fail_at:
        assert "the disk is full" in broken.stderr
    assert len(open_run(tmp_path / "r")) == safe
    second = run(tmp_path)
    assert (second.captured, second.resumed) == (N - safe, safe)
    # a killed writer's leftover has the name and the bytes of the file that replaces it
    assert files(tmp_path) == files(whole)


def test_the_first_signal_asks_and_the_second_insists():
    said = []
    before = signal.getsignal(signal.SIGINT), signal.getsignal(signal.SIGTERM)
    with pytest.raises(KeyboardInterrupt), GracefulStop(said.append) as stop:
        stop.check()
        os.kill(os.getpid(), signal.SIGTERM)
        with pytest.raises(StopRequested):
            stop.check()
        assert len(said) == 1
        os.kill(os.getpid(), signal.SIGINT)
        stop.check()
    assert (signal.getsignal(signal.SIGINT), signal.getsignal(signal.SIGTERM)) == before


def test_outside_the_main_thread_signals_are_left_alone(tmp_path):
    """A run in a thread works; Ctrl-C is the business of whoever owns the main thread."""
    from actscope import ActivationExtractor, DatasetRunner, ShardStorage

    model = wrap_model(tiny_model("llama"), None)
    results = []

    def work():
        runner = DatasetRunner([[3]], 1, ActivationExtractor(model), ShardStorage(tmp_path))
        results.append(runner.run())

    thread = threading.Thread(target=work)
    thread.start()
    thread.join()
    assert results[0].captured == 1
