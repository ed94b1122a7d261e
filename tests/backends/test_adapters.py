"""LoRA adapters: peft's own numbers, never merged, off without a trace, refused where wrong."""

from __future__ import annotations

import json
import logging
import shutil
from pathlib import Path
from typing import Any

import pytest
import torch
from lora_adapters import as_peft, save_adapter, train_adapter

from actscope import DatasetRunner, ShardStorage, load_model, open_run, wrap_model
from actscope.backends.hf import adapter_files
from actscope.backends.hf.adapter_files import read_adapter
from actscope.capture import ActivationExtractor
from actscope.core.errors import (
    BadInputError,
    ModelLoadError,
    RunMismatchError,
    UnknownNameError,
)
from actscope.core.protocols import Selection
from actscope.core.sites import Site
from actscope.strategies import as_strategy
from actscope.testing.tiny_models import tiny_model

IDS = [[5, 6, 7, 8, 9, 10], [11, 12, 13], [20, 21, 22, 23]]
EVERY_LINEAR = {"target_modules": "all-linear"}


@pytest.fixture(scope="module")
def folders(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    root = tmp_path_factory.mktemp("adapters")
    base = tiny_model("llama")
    base.save_pretrained(root / "tiny-llama")
    return {
        "base": root / "tiny-llama",
        "a": save_adapter(root / "a", base, seed=1),
        "b": save_adapter(root / "b", base, seed=2, target_modules=["up_proj", "o_proj"]),
        "trained": train_adapter(root / "trained", base),
    }


def outputs(hf: Any, ids: list[int]) -> tuple[torch.Tensor, ...]:
    """Hugging Face's own hidden states and logits of one unpadded prompt."""
    with torch.no_grad():
        out = hf(input_ids=torch.tensor([ids]), output_hidden_states=True, use_cache=False)
    return (*(h[0] for h in out.hidden_states), out.logits[0])


def snapshot(hf: Any) -> dict[str, Any]:
    """Everything of a model that an adapter could leave changed."""
    modules = dict(hf.named_modules())
    return {
        "modules": {path: id(module) for path, module in modules.items()},
        "attributes": {
            path: sorted(k for k in vars(module) if k != "_modules")
            for path, module in modules.items()
        },
        "hooks": {
            path: (
                len(module._forward_hooks),
                len(module._forward_pre_hooks),
                len(module._backward_hooks),
            )
            for path, module in modules.items()
        },
        "training": {path: module.training for path, module in modules.items()},
        "grads": {name: p.requires_grad for name, p in hf.named_parameters()},
        "state": {name: t.clone() for name, t in hf.state_dict().items()},
        "config": json.dumps(hf.config.to_dict(), sort_keys=True, default=str),
    }


def assert_same(before: dict[str, Any], after: dict[str, Any]) -> None:
    states = before.pop("state"), after.pop("state")
    assert before == after
    assert list(states[0]) == list(states[1])
    assert all(torch.equal(states[0][name], states[1][name]) for name in states[0])


@pytest.mark.parametrize(
    ("family", "dtype", "config"),
    [
        ("llama", torch.float32, {}),
        ("llama", torch.bfloat16, {}),
        ("llama", torch.float32, EVERY_LINEAR),
        ("llama", torch.float32, {"use_rslora": True, "use_dora": True}),
        ("llama", torch.bfloat16, {"use_dora": True, "target_modules": ["down_proj"]}),
        ("llama", torch.float32, {"rank_pattern": {"q_proj": 2}, "layers_to_transform": [1]}),
        ("llama", torch.float32, {"target_modules": ["embed_tokens", "lm_head"]}),
        ("llama", torch.float32, {"modules_to_save": ["lm_head", "embed_tokens"]}),
        ("llama", torch.float32, {"modules_to_save": ["norm"]}),
        ("gpt2", torch.float32, {"target_modules": ["c_attn", "c_proj"], "fan_in_fan_out": True}),
        ("gemma2", torch.float32, {"target_modules": ["embed_tokens", "o_proj"]}),
        ("phi", torch.float32, {"target_modules": ["q_proj", "fc2"]}),
        ("granite", torch.float32, EVERY_LINEAR),
        ("cohere", torch.float32, EVERY_LINEAR),
        ("mixtral", torch.float32, {}),
        ("mixtral", torch.float32, {"target_parameters": ["mlp.experts.gate_up_proj"]}),
        ("mixtral", torch.bfloat16, {"target_parameters": ["mlp.experts.down_proj"]}),
        ("qwen3", torch.float32, {**EVERY_LINEAR, "lora_bias": False}),
    ],
)
def test_activations_are_those_of_peft(
    tmp_path: Path, family: str, dtype: torch.dtype, config: dict[str, Any]
) -> None:
    base = tiny_model(family, dtype)
    reference = as_peft(base, save_adapter(tmp_path / "lora", base, **config))
    model = wrap_model(base)
    plain = {site for site, status in model.sites().items() if status.verified}
    model.load_adapter(str(tmp_path / "lora"))
    with model.adapter("lora"):
        assert {s for s, status in model.sites().items() if status.verified} == plain
        for ids in IDS:
            got = model.capture([ids], ["resid_post", "logits"])
            *hidden, logits = outputs(reference, ids)
            assert torch.equal(got["logits"][0], logits)
            for layer in range(2):
                assert torch.equal(got["resid_post", layer][0], hidden[layer + 1])
            assert not torch.equal(logits, outputs_plain(model, ids))


def outputs_plain(model: Any, ids: list[int]) -> torch.Tensor:
    with model.adapter(None):
        return model.capture([ids], "logits")["logits"][0]


def test_a_trained_adapter_in_and_out_of_its_block(folders: dict[str, Path]) -> None:
    base = tiny_model("llama")
    plain = outputs(base, IDS[0])
    adapted = outputs(as_peft(base, folders["trained"]), IDS[0])
    model = wrap_model(base)
    model.load_adapter(str(folders["trained"]))
    for _ in range(2):
        assert model.active_adapter is None
        assert torch.equal(model.capture([IDS[0]])["resid_post", 1][0], plain[2])
        with model.adapter("trained"):
            assert model.active_adapter == "trained"
            assert torch.equal(model.capture([IDS[0]])["resid_post", 1][0], adapted[2])
            assert torch.equal(outputs(model.hf, IDS[0])[-1], adapted[-1])  # hf itself
    assert torch.equal(outputs(model.hf, IDS[0])[-1], plain[-1])


def test_generation_follows_the_adapter(folders: dict[str, Path]) -> None:
    base = tiny_model("llama")
    reference = as_peft(base, folders["trained"])
    model = load_model(str(folders["base"]), adapter=str(folders["trained"]))
    prompt = torch.tensor([IDS[0]])

    def greedy(hf: Any) -> list[int]:
        made = hf.generate(input_ids=prompt, max_new_tokens=8, do_sample=False, pad_token_id=0)
        return made[0].tolist()

    def ours() -> list[int]:
        return model.generate([IDS[0]], max_new_tokens=8, temperature=0).rows[0].token_ids.tolist()

    adapted, plain = greedy(reference), greedy(base)
    assert adapted != plain  # otherwise the rest would prove nothing
    assert ours() == adapted
    with model.adapter(None):
        assert ours() == plain
    assert ours() == adapted


def test_several_adapters_on_one_base(folders: dict[str, Path]) -> None:
    base = tiny_model("llama")
    expected = {name: outputs(as_peft(base, folders[name]), IDS[0])[2] for name in ("a", "b")}
    expected[None] = outputs(base, IDS[0])[2]  # type: ignore[index]
    model = load_model(
        str(folders["base"]), adapter="b", adapters={k: str(folders[k]) for k in ("a", "b")}
    )
    assert list(model.adapters) == ["a", "b"]
    assert model.active_adapter == "b"
    for name in ("a", "b", None, "b", "a"):
        with model.adapter(name):
            assert torch.equal(model.capture([IDS[0]])["resid_post", 1][0], expected[name])
            with model.adapter("a"):  # inside, the inner one alone
                assert torch.equal(model.capture([IDS[0]])["resid_post", 1][0], expected["a"])
            assert torch.equal(model.capture([IDS[0]])["resid_post", 1][0], expected[name])
    assert model.active_adapter == "b"
    with pytest.raises(UnknownNameError, match="adapter 'c'"), model.adapter("c"):
        pass
    with pytest.raises(BadInputError, match="loaded already"):
        model.load_adapter(str(folders["a"]))


@pytest.mark.parametrize("training", [False, True])
def test_switching_off_leaves_no_trace(folders: dict[str, Path], training: bool) -> None:
    base = tiny_model("llama").train(training)
    base.model.layers[0].self_attn.q_proj.register_forward_hook(lambda *_: None)  # the user's own
    for parameter in base.model.layers[1].parameters():
        parameter.requires_grad = False
    before = snapshot(base)
    random = torch.random.get_rng_state()
    model = wrap_model(base)
    model.load_adapter(str(folders["a"]))
    assert torch.equal(torch.random.get_rng_state(), random)
    model.load_adapter(str(folders["trained"]))
    assert_same(before, snapshot(base))
    before = snapshot(base)
    with pytest.raises(ZeroDivisionError), model.adapter("a"):
        model.capture(IDS)
        assert any("lora_A" in name for name in base.state_dict())
        raise ZeroDivisionError
    with model.adapter("trained"):
        model.generate(IDS[:1], max_new_tokens=2, temperature=0)
    assert_same(before, snapshot(base))


def test_an_adapter_on_experts_leaves_no_trace(tmp_path: Path) -> None:
    base = tiny_model("mixtral")
    save_adapter(tmp_path / "x", base, target_parameters=["mlp.experts.gate_up_proj"])
    before = snapshot(base)
    model = load_model_of(base, tmp_path / "x")
    assert_same(before, snapshot(base))
    before = snapshot(base)
    with model.adapter("x"):
        model.capture(IDS)
        model.capture(IDS, "model.layers.1.mlp.experts.base_layer")  # stops inside peft's layer
    assert_same(before, snapshot(base))


def test_the_adapter_is_not_merged(folders: dict[str, Path]) -> None:
    base = tiny_model("llama")
    weights = {name: t.clone() for name, t in base.state_dict().items()}
    model = wrap_model(base)
    model.load_adapter(str(folders["a"]))
    with model.adapter("a"):
        now = {name.replace(".base_layer", ""): t for name, t in base.state_dict().items()}
        assert all(torch.equal(now[name], weights[name]) for name in weights)


def test_module_paths_work_with_and_without(folders: dict[str, Path]) -> None:
    base = tiny_model("llama")
    reference = as_peft(base, folders["a"])
    seen: dict[str, torch.Tensor] = {}
    paths = ["model.layers.1.self_attn.q_proj", "model.layers.1.mlp", "lm_head"]
    for path in paths:
        module = reference.get_submodule(f"base_model.model.{path}")
        module.register_forward_hook(lambda _m, _a, out, path=path: seen.update({path: out[0]}))
    outputs(reference, IDS[0])
    model = wrap_model(base)
    plain = model.capture([IDS[0]], paths)
    model.load_adapter(str(folders["a"]))
    with model.adapter("a"):
        adapted = model.capture([IDS[0]], paths)
        inner = "model.layers.1.self_attn.q_proj.base_layer"
        assert model.capture([IDS[0]], inner)[inner][0].shape == (6, 32)
    for path in paths:
        assert torch.equal(adapted[path][0], seen[path].detach())
        assert not torch.equal(adapted[path][0], plain[path][0])


def test_unembedding_follows_the_adapter(tmp_path: Path) -> None:
    base = tiny_model("llama")
    save_adapter(tmp_path / "head", base, target_modules=["lm_head"])
    model = load_model_of(base, tmp_path / "head")
    for name in (None, "head"):
        with model.adapter(name):
            got = model.capture([IDS[0]], ["resid_post", "logits"], layers=[-1])
            assert torch.equal(model.unembed(got["resid_post", -1][0]), got["logits"][0])


def load_model_of(base: Any, folder: Path) -> Any:
    model = wrap_model(base)
    model.load_adapter(str(folder))
    return model


def test_an_adapter_on_the_embedding_moves_its_site(tmp_path: Path) -> None:
    base = tiny_model("llama")
    save_adapter(tmp_path / "lora", base, target_modules=["embed_tokens"])
    model = load_model_of(base, tmp_path / "lora")
    with model.adapter("lora"):
        got = model.capture([IDS[0]], ["embed", "resid_pre"], layers=[0])
        assert torch.equal(got["embed"][0], got["resid_pre", 0][0])
        assert not torch.equal(got["embed"][0], base.get_input_embeddings().weight[IDS[0]])


def test_a_session_does_not_outlive_a_switch(folders: dict[str, Path]) -> None:
    model = load_model_of(tiny_model("llama"), folders["a"])
    selection = Selection((Site("resid_post", 0),), as_strategy(None))
    from actscope import Batch

    batch = Batch.from_ids(IDS)
    with model.open(selection) as session:
        session.run(batch)
        with model.adapter("a"), pytest.raises(BadInputError, match="switched while"):
            session.run(batch)
        session.run(batch)


# identity


def test_the_identity_is_of_the_content(folders: dict[str, Path], tmp_path: Path) -> None:
    elsewhere = tmp_path / "elsewhere" / "a"
    shutil.copytree(folders["a"], elsewhere)
    settings = json.loads((elsewhere / "adapter_config.json").read_text())
    settings["base_model_name_or_path"] = "somewhere/else"
    settings["target_modules"] = settings["target_modules"][::-1]
    (elsewhere / "adapter_config.json").write_text(json.dumps(settings))
    digest = read_adapter(str(folders["a"])).digest
    assert read_adapter(str(elsewhere)).digest == digest
    assert read_adapter(str(folders["b"])).digest != digest
    settings["lora_alpha"] = 9
    (elsewhere / "adapter_config.json").write_text(json.dumps(settings))
    assert read_adapter(str(elsewhere)).digest != digest
    model = load_model_of(tiny_model("llama"), folders["a"])
    base = model.identity
    assert base.adapter is None
    with model.adapter("a"):
        assert model.identity.adapter == f"a@{digest[:16]}"
        assert model.adapters["a"].identity == model.identity.adapter
        assert model.identity.revision == base.revision
    assert model.identity == base


def test_runs_of_base_and_adapter_never_mix_and_join_by_id(
    folders: dict[str, Path], tmp_path: Path
) -> None:
    model = load_model_of(tiny_model("llama"), folders["a"])
    dataset = [{"id": f"q{i}", "token_ids": ids} for i, ids in enumerate(IDS)]

    def capture(run: str) -> None:
        extractor = ActivationExtractor(model, layers=[-1])
        DatasetRunner(dataset, extractor=extractor, storage=ShardStorage(tmp_path)).run(run_id=run)

    capture("base")
    with model.adapter("a"):
        with pytest.raises(RunMismatchError, match=r"model\.adapter: stored None, asked for 'a@"):
            capture("base")
        capture("adapted")
    with pytest.raises(RunMismatchError, match=r"model\.adapter"):
        capture("adapted")
    with open_run(tmp_path / "base") as a, open_run(tmp_path / "adapted") as b:
        assert [e.id for e in a.examples] == [e.id for e in b.examples] == ["q0", "q1", "q2"]
        assert (a.spec or {})["model"]["adapter"] is None
        for i in range(3):
            first, second = (run.get("resid_post", 2, example=i) for run in (a, b))
            assert first.shape == second.shape
            assert not torch.equal(first, second)


# finding


def test_lookup_order(
    folders: dict[str, Path], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    nested = tmp_path / "local_checkpoints" / "2025-12-03_checkpoints" / "ckpt_step_1280"
    shutil.copytree(folders["a"], nested)
    digests = {k: read_adapter(str(folders[k])).digest for k in ("a", "b")}
    found = read_adapter("ckpt_step_1280")
    assert (found.name, found.digest) == ("ckpt_step_1280", digests["a"])
    shutil.copytree(folders["b"], tmp_path / "ckpt_step_1280")  # a path comes first
    assert read_adapter("ckpt_step_1280").digest == digests["b"]
    shutil.copytree(folders["b"], tmp_path / "local_checkpoints" / "other" / "twice")
    shutil.copytree(folders["b"], tmp_path / "local_checkpoints" / "twice")
    with pytest.raises(ModelLoadError, match=r"there 2 times[\s\S]*other/twice"):
        read_adapter("twice")


def test_not_found_says_where_it_looked(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    with pytest.raises(ModelLoadError) as caught:
        read_adapter("nobody/no-such-adapter")
    text = str(caught.value)
    for place in (f"{tmp_path}/nobody/no-such-adapter", "local_checkpoints", "the hub ("):
        assert place in text
    with pytest.raises(ModelLoadError) as caught:
        read_adapter("./no/such/folder")
    assert "hub (" not in str(caught.value)
    for odd in ("", "a b/c", "../up", "a/b/c/d"):
        with pytest.raises(ModelLoadError):
            read_adapter(odd)


def test_the_bundled_adapter_has_a_name(
    folders: dict[str, Path], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(adapter_files.resources, "files", lambda _: folders["base"].parent)
    (folders["base"].parent / "demo").mkdir(exist_ok=True)
    shutil.copytree(folders["a"], folders["base"].parent / "demo" / "lora", dirs_exist_ok=True)
    assert read_adapter("demo-lora").name == "demo-lora"


# what is refused


def edited(folder: Path, target: Path, **settings: Any) -> str:
    shutil.copytree(folder, target)
    path = target / "adapter_config.json"
    path.write_text(json.dumps(json.loads(path.read_text()) | settings))
    return str(target)


@pytest.mark.parametrize(
    ("settings", "says"),
    [
        ({"peft_type": "IA3"}, r"is not LoRA[\s\S]*IA3"),
        ({"peft_type": None}, "is not LoRA"),
        ({"bias": "all"}, r"more than LoRA[\s\S]*bias"),
        ({"init_lora_weights": "pissa"}, "base that its training rewrote"),
        ({"layer_replication": [[0, 2], [1, 3]]}, "layer_replication"),
        ({"trainable_token_indices": [3]}, "trainable_token_indices"),
        ({"alora_invocation_tokens": [3, 4]}, "alora_invocation_tokens"),
        ({"an_option_of_tomorrow": 3}, "an_option_of_tomorrow"),
        ({"target_modules": ["no_such_module"]}, "does not fit this base"),
        ({"target_modules": ["q_proj"]}, "have no place here"),
        ({"target_modules": ["q_proj", "v_proj", "o_proj"]}, "places have no tensor"),
        ({"r": 5}, "size mismatch"),
    ],
)
def test_adapters_that_are_more_or_other_than_lora(
    folders: dict[str, Path], tmp_path: Path, settings: dict[str, Any], says: str
) -> None:
    base = tiny_model("llama")
    before = snapshot(base)
    model = wrap_model(base)
    with pytest.raises(ModelLoadError, match=says):
        model.load_adapter(edited(folders["a"], tmp_path / "x", **settings))
    assert not model.adapters
    assert_same(before, snapshot(base))


def test_an_adapter_of_another_base(folders: dict[str, Path]) -> None:
    for other in (
        tiny_model("llama", hidden_size=64, head_dim=16),
        tiny_model("llama", num_hidden_layers=2),
        tiny_model("gpt2"),
    ):
        before = snapshot(other)
        with pytest.raises(ModelLoadError, match=r"does not fit this base[\s\S]*next: load the"):
            wrap_model(other).load_adapter(str(folders["a"]))
        assert_same(before, snapshot(other))


def test_another_bases_name_is_a_warning_and_a_note(
    folders: dict[str, Path], tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    source = edited(folders["a"], tmp_path / "x", base_model_name_or_path="meta/other-7B")
    model = load_model(str(folders["base"]), adapters={"x": source})
    assert "trained on meta/other-7B; this base is tiny-llama" in caplog.text
    assert "meta/other-7B" in model.adapters["x"].note
    caplog.clear()
    with caplog.at_level(logging.WARNING):
        for same in ("tiny-llama", "somebody/tiny-llama", "/tmp/x/tiny-llama/"):
            path = tmp_path / same.strip("/").replace("/", "_")
            source = edited(folders["a"], path, base_model_name_or_path=same)
            assert model.load_adapter(source).note == ""
    assert caplog.text == ""


@pytest.mark.parametrize("value", [float("nan"), float("inf")])
def test_weights_that_are_not_finite(
    folders: dict[str, Path], tmp_path: Path, value: float
) -> None:
    from safetensors.torch import load_file, save_file

    shutil.copytree(folders["a"], tmp_path / "x")
    file = tmp_path / "x" / "adapter_model.safetensors"
    weights = load_file(file)
    name = sorted(weights)[-1]
    weights[name][1, 2] = value
    save_file(weights, file)
    model = wrap_model(tiny_model("llama"))
    with pytest.raises(ModelLoadError, match=r"not finite[\s\S]*1 of \d+ values of .*layers\.2"):
        model.load_adapter(str(tmp_path / "x"))


def test_finite_weights_whose_output_is_not(tmp_path: Path) -> None:
    base = tiny_model("llama")
    save_adapter(tmp_path / "x", base, target_modules=["lm_head"], lora_alpha=10**40)
    with pytest.raises(ModelLoadError, match="output is not finite"):
        wrap_model(base).load_adapter(str(tmp_path / "x"))


def test_an_adapter_that_does_nothing(tmp_path: Path) -> None:
    base = tiny_model("llama")
    save_adapter(tmp_path / "zero", base, init_lora_weights=True)
    with pytest.raises(ModelLoadError, match=r"changes nothing[\s\S]*never trained"):
        wrap_model(base).load_adapter(str(tmp_path / "zero"))
    save_adapter(tmp_path / "weak", base, lora_alpha=1e-30)
    with pytest.raises(ModelLoadError, match=r"changes nothing[\s\S]*rounding of float32"):
        wrap_model(base).load_adapter(str(tmp_path / "weak"))


def test_damaged_and_missing_files(folders: dict[str, Path], tmp_path: Path) -> None:
    def copied(name: str) -> Path:
        return Path(shutil.copytree(folders["a"], tmp_path / name))

    short = copied("short")
    weights = short / "adapter_model.safetensors"
    weights.write_bytes(weights.read_bytes()[:100])
    gone = copied("gone")
    (gone / "adapter_model.safetensors").unlink()
    torn = copied("torn")
    (torn / "adapter_config.json").write_text("{")
    listed = copied("listed")
    (listed / "adapter_config.json").write_text("[]")
    for folder, says in (
        (short, "cannot be read"),
        (gone, "has no weights"),
        (torn, "cannot be read as JSON"),
        (listed, "holds no JSON object"),
        (folders["base"], r"no adapter_config\.json[\s\S]*config\.json"),
        (tmp_path, r"one of its folders is one: [\s\S]*gone"),
    ):
        with pytest.raises(ModelLoadError, match=says):
            read_adapter(str(folder))


def test_weights_in_a_pickle_are_read_without_running_it(
    folders: dict[str, Path], tmp_path: Path
) -> None:
    from safetensors.torch import load_file

    shutil.copytree(folders["a"], tmp_path / "a")
    tensors = load_file(tmp_path / "a" / "adapter_model.safetensors")
    (tmp_path / "a" / "adapter_model.safetensors").unlink()
    torch.save(tensors, tmp_path / "a" / "adapter_model.bin")
    assert read_adapter(str(tmp_path / "a")).digest == read_adapter(str(folders["a"])).digest

    class Evil:
        def __reduce__(self) -> tuple[Any, ...]:
            return Path.touch, (tmp_path / "ran",)

    torch.save({"x": Evil()}, tmp_path / "a" / "adapter_model.bin")
    with pytest.raises(ModelLoadError, match="cannot be read"):
        read_adapter(str(tmp_path / "a"))
    assert not (tmp_path / "ran").exists()


def test_a_model_that_peft_wrapped_is_refused(folders: dict[str, Path]) -> None:
    reference = as_peft(tiny_model("llama"), folders["a"])
    for wrapped in (reference, reference.get_base_model()):
        with pytest.raises(ModelLoadError, match=r"wrapped by peft[\s\S]*load_adapter"):
            wrap_model(wrapped)
    model = wrap_model(reference.unload())  # what the message says to do
    model.load_adapter(str(folders["a"]))


def test_without_peft(folders: dict[str, Path], monkeypatch: pytest.MonkeyPatch) -> None:
    import sys

    model = wrap_model(tiny_model("llama"))
    monkeypatch.setitem(sys.modules, "peft", None)
    with pytest.raises(ModelLoadError, match=r"actscope\[lora\]"):
        model.load_adapter(str(folders["a"]))


def test_an_encoder(tmp_path: Path) -> None:
    base = tiny_model("bert")
    folder = save_adapter(tmp_path / "lora", base, target_modules=["query", "dense"])
    reference = as_peft(base, folder)
    model = load_model_of(base, folder)
    with torch.no_grad():
        out = reference(input_ids=torch.tensor([IDS[0]]), output_hidden_states=True)
    with model.adapter("lora"):
        got = model.capture([IDS[0]], ["resid_post", "pooler"])
    assert torch.equal(got["pooler"], out.pooler_output)
    for layer in range(3):
        assert torch.equal(got["resid_post", layer][0], out.hidden_states[layer + 1][0])


def test_the_bundled_model_takes_an_adapter(tmp_path: Path) -> None:
    demo = load_model("demo", "cpu")
    train_adapter(tmp_path / "lora", demo.hf, steps=2)
    reference = as_peft(demo.hf, tmp_path / "lora")
    demo.load_adapter(str(tmp_path / "lora"))
    text = "The ferry leaves at noon."
    with demo.adapter("lora"):
        got = demo.capture([text], "logits")
        with torch.no_grad():
            ids = torch.from_numpy(got.tokens(0)).unsqueeze(0)
            expected = reference(input_ids=ids, use_cache=False).logits[0]
        assert torch.equal(got["logits"][0], expected)
        assert demo.generate([text], 5, temperature=0).texts[0]
