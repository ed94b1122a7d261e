"""The demo model's training: seeded, resumable, and its starting heads do what they are for."""

import random
import sys
from itertools import islice
from pathlib import Path

import pytest
import torch

TOOLS = Path(__file__).parents[2] / "tools"


@pytest.fixture
def tools(monkeypatch):
    monkeypatch.syspath_prepend(str(TOOLS))
    threads, before = torch.get_num_threads(), set(sys.modules)
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(threads)
    for name in set(sys.modules) - before:
        if name.startswith(("demo_", "train_demo", "write_demo")):
            del sys.modules[name]


def small_settings(**changes):
    from demo_network import Shape
    from train_demo_model import PHASES, Settings

    shape = Shape(hidden_size=96, inner_size=96, layers=2, heads=3)
    phases = (2,) * len(PHASES)
    return Settings(shape=shape, rows=2, phases=phases, **changes)


def train(work, settings, tokenizer, steps=None):
    from demo_network import new_model
    from train_demo_model import Training

    torch.manual_seed(settings.seed)
    training = Training(new_model(settings.shape, tokenizer), tokenizer, settings, work)
    if steps is not None:  # stop as a kill would, after the checkpoint of that step
        save = training.save

        def save_and_stop():
            save()
            if training.step >= steps:
                raise KeyboardInterrupt

        training.save = save_and_stop
        with pytest.raises(KeyboardInterrupt):
            training.run()
    else:
        training.run()
    return training


@pytest.mark.slow
def test_a_run_that_was_cut_ends_with_the_same_weights(tools, tmp_path):
    from train_demo_model import check_template, world_tokenizer

    settings = small_settings()
    tokenizer = world_tokenizer(settings, tmp_path / "whole")
    check_template(tokenizer)
    whole = train(tmp_path / "whole", settings, tokenizer)
    train(tmp_path / "cut", settings, tokenizer, steps=4)
    cut = train(tmp_path / "cut", settings, tokenizer)
    assert cut.step == whole.step == settings.total
    for name, weight in whole.model.state_dict().items():
        assert torch.equal(cut.model.state_dict()[name], weight), name
    assert cut.losses == whole.losses and cut.checks == whole.checks
    with pytest.raises(SystemExit, match="other settings"):
        train(tmp_path / "cut", small_settings(matrix_rate=0.1), tokenizer)


def test_the_same_seed_writes_the_same_documents(tools):
    from demo_writer import documents

    first, again, other = (list(islice(documents(seed), 200)) for seed in (1, 1, 2))
    assert first == again
    assert first != other


def test_packed_documents_do_not_see_each_other(tools, tmp_path):
    """The loss of two documents in one row is that of the two alone, weighted by their tokens."""
    from demo_network import new_model
    from demo_writer import documents
    from train_demo_model import Row, add_document, batch_loss, encoded, world_tokenizer

    settings = small_settings()
    tokenizer = world_tokenizer(settings, tmp_path)
    torch.manual_seed(0)
    model = new_model(settings.shape, tokenizer)
    stream = (d for d in documents(4) if d.messages)
    parts = [encoded(document, tokenizer) for document in islice(stream, 3)]
    rows = []
    for ids, weights in parts:
        row = Row([], [], [], [])
        add_document(row, ids, weights)
        rows.append(row)
    together = Row([], [], [], [])
    for ids, weights in parts:
        add_document(together, ids, weights)
    with torch.no_grad():
        alone = [batch_loss(model, [row]).item() for row in rows]
        packed = batch_loss(model, [together]).item()
    sizes = [sum(row.weights[1:]) for row in rows]
    expected = sum(a * size for a, size in zip(alone, sizes, strict=True)) / sum(sizes)
    assert packed == pytest.approx(expected, rel=1e-5)


def test_the_starting_heads_look_one_and_two_tokens_back(tools, tmp_path):
    from demo_network import Shape, new_model
    from train_demo_model import Settings, world_tokenizer

    settings = Settings(shape=Shape(layers=2))
    tokenizer = world_tokenizer(settings, tmp_path)
    torch.manual_seed(0)
    model = new_model(settings.shape, tokenizer)
    model.set_attn_implementation("eager")
    ids = torch.tensor([random.Random(0).sample(range(20, len(tokenizer)), 40)])
    with torch.no_grad():
        pattern = model(ids, output_attentions=True).attentions[0][0]
    for head, distance in ((0, 1), (1, 2)):
        looked = pattern[head, 4:].argmax(-1) - torch.arange(4, 40)
        assert (looked == -distance).float().mean() > 0.7
    for head in (2, 3, 4):  # the others start as they come
        looked = pattern[head, 4:].argmax(-1) - torch.arange(4, 40)
        assert (looked == -1).float().mean() < 0.5


def test_muon_steps_are_nearly_orthogonal(tools):
    from demo_network import orthogonal

    torch.manual_seed(0)
    for shape in ((3, 20, 50), (2, 50, 20)):
        sizes = torch.linalg.svdvals(orthogonal(torch.randn(shape)))
        assert sizes.min() > 0.3 and sizes.max() < 1.3
