"""The background writer: order, bounded memory, and errors that reach the main thread."""

import threading
import time
from pathlib import Path

import numpy as np
import pytest

from actscope.capture.writer import BackgroundWriter, batch_bytes
from actscope.core.activations import ActivationBatch
from actscope.core.errors import NumericRangeError, RunError
from actscope.core.sites import Site

MB = 1 << 20


def batch(size=MB):
    zero = np.zeros(1, np.int64)
    return ActivationBatch(
        arrays={Site("embed"): np.zeros((size // 4, 1), np.float32)},
        offsets=zero,
        positions=np.zeros(0, np.int32),
        examples=(),
        token_ids=np.zeros(0, np.int64),
        token_offsets=zero,
        phase=np.zeros(0, np.uint8),
    )


class Memory:
    """A writer that keeps what it is given, as slowly as it is told."""

    path = Path("memory")

    def __init__(self, seconds=0.0, error=None, fail_at=None):
        self.units = []
        self.seconds, self.error, self.fail_at = seconds, error, fail_at

    def committed(self):
        return set(self.units)

    def append(self, batch_id, activations, metadata):
        time.sleep(self.seconds)
        if self.fail_at == batch_id:
            raise self.error
        self.units.append(batch_id)

    def close(self):
        pass


def test_units_are_written_in_order_and_none_is_dropped():
    memory = Memory(0.001)
    writer = BackgroundWriter(memory, 4 * MB)
    names = [f"u{i}" for i in range(50)]
    for name in names:
        writer.submit(name, batch(), {})
    writer.finish()
    assert memory.units == names


def test_a_full_queue_blocks_and_bounds_memory():
    memory = Memory(0.05)
    writer = BackgroundWriter(memory, int(2.5 * MB))
    began = time.perf_counter()
    for i in range(8):
        writer.submit(f"u{i}", batch(), {})
    waited = time.perf_counter() - began
    writer.finish()
    assert writer.peak_bytes <= 2.5 * MB
    assert waited >= 0.05 * 5  # two fit; the others had to wait for the disk
    assert len(memory.units) == 8


def test_one_unit_over_the_bound_goes_alone():
    memory = Memory(0.01)
    writer = BackgroundWriter(memory, MB)
    for i in range(3):
        writer.submit(f"u{i}", batch(3 * MB), {})
    writer.finish()
    assert len(memory.units) == 3
    assert writer.peak_bytes == batch_bytes(batch(3 * MB))


def test_an_error_reaches_the_main_thread_at_the_next_unit_or_at_the_end():
    for more in (0, 5):
        memory = Memory(error=OSError(28, "No space left on device"), fail_at="bad")
        writer = BackgroundWriter(memory, 64 * MB)
        writer.submit("good", batch(), {})
        writer.submit("bad", batch(), {})
        with pytest.raises(RunError, match="No space left") as caught:
            for i in range(more):
                writer.submit(f"u{i}", batch(), {})
                time.sleep(0.02)
            writer.finish()
        assert "resumes" in str(caught.value)
        assert memory.units == ["good"]


def test_our_own_errors_come_as_they_are():
    memory = Memory(error=NumericRangeError("70000 does not fit float16"), fail_at="u0")
    writer = BackgroundWriter(memory, MB)
    writer.submit("u0", batch(), {})
    with pytest.raises(NumericRangeError, match="70000"):
        writer.finish()


def test_an_error_wakes_a_waiting_submit():
    memory = Memory(0.05, error=OSError("gone"), fail_at="u0")
    writer = BackgroundWriter(memory, MB)
    writer.submit("u0", batch(), {})
    with pytest.raises(RunError, match="gone"):
        writer.submit("u1", batch(), {})  # waits for room that never comes


def test_abandoning_drops_what_waits_and_ends_the_thread():
    memory = Memory(0.05)
    writer = BackgroundWriter(memory, 64 * MB)
    for i in range(20):
        writer.submit(f"u{i}", batch(), {})
    writer.abandon()
    for _ in range(100):
        if not any(t.name == "actscope-writer" for t in threading.enumerate()):
            break
        time.sleep(0.02)
    else:
        raise AssertionError("the thread lives on")
    assert len(memory.units) < 20
