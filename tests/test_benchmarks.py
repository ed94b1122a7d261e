"""The benchmarks run, on something tiny."""

import json
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest

ROOT = Path(__file__).parents[1]


@pytest.mark.slow
def test_the_accelerators_benchmark_runs_without_one(tmp_path: Path) -> None:
    out = tmp_path / "gpu.json"
    subprocess.run(
        [sys.executable, "benchmarks/gpu.py", "--device", "cpu", "--tiny", "--runs", "1",
         "--texts", "4", "--where", str(tmp_path), "--out", str(out)],
        cwd=ROOT, check=True, capture_output=True,
    )  # fmt: skip
    found = json.loads(out.read_text(encoding="utf-8"))
    assert found["tokens_per_second"].keys() == {"bare", "pooled", "one-layer", "four-layers-disk"}


def test_the_texts_and_models_are_the_same_every_time(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.syspath_prepend(str(ROOT / "benchmarks"))
    import capture_models

    texts = capture_models.texts()
    lengths = sorted(len(text) for text in texts)
    assert (len(texts), lengths[0], lengths[-1]) == (512, 20, 512)
    assert lengths[256] < sum(lengths) / 512 < lengths[-1] / 4  # a long tail
    assert capture_models.texts() == texts
    assert set(capture_models.MODELS) == {"llama256x8", "llama768x12", "gpt2", "neox512x6"}


BUSY = """
import json, sys, time
rounds = json.loads(sys.argv[1])["rounds"]
while True:
    cpu, began = time.process_time(), time.monotonic()
    sum(range(rounds))
    cpu, at = time.process_time() - cpu, time.monotonic()
    print(json.dumps({"cpu": cpu, "began": began, "at": at}), flush=True)
"""


def test_a_part_of_the_texts_pads_as_little_as_all(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.syspath_prepend(str(ROOT / "benchmarks"))
    import capture_models

    def padding(texts: list[list[int]]) -> float:
        lengths = sorted(map(len, texts))
        rows = [lengths[at : at + 16] for at in range(0, len(lengths), 16)]
        return sum(16 * row[-1] for row in rows) / sum(lengths)

    every = capture_models.texts()
    assert capture_models.sample(512) == every
    for count in (48, 96, 128):
        texts = capture_models.sample(count)
        assert len(texts) == count and all(text in every for text in texts)
        assert padding(texts) < padding(every) + 0.01


SLEEPER = """
import os, sys
sys.stdout.write("{}\\n"); sys.stdout.flush()
if len(sys.argv) > 1: os._exit(3)
while True: sum(range(1000))
"""


def test_who_ends_or_hangs_leaves_the_others_alone(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.syspath_prepend(str(ROOT / "benchmarks"))
    import capture_clock

    program = tmp_path / "sleeper.py"
    program.write_text(SLEEPER, encoding="utf-8")
    failed: dict[str, str] = {}
    contenders = [
        capture_clock.Contender.started(name, [sys.executable, str(program), *more])
        for name, more in (("hangs", []), ("ends", ["now"]))
    ]
    try:
        for one in contenders:
            one.hear()
            one.stop()
        capture_clock.take_turns(
            contenders, 2, limit=0.3, failed=lambda one, why: failed.update({one.name: str(why)})
        )
        assert failed["hangs"] == "over 0.3 s" and failed["ends"].startswith("ended with 3")
        with pytest.raises(capture_clock.EndedError):
            capture_clock.take_turns(contenders[:1], 2, limit=0.3)
    finally:
        for one in contenders:
            one.end()


@pytest.mark.slow
def test_by_turns_counts_only_the_turns_of_each(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.syspath_prepend(str(ROOT / "benchmarks"))
    import capture_clock

    way = tmp_path / "busy.py"
    way.write_text(BUSY, encoding="utf-8")
    monkeypatch.setattr(capture_clock, "WAY", way)
    work = {"a": 40_000_000, "b": 40_000_000, "twice": 80_000_000}
    found = capture_clock.by_turns({name: {"rounds": n} for name, n in work.items()}, 4)
    assert all(len(times[clock]) >= 4 for times in found.values() for clock in ("cpu", "wall"))
    alike = capture_clock.ratios(found["b"], found["a"])["median"]["cpu"]
    double = capture_clock.ratios(found["twice"], found["a"])["median"]["cpu"]
    assert 0.8 < alike < 1.25 and 1.6 < double < 2.5
    for times in found.values():  # the two others had their turns meanwhile
        assert np.median(times["wall"]) < 1.9 * np.median(times["cpu"])


def test_ratios_are_of_times_side_by_side(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.syspath_prepend(str(ROOT / "benchmarks"))
    import capture_clock

    rng = np.random.default_rng(0)
    ours, floor = ({clock: rng.uniform(1, 2, 7).tolist() for clock in ("cpu", "wall")}
                   for _ in range(2))  # fmt: skip
    longer = {clock: [*values, 99.0] for clock, values in floor.items()}
    found = capture_clock.ratios(ours, longer, 0.5)
    for clock in ("cpu", "wall"):
        each = np.array(ours[clock]) / np.array(floor[clock]) / 0.5
        expected = {"median": np.median(each), "least": each.min(), "most": each.max()}
        assert {kind: found[kind][clock] for kind in found} == pytest.approx(expected, abs=1e-3)
        added = capture_clock.plus(ours, longer)[clock]
        assert added == pytest.approx(np.array(ours[clock]) + np.median(longer[clock]))


@pytest.mark.slow
@pytest.mark.skipif(not Path("/proc/self/status").exists(), reason="peaks are read from /proc")
def test_a_process_is_not_charged_for_the_one_that_started_it() -> None:
    ballast = np.ones(1 << 27)  # 1 GiB
    code = "import sys; sys.path.insert(0, 'benchmarks'); import capture_children as c; "
    code += "print(c.peak_mb())"
    done = subprocess.run(
        [sys.executable, "-c", code], cwd=ROOT, check=True, capture_output=True, text=True
    )
    assert 50 < float(done.stdout.split()[-1]) < ballast.nbytes / 2**20
