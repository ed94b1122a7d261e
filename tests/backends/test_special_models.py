"""Quantised, offloaded and compiled models: their own numbers, or a refusal that says why."""

from __future__ import annotations

import copy
import sys
import warnings
from pathlib import Path
from typing import Any

import pytest
import torch
from accelerate import cpu_offload, dispatch_model
from lora_adapters import as_peft, save_adapter
from transformers import AutoModelForCausalLM

from actscope import DatasetRunner, ShardStorage, Site, load_model, wrap_model
from actscope.backends.hf import placement
from actscope.capture import ActivationExtractor
from actscope.core.errors import (
    BadInputError,
    ModelLoadError,
    RunMismatchError,
    UnknownNameError,
)
from actscope.testing.tiny_models import tiny_model

IDS = [[5, 6, 7, 8, 9, 10], [11, 12, 13]]
SPLIT = {
    "model.embed_tokens": "cpu", "model.rotary_emb": "cpu", "model.layers.0": "cpu",
    "model.layers.1": "disk", "model.layers.2": "disk", "model.norm": "cpu", "lm_head": "disk",
}  # fmt: skip


def offloaded_to_memory(base: Any, folder: Path) -> Any:
    return cpu_offload(base, execution_device=torch.device("cpu"))


def offloaded_by_block(base: Any, folder: Path) -> Any:
    return cpu_offload(
        base,
        execution_device=torch.device("cpu"),
        preload_module_classes=["LlamaDecoderLayer"],
    )


def offloaded_to_disk(base: Any, folder: Path) -> Any:
    return dispatch_model(base, SPLIT, offload_dir=str(folder), force_hooks=True, main_device="cpu")


def loaded_with_a_device_map(base: Any, folder: Path) -> Any:
    base.save_pretrained(folder / "m")
    return AutoModelForCausalLM.from_pretrained(
        folder / "m", device_map=SPLIT, offload_folder=str(folder / "offload"), dtype="float32"
    )


OFFLOADS = [
    offloaded_to_memory,
    offloaded_by_block,
    offloaded_to_disk,
    loaded_with_a_device_map,
]


def on_meta(hf: Any) -> list[str]:
    return [name for name, t in hf.named_parameters() if t.device.type == "meta"]


@pytest.mark.parametrize("offload", OFFLOADS)
def test_an_offloaded_model_gives_the_numbers_of_the_whole_one(
    tmp_path: Path, offload: Any
) -> None:
    base = tiny_model("llama")
    whole = wrap_model(copy.deepcopy(base), name="tiny")
    hf = offload(base, tmp_path)
    waiting = on_meta(hf)
    assert waiting  # some weights really are elsewhere
    model = wrap_model(hf, name="tiny")
    assert model.device == torch.device("cpu")
    assert {s: x.verified for s, x in model.sites().items()} == {
        s: x.verified for s, x in whole.sites().items()
    }
    sites = ["embed", "resid_pre", "resid_mid", "attn_out", "mlp_out", "resid_post", "logits"]
    sites += ["q", "k", "v", "z", "pattern", "mlp_pre", "mlp_post"]
    expected, got = whole.capture(IDS, sites), model.capture(IDS, sites)
    for site, array in expected.arrays.items():
        assert (array == got.arrays[site]).all(), site
    resid = got["resid_post", -1][0]
    assert torch.equal(model.unembed(resid), whole.unembed(resid))
    a, b = (m.generate(IDS, 4, temperature=0).rows[0].token_ids for m in (whole, model))
    assert a.tolist() == b.tolist()
    assert model.identity.revision == whole.identity.revision
    assert on_meta(hf) == waiting


@pytest.mark.parametrize("offload", OFFLOADS)
def test_a_short_capture_leaves_no_weight_on_the_device(tmp_path: Path, offload: Any) -> None:
    hf = offload(tiny_model("llama"), tmp_path)
    waiting = on_meta(hf)
    model = wrap_model(hf)
    model.capture(IDS, layers=[0])
    model.capture(IDS, "model.layers.1.mlp.down_proj")
    assert on_meta(hf) == waiting


def test_offloaded_models_are_told_apart_by_their_weights(tmp_path: Path) -> None:
    revisions = [
        wrap_model(offloaded_to_memory(tiny_model("llama", seed=s), tmp_path)).identity.revision
        for s in (0, 1)
    ]
    assert revisions[0] != revisions[1]


def test_a_model_that_is_fetched_in_one_piece_is_refused() -> None:
    hf = cpu_offload(
        tiny_model("llama"),
        execution_device=torch.device("cpu"),
        preload_module_classes=["LlamaModel"],
    )
    with pytest.raises(ModelLoadError, match=r"all at once[\s\S]*preload_module_classes"):
        wrap_model(hf)


def test_no_adapter_on_an_offloaded_model(tmp_path: Path) -> None:
    save_adapter(tmp_path / "lora", tiny_model("llama"))
    model = wrap_model(offloaded_to_memory(tiny_model("llama"), tmp_path))
    with pytest.raises(ModelLoadError, match=r"offloaded[\s\S]*on one device"):
        model.load_adapter(str(tmp_path / "lora"))


def test_several_accelerators_are_refused() -> None:
    hf = tiny_model("llama")

    class Hook:
        offload = False

        def __init__(self, device: Any) -> None:
            self.execution_device = device

    hf.model.layers[0]._hf_hook = Hook(0)
    placement.check_model(hf)
    hf.model.layers[1]._hf_hook = Hook(1)
    hf.model.layers[2]._hf_hook = Hook("cpu")
    with pytest.raises(ModelLoadError, match=r"cuda:0, cuda:1[\s\S]*one accelerator"):
        placement.check_model(hf)


# compiled


def compiled(hf: Any) -> Any:
    return torch.compile(hf, backend="eager")


def compiled_in_place(hf: Any) -> Any:
    hf.compile(backend="eager")
    return hf


def compiled_block(hf: Any) -> Any:
    hf.model.layers[1].compile(backend="eager")
    return hf


def compiled_part(hf: Any) -> Any:
    hf.model.layers[1].mlp = torch.compile(hf.model.layers[1].mlp, backend="eager")
    return hf


def compiled_forward(hf: Any) -> Any:
    hf.forward = torch.compile(hf.forward, backend="eager")
    return hf


@pytest.mark.parametrize(
    "make", [compiled, compiled_in_place, compiled_block, compiled_part, compiled_forward]
)
def test_compiled_models_are_refused(make: Any) -> None:
    with pytest.raises(ModelLoadError, match=r"compiled[\s\S]*hooks[\s\S]*next:"):
        wrap_model(make(tiny_model("llama")))


def test_the_next_step_for_a_compiled_model_works() -> None:
    hf = tiny_model("llama")
    model = wrap_model(torch.compile(hf, backend="eager")._orig_mod)
    with torch.no_grad():
        expected = hf(input_ids=torch.tensor([IDS[0]]), output_hidden_states=True, use_cache=False)
    got = model.capture([IDS[0]])["resid_post", 1][0]
    assert torch.equal(got, expected.hidden_states[2][0])


# quantised


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("models") / "tiny-llama"
    tiny_model("llama").save_pretrained(path)
    return path


def own_outputs(hf: Any, ids: list[int]) -> Any:
    with torch.no_grad():
        return hf(input_ids=torch.tensor([ids]), output_hidden_states=True, use_cache=False)


@pytest.mark.parametrize("dtype", ["float32", "bfloat16"])
def test_int8_weights_give_the_quantised_models_own_numbers(folder: Path, dtype: str) -> None:
    model = load_model(str(folder), "cpu", dtype=dtype, quantization="int8")
    weight = model.hf.model.layers[0].mlp.up_proj.weight
    assert "torchao" in type(weight).__module__ and weight.qdata.dtype == torch.int8
    plain = load_model(str(folder), "cpu", dtype=dtype)
    assert {s: x.verified for s, x in model.sites().items()} == {
        s: x.verified for s, x in plain.sites().items()
    }
    assert model.sites()[Site("attn_out", 1)].verified
    for ids in IDS:
        out = own_outputs(model.hf, ids)
        got = model.capture([ids], ["resid_post", "logits"])
        for layer in range(2):
            assert torch.equal(got["resid_post", layer][0], out.hidden_states[layer + 1][0])
        assert torch.equal(got["logits"][0], out.logits[0])
        assert not torch.equal(got["logits"][0], own_outputs(plain.hf, ids).logits[0])


def test_a_quantised_run_never_mixes_with_a_plain_one(folder: Path, tmp_path: Path) -> None:
    plain = load_model(str(folder), "cpu")
    quantised = load_model(str(folder), "cpu", quantization="int8")
    assert plain.identity.config != quantised.identity.config
    assert plain.identity.revision != quantised.identity.revision
    for index, model in enumerate([plain, quantised]):
        extractor = ActivationExtractor(model, layers=[0])
        runner = DatasetRunner(IDS, extractor=extractor, storage=ShardStorage(tmp_path))
        if index:
            with pytest.raises(RunMismatchError):
                runner.run(run_id="x")
        else:
            runner.run(run_id="x")


def test_how_activations_are_quantised_is_part_of_the_identity() -> None:
    from torchao.quantization import (
        Int8DynamicActivationInt8WeightConfig,
        Int8WeightOnlyConfig,
        quantize_,
    )

    identities = []
    for config in (Int8WeightOnlyConfig(), Int8DynamicActivationInt8WeightConfig()):
        hf = tiny_model("llama")
        quantize_(hf, config)
        model = wrap_model(hf)
        out = own_outputs(hf, IDS[0])
        assert torch.equal(model.capture([IDS[0]])["resid_post", 1][0], out.hidden_states[2][0])
        identities.append(model.identity.revision)
    assert identities[0] != identities[1]


def test_an_adapter_on_quantised_weights(folder: Path, tmp_path: Path) -> None:
    from torchao.quantization import Int8WeightOnlyConfig, quantize_

    base = tiny_model("llama")
    save_adapter(tmp_path / "lora", base)
    quantize_(base, Int8WeightOnlyConfig())
    reference = as_peft(base, tmp_path / "lora")
    model = load_model(str(folder), "cpu", quantization="int8", adapter=str(tmp_path / "lora"))
    got = model.capture([IDS[0]])["resid_post", 1][0]
    assert torch.equal(got, own_outputs(reference, IDS[0]).hidden_states[2][0])
    with model.adapter(None):
        plain = model.capture([IDS[0]])["resid_post", 1][0]
    assert not torch.equal(got, plain)


def test_scales_over_the_whole_batch_are_refused() -> None:
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        from torch.ao.quantization import quantize_dynamic

        hf = quantize_dynamic(tiny_model("llama"), {torch.nn.Linear}, dtype=torch.qint8)
    with pytest.raises(ModelLoadError, match=r"whole batch[\s\S]*quantization='int8'"):
        wrap_model(hf)


@pytest.mark.skipif(torch.cuda.is_available(), reason="it runs there")
@pytest.mark.parametrize("name", ["bnb-8bit", "bnb-4bit"])
def test_bitsandbytes_needs_cuda(folder: Path, name: str) -> None:
    with pytest.raises(BadInputError, match=r"CUDA devices only[\s\S]*device cpu[\s\S]*'int8'"):
        load_model(str(folder), "cpu", quantization=name)


def test_quantisations_that_are_not(
    folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    with pytest.raises(UnknownNameError, match=r"bnb-4bit, bnb-8bit, int8"):
        load_model(str(folder), "cpu", quantization="int5")
    from actscope.backends.hf import quantization

    monkeypatch.setattr(quantization, "find_spec", lambda _: None)
    with pytest.raises(ModelLoadError, match=r"torchao[\s\S]*actscope\[quantization\]"):
        load_model(str(folder), "cpu", quantization="int8")
    config = type("Config", (), {"quantization_config": {"quant_method": "gptq"}})()
    with pytest.raises(BadInputError, match=r"quantised already[\s\S]*gptq"):
        quantization.quantization_options("int8", config, torch.device("cpu"), torch.float32)


def test_options_of_bitsandbytes(monkeypatch: pytest.MonkeyPatch) -> None:
    """What is handed to transformers; nothing is loaded here."""
    from actscope.backends.hf import quantization

    cuda = torch.device("cuda")
    with pytest.raises(ModelLoadError, match="pip install bitsandbytes"):
        monkeypatch.setitem(sys.modules, "bitsandbytes", None)
        monkeypatch.setattr(quantization, "find_spec", lambda _: None)
        quantization.quantization_options("bnb-4bit", object(), cuda, torch.bfloat16)
    monkeypatch.setattr(quantization, "find_spec", lambda _: object())
    four = quantization.quantization_options("bnb-4bit", object(), cuda, torch.bfloat16)
    assert four["device_map"] == {"": cuda}
    config = four["quantization_config"]
    assert config.load_in_4bit and config.bnb_4bit_quant_type == "nf4"
    assert config.bnb_4bit_compute_dtype == torch.bfloat16
    eight = quantization.quantization_options("bnb-8bit", object(), cuda, torch.bfloat16)
    assert eight["quantization_config"].load_in_8bit
