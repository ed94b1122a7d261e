"""The benchmarks run, on something tiny."""

import json
import subprocess
import sys
from pathlib import Path

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
