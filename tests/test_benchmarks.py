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
