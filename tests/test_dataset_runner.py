"""The runner on synthetic data: shapes and metadata in every store, resume, and its edges."""

import math

import numpy as np
import pytest
import torch
from torch import nn

import actscope
from actscope import ActivationExtractor, DatasetRunner, ShardStorage, open_run, wrap_model
from actscope.capture import CaptureOptions
from actscope.core.errors import BadInputError, RunMismatchError
from actscope.core.protocols import GenerationParams
from actscope.core.text import Span

VOCAB, WIDTH = 40, 12
LENGTHS = [5, 2, 3, 7, 1, 4, 4, 6, 2, 3]
DATASET = [[(7 * i + 3 * j) % VOCAB for j in range(n)] for i, n in enumerate(LENGTHS)]


class Block(nn.Module):
    def __init__(self):
        super().__init__()
        self.up = nn.Linear(WIDTH, 4 * WIDTH)
        self.down = nn.Linear(4 * WIDTH, WIDTH)

    def forward(self, x):
        steps = torch.arange(1, x.shape[1] + 1, dtype=x.dtype, device=x.device)
        seen = x.cumsum(1) / steps[None, :, None]
        return x + self.down(torch.tanh(self.up(seen)))


class TinyModel(nn.Module):
    def __init__(self):
        super().__init__()
        self.embed = nn.Embedding(VOCAB, WIDTH)
        self.blocks = nn.ModuleList([Block(), Block()])
        self.head = nn.Linear(WIDTH, VOCAB, bias=False)

    def forward(self, input_ids, attention_mask=None):
        x = self.embed(input_ids)
        for block in self.blocks:
            x = block(x)
        return self.head(x)


@pytest.fixture(scope="module")
def model():
    torch.manual_seed(0)
    return wrap_model(TinyModel().eval(), None)


def alone(model, strategy=None):
    """Every example in a batch of its own."""
    extractor = ActivationExtractor(model, "all", strategy)
    return [extractor.extract([ids]) for ids in DATASET]


def test_the_store_holds_arrays_of_the_right_shape_with_their_metadata(model, tmp_path):
    dataset = [{"id": f"q{i}", "token_ids": ids, "n": i} for i, ids in enumerate(DATASET)]
    extractor = ActivationExtractor(model, "all")
    result = DatasetRunner(dataset, 3, extractor, ShardStorage(tmp_path)).run()
    assert (result.captured, result.resumed, result.tokens) == (10, 0, sum(LENGTHS))
    run = open_run(result.path)
    assert [str(s) for s in run.sites] == ["blocks.0.resid_post", "blocks.1.resid_post"]
    assert [e.id for e in run.examples] == [f"q{i}" for i in range(10)]
    assert [e.n_tokens for e in run.examples] == LENGTHS
    assert [e.metadata["n"] for e in run.examples] == list(range(10))
    want = alone(model)
    for i, ids in enumerate(DATASET):
        assert run.tokens(i).tolist() == ids
        for layer in (0, 1):
            rows = run.get("resid_post", layer, example=i)
            assert rows.shape == (len(ids), WIDTH)
            torch.testing.assert_close(rows, want[i]["resid_post", layer][0])
    assert run.verify().ok


@pytest.mark.parametrize("batch_size", [None, 1, 3, 100])
def test_results_do_not_depend_on_the_batch_size(model, tmp_path, batch_size):
    extractor = ActivationExtractor(model, "all", "mean")
    result = DatasetRunner(DATASET, batch_size, extractor, ShardStorage(tmp_path)).run()
    want = torch.cat([part["resid_post", 1] for part in alone(model, "mean")])
    torch.testing.assert_close(result.open().stack("resid_post", 1), want)


def test_arguments_in_run_instead_of_the_constructor(model, tmp_path):
    extractor = ActivationExtractor(model, strategy="last")
    storage = ShardStorage(tmp_path)
    first = DatasetRunner(DATASET, 4, extractor, storage).run()
    second = DatasetRunner().run(DATASET, 4, extractor, storage)
    assert second.path == first.path
    assert (second.captured, second.resumed) == (0, 10)
    with pytest.raises(BadInputError, match="no extractor"):
        DatasetRunner(DATASET, storage=storage).run()
    with pytest.raises(BadInputError, match="batch_size"):
        DatasetRunner(DATASET, 0, extractor, storage).run(run_id="x")


def test_the_seeds_example_runs(model, tmp_path):
    extractor = ActivationExtractor(model, layers=[-1], strategy=actscope.MeanStrategy())
    runner = DatasetRunner(
        DATASET, batch_size=32, extractor=extractor, storage=actscope.NPZStorage(tmp_path / "out")
    )
    result = runner.run()
    arrays = [np.load(path, allow_pickle=False) for path in sorted(result.path.rglob("*.npz"))]
    assert arrays
    want = torch.cat([part["resid_post", 1] for part in alone(model, "mean")]).numpy()
    got = np.concatenate([file["blocks.1.resid_post"] for file in arrays])
    np.testing.assert_allclose(got, want, rtol=1e-5, atol=1e-6)


def test_hdf5_takes_the_same_run(model, tmp_path):
    h5py = pytest.importorskip("h5py")
    extractor = ActivationExtractor(model, strategy="last")
    result = DatasetRunner(DATASET, 4, extractor, actscope.HDF5Storage(tmp_path)).run(run_id="r")
    files = [result.path] if result.path.is_file() else sorted(result.path.rglob("*.h5"))
    assert files
    for path in files:
        with h5py.File(path, "r") as file:
            assert len(file)


@pytest.mark.parametrize("storage", [actscope.ShardStorage, actscope.NPZStorage])
def test_an_empty_dataset_makes_an_empty_complete_run(model, tmp_path, storage):
    extractor = ActivationExtractor(model)
    runner = DatasetRunner([], 4, extractor, storage(tmp_path))
    result = runner.run()
    assert (result.captured, result.resumed) == (0, 0)
    assert result.path.exists()
    assert runner.run().path == result.path


def test_an_empty_native_run_opens_and_verifies(model, tmp_path):
    result = DatasetRunner([], 4, ActivationExtractor(model), ShardStorage(tmp_path)).run()
    run = result.open()
    assert list(run.examples) == []
    assert run.verify().ok


def test_mixed_lengths_respect_the_mask(model, tmp_path):
    """A short example beside a long one gives what it gives alone, for every strategy."""
    for strategy in ("last", "first", "mean", "max"):
        extractor = ActivationExtractor(model, "all", strategy)
        result = DatasetRunner(DATASET, 10, extractor, ShardStorage(tmp_path)).run(run_id=strategy)
        want = torch.cat([part["resid_post", 0] for part in alone(model, strategy)])
        torch.testing.assert_close(result.open().stack("resid_post", 0), want)


def test_running_again_captures_nothing_again(model, tmp_path, monkeypatch):
    extractor = ActivationExtractor(model)
    first = DatasetRunner(DATASET, 4, extractor, ShardStorage(tmp_path)).run()
    before = {p: p.read_bytes() for p in first.path.rglob("*") if p.is_file()}
    second = DatasetRunner(DATASET, 4, extractor, ShardStorage(tmp_path)).run()
    assert (second.captured, second.resumed, second.tokens) == (0, 10, 0)
    assert {p: p.read_bytes() for p in first.path.rglob("*") if p.is_file()} == before


def test_a_changed_spec_is_refused_and_says_what_differs(model, tmp_path):
    storage = ShardStorage(tmp_path)
    DatasetRunner(DATASET, 4, ActivationExtractor(model), storage).run(run_id="r")
    with pytest.raises(RunMismatchError) as caught:
        DatasetRunner(DATASET, 4, ActivationExtractor(model, strategy="mean"), storage).run(
            run_id="r"
        )
    assert "strategy.name" in {row[0] for row in caught.value.differences}
    with pytest.raises(RunMismatchError) as caught:
        DatasetRunner(DATASET[:-1], 4, ActivationExtractor(model), storage).run(run_id="r")
    assert caught.value.differences


def test_a_generator_is_a_dataset_too(model, tmp_path):
    extractor = ActivationExtractor(model, strategy="last")
    result = DatasetRunner((ids for ids in DATASET), 4, extractor, ShardStorage(tmp_path)).run()
    assert result.captured == 10


def test_two_examples_with_one_id_are_refused(model, tmp_path):
    twice = [{"id": "a", "token_ids": [1]}, {"id": "a", "token_ids": [2]}]
    with pytest.raises(BadInputError, match="same id"):
        DatasetRunner(twice, 4, ActivationExtractor(model), ShardStorage(tmp_path)).run()
    assert not any(tmp_path.iterdir())


def test_ranges_of_one_dataset_have_one_fingerprint(model, tmp_path):
    extractor, storage = ActivationExtractor(model, strategy="last"), ShardStorage(tmp_path)
    parts = [
        DatasetRunner(
            DATASET, 4, extractor, storage, options=CaptureOptions(offset=offset, limit=5)
        ).run()
        for offset in (0, 5)
    ]
    assert parts[0].fingerprint == parts[1].fingerprint
    assert parts[0].path != parts[1].path
    assert [e.index for e in parts[1].open().examples] == [5, 6, 7, 8, 9]


@pytest.mark.parametrize("sites", ["resid_post[1,0]", "resid_post"])
def test_the_order_sites_were_asked_for_in_changes_no_byte(model, tmp_path, sites):
    folders = []
    for name, wanted in (("a", "resid_post"), ("b", sites)):
        extractor = ActivationExtractor(model, "all", sites=wanted)
        folders.append(
            DatasetRunner(DATASET, 4, extractor, ShardStorage(tmp_path)).run(run_id=name)
        )
    a, b = folders
    assert a.fingerprint == b.fingerprint
    shards = [sorted((done.path / "shards").iterdir()) for done in folders]
    assert [p.name for p in shards[0]] == [p.name for p in shards[1]]
    assert [p.read_bytes() for p in shards[0]] == [p.read_bytes() for p in shards[1]]


@pytest.mark.parametrize("span", ["response", "response-special"])
def test_a_span_of_the_answer_without_answers_is_refused(model, tmp_path, span):
    parsed = Span.parse("response", exclude_special=span.endswith("special"))
    extractor = ActivationExtractor(model, span=parsed)
    runner = DatasetRunner(DATASET, 4, extractor, ShardStorage(tmp_path))
    for work in (runner.run, runner.dry_run):
        with pytest.raises(BadInputError, match="response"):
            work(run_id="r")
    assert not any(tmp_path.iterdir())


@pytest.mark.parametrize(
    ("params", "says"),
    [
        ({"max_new_tokens": 0}, "max_new_tokens must be at least 1"),
        ({"temperature": -0.1}, "temperature must"),
        ({"temperature": math.nan}, "temperature must"),
        ({"temperature": math.inf}, "temperature must"),
        ({"top_p": 0.0}, "top_p must"),
        ({"top_p": 1.1}, "top_p must"),
        ({"top_p": math.nan}, "top_p must"),
        ({"top_k": -1}, "top_k must"),
    ],
)
def test_sampling_parameters_that_mean_nothing_are_refused(params, says):
    with pytest.raises(BadInputError, match=says):
        CaptureOptions(generation=GenerationParams(**params))


def test_bfloat16_on_disk_only_where_the_store_has_it(model, tmp_path):
    options = CaptureOptions(storage_dtype="bfloat16")
    extractor = ActivationExtractor(model)
    runner = DatasetRunner(DATASET, 4, extractor, ShardStorage(tmp_path), options=options)
    dry = runner.dry_run(run_id="r")
    run = runner.run(run_id="r").open()
    site = run.summary().sites["blocks.1.resid_post"]
    assert site.dtype == "bfloat16"
    assert list(dry.dtypes.values()) == ["bfloat16"]
    assert list(dry.bytes_by_site.values()) == [site.bytes] == [sum(LENGTHS) * WIDTH * 2]
    want = extractor.extract([DATASET[3]])["resid_post", 1][0]
    torch.testing.assert_close(run.get("resid_post", 1, example=3), want.bfloat16())
    runner = DatasetRunner(DATASET, 4, extractor, actscope.NPZStorage(tmp_path), options=options)
    with pytest.raises(BadInputError, match="NPZStorage has no bfloat16"):
        runner.run(run_id="n")
    assert not (tmp_path / "n").exists()


def test_an_encoders_pooler_has_one_row_an_example(tmp_path):
    from actscope.testing.tiny_models import tiny_model

    encoder = wrap_model(tiny_model("bert"), None)
    extractor = ActivationExtractor(encoder, "all", sites=["pooler", "resid_post"])
    run = DatasetRunner(DATASET, 3, extractor, ShardStorage(tmp_path)).run().open()
    assert run.stack("pooler").shape == (10, 32)
    assert run.stack("resid_post", 0).shape == (sum(LENGTHS), 32)
    for i in (0, 4, 7):
        alone = extractor.extract([DATASET[i]])
        torch.testing.assert_close(run.get("pooler", example=i), alone["pooler"][0])
    options = CaptureOptions(generation=GenerationParams(3))
    with pytest.raises(BadInputError, match="cannot generate"):
        DatasetRunner(DATASET, 3, extractor, ShardStorage(tmp_path), options=options).run(
            run_id="g"
        )
    assert not (tmp_path / "g").exists()
