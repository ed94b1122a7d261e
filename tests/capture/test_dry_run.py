"""The figures of a dry run are the figures of the run."""

import shutil

import pytest

from actscope import ActivationExtractor, DatasetRunner, NPZStorage, ShardStorage, wrap_model
from actscope.capture import CaptureOptions
from actscope.core.errors import ExampleError, NotEnoughDiskError
from actscope.core.protocols import GenerationParams
from actscope.testing.tiny_models import tiny_model

LENGTHS = [5, 12, 1, 9, 3, 40, 7, 2, 20, 4, 6, 11]


@pytest.fixture(scope="module")
def model_bf16(tokenizer):
    import torch

    return wrap_model(tiny_model("llama", torch.bfloat16), tokenizer)


@pytest.mark.parametrize("storage_dtype", ["native", "float32", "float16", "bfloat16"])
@pytest.mark.parametrize("strategy", [None, "mean", lambda h: h[0][:5]])
@pytest.mark.parametrize("store", [ShardStorage, NPZStorage])
def test_bytes_by_site_are_exact(model_bf16, text_of, tmp_path, storage_dtype, strategy, store):
    if storage_dtype == "bfloat16" and not store.keeps_bfloat16:
        pytest.skip("this store has no bfloat16")
    extractor = ActivationExtractor(
        model_bf16, [0, -1], strategy, sites=["resid_post", "logits"], span="last:4"
    )
    options = CaptureOptions(
        storage_dtype=storage_dtype, unit_size=5, on_too_long="skip", max_length=30
    )
    runner = DatasetRunner(text_of(*LENGTHS), None, extractor, store(tmp_path), options=options)
    dry = runner.dry_run(run_id="r")
    assert not (tmp_path / "r").exists()
    result = runner.run(run_id="r")
    summary = result.open().summary()
    assert {str(s): n for s, n in dry.bytes_by_site.items()} == {
        key: site.bytes for key, site in summary.sites.items()
    }
    assert {str(s): d for s, d in dry.dtypes.items()} == {
        key: site.dtype for key, site in summary.sites.items()
    }
    assert (dry.examples, dry.tokens) == (summary.n_examples, summary.n_tokens)
    assert dict(dry.failures) == {"too_long": 1} == dict(result.failures)
    assert dry.units == summary.n_units == 3
    tables = sum(
        entry.shape[0] * {"uint8": 1, "int32": 4, "int64": 8}[entry.dtype]
        for unit in result.open().stored_units
        for name, entry in unit.commit.tensors.items()
        if name not in summary.sites
    )
    assert dry.table_bytes == tables
    on_disk = sum(p.stat().st_size for p in result.path.rglob("*") if p.is_file())
    assert on_disk <= dry.total_bytes


def test_without_text(model, text_of, tmp_path):
    options = CaptureOptions(keep_text=False)
    runner = DatasetRunner(
        text_of(*LENGTHS), None, ActivationExtractor(model), ShardStorage(tmp_path), options=options
    )
    dry = runner.dry_run(run_id="r")
    run = runner.run(run_id="r").open()
    tables = sum(
        entry.shape[0] * {"uint8": 1, "int32": 4, "int64": 8}[entry.dtype]
        for unit in run.stored_units
        for name, entry in unit.commit.tensors.items()
        if not name.startswith("blocks")
    )
    assert dry.table_bytes == tables


def test_answers_are_counted_at_their_longest(model, text_of, tmp_path):
    options = CaptureOptions(generation=GenerationParams(9, 0.0))
    runner = DatasetRunner(
        text_of(3, 5), None, ActivationExtractor(model), ShardStorage(tmp_path), options=options
    )
    dry = runner.dry_run(run_id="r")
    assert dry.upper_bound
    assert dry.tokens == 4 + 6 + 2 * 9
    run = runner.run(run_id="r").open()
    assert run.summary().n_tokens <= dry.tokens


def test_only_what_is_missing_counts(model, text_of, tmp_path):
    runner = DatasetRunner(
        text_of(*LENGTHS), None, ActivationExtractor(model), ShardStorage(tmp_path)
    )
    before = runner.dry_run(run_id="r")
    assert (before.examples, before.already_done) == (12, 0)
    assert before.seconds is not None and before.seconds > 0
    runner.run(run_id="r")
    after = runner.dry_run(run_id="r")
    assert (after.examples, after.already_done, after.total_bytes) == (0, 12, 0)
    assert after.fits


def test_the_probe_takes_about_the_time_of_the_run(text_of, tokenizer, tmp_path):
    """Within a factor of ten either way, on a machine that does other things too."""
    model = wrap_model(
        tiny_model("llama", hidden_size=256, intermediate_size=512, head_dim=64), tokenizer
    )
    texts = text_of(*[50] * 256)
    texts = [f"w{i % 90} {text}" for i, text in enumerate(texts)]
    runner = DatasetRunner(
        texts, None, ActivationExtractor(model, strategy="mean"), ShardStorage(tmp_path)
    )
    dry = runner.dry_run(run_id="r")
    assert dry.seconds is not None
    taken = runner.run(run_id="r").open().summary().timings["capture"]
    assert taken / 10 < dry.seconds < taken * 10


def test_what_does_not_fit_is_refused_before_it_begins(model, text_of, tmp_path, monkeypatch):
    usage = shutil.disk_usage(tmp_path)
    runner = DatasetRunner(
        text_of(*LENGTHS), None, ActivationExtractor(model, "all"), ShardStorage(tmp_path)
    )
    need = runner.dry_run(run_id="r").total_bytes
    for free, fits in ((need - 1, False), (need, True)):
        now = usage._replace(free=free)
        monkeypatch.setattr("actscope.capture.disk.shutil.disk_usage", lambda p, now=now: now)
        assert runner.dry_run(run_id="r").fits == fits
        if not fits:
            with pytest.raises(NotEnoughDiskError, match="does not fit the disk"):
                runner.run(run_id="r")
            assert not (tmp_path / "r").exists()
    assert runner.run(run_id="r").captured == 12


def test_large_datasets_are_sampled_evenly(model, tmp_path, monkeypatch):
    from actscope.capture import estimate

    counted = []
    inner = estimate.count

    def watch(extractor, source, options, ranges, plan):
        counted.append(sum(stop - start for start, stop in ranges))
        return inner(extractor, source, options, ranges, plan)

    monkeypatch.setattr("actscope.capture.job.EXACT_COUNT", 100)
    monkeypatch.setattr("actscope.capture.estimate.count", watch)
    dataset = [[3 + i % 90] * (1 + i % 3) for i in range(1000)]
    options = CaptureOptions(unit_size=16)
    extractor = ActivationExtractor(model, strategy="last")
    DatasetRunner(dataset, None, extractor, ShardStorage(tmp_path), options=options).run()
    assert 60 <= counted[0] <= 120


def test_a_prompt_that_would_stop_the_run_stops_the_dry_run(model, text_of, tmp_path):
    runner = DatasetRunner(text_of(3, 90), None, ActivationExtractor(model), ShardStorage(tmp_path))
    with pytest.raises(ExampleError, match="'1' has 91 tokens"):
        runner.dry_run()


@pytest.mark.parametrize("storage_dtype", ["native", "bfloat16", "float16"])
def test_one_row_an_example_is_counted_as_it_is_stored(text_of, tmp_path, storage_dtype):
    import torch

    encoder = wrap_model(tiny_model("bert", torch.bfloat16), None)
    extractor = ActivationExtractor(encoder, sites=["pooler", "resid_post"])
    options = CaptureOptions(storage_dtype=storage_dtype)
    dataset = [[5, 6, 7], [8]]
    runner = DatasetRunner(dataset, None, extractor, ShardStorage(tmp_path), options=options)
    dry = runner.dry_run(run_id="r")
    sites = runner.run(run_id="r").open().summary().sites
    assert {str(s): d for s, d in dry.dtypes.items()} == {k: s.dtype for k, s in sites.items()}
    assert {str(s): n for s, n in dry.bytes_by_site.items()} == {
        k: s.bytes for k, s in sites.items()
    }


class Passes:
    """Tokens that go through the first block once a run has begun."""

    def __init__(self, model):
        self.tokens = 0
        self._hook = model.hf.model.layers[0].register_forward_hook(self._saw)

    def _saw(self, module, arguments, output):
        self.tokens += arguments[0].shape[:2].numel()

    def started(self, total, done):
        self.tokens = 0

    def advanced(self, examples, tokens):
        pass

    def notice(self, text):
        pass

    def close(self):
        self._hook.remove()


def test_what_shared_beginnings_save_is_what_the_run_leaves_out(model, text_of, tmp_path):
    """Six texts of BOS, thirty words in common and three of their own; two that share nothing."""
    head = " ".join(f"w{i}" for i in range(30))
    texts = [f"{head} w{40 + i} w{50 + i} w{60 + i}" for i in range(6)] + ["w70 w71", "w72 w73"]
    expected = {"off": (0, 0), "auto": (6 * 31, 5 * 31)}
    for way, (shared, saved) in expected.items():
        options = CaptureOptions(share_prefix=way, batch_tokens=1024)
        passes = Passes(model)
        runner = DatasetRunner(
            texts, None, ActivationExtractor(model), ShardStorage(tmp_path / way),
            options=options, progress=passes,
        )  # fmt: skip
        dry = runner.dry_run(run_id="r")
        assert (dry.tokens, dry.shared, dry.saved) == (6 * 34 + 2 * 3, shared, saved)
        result = runner.run(run_id="r")
        passes.close()
        padded = dry.tokens + round(dry.padding * dry.tokens)
        assert passes.tokens == padded - saved
        assert result.share_prefix == (way == "auto")


def test_examples_longer_than_a_batch_are_counted(model, text_of, tmp_path):
    lengths = [n + 1 for n in LENGTHS]  # BOS
    for budget, size in ((10, None), (41, None), (None, 1)):
        options = CaptureOptions(**({"batch_tokens": budget} if budget else {}))
        runner = DatasetRunner(
            text_of(*LENGTHS), size, ActivationExtractor(model), ShardStorage(tmp_path),
            options=options,
        )  # fmt: skip
        alone = sum(n > budget for n in lengths) if budget else 0
        assert runner.dry_run(run_id="r").alone == alone


def test_a_dry_run_says_what_was_asked_for_in_vain(model, text_of, tmp_path):
    said = []
    passes = Passes(model)
    passes.notice = said.append
    runner = DatasetRunner(
        text_of(3, 5), None, ActivationExtractor(model, sites=["pattern"]), ShardStorage(tmp_path),
        options=CaptureOptions(share_prefix="auto"), progress=passes,
    )  # fmt: skip
    dry = runner.dry_run(run_id="r")
    passes.close()
    assert len(said) == 1 and "do not share that part" in said[0]
    assert not dry.plan.share_prefix and dry.shared == 0
