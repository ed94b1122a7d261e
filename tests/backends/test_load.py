"""Loading: names, folders, dtypes, devices; what is refused and how it says so."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch

from actscope import load_model, wrap_model
from actscope.core.errors import BadInputError, ModelLoadError, UnknownNameError
from actscope.testing.tiny_models import tiny_model


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("models") / "tiny-llama"
    tiny_model("llama").save_pretrained(path)
    return path


def test_a_folder_loads_by_its_name(folder: Path) -> None:
    model = load_model(str(folder), device="cpu")
    assert model.identity.name == "tiny-llama"
    assert (model.n_layers, model.d_model, model.dtype) == (3, 32, "float32")
    assert model.tokenizer is None
    assert model.context_length == 64


def test_the_identity_is_of_the_values_not_of_the_place(folder: Path, tmp_path: Path) -> None:
    again = tmp_path / "tiny-llama"
    tiny_model("llama").save_pretrained(again)
    other = tmp_path / "other"
    tiny_model("llama", seed=1).save_pretrained(other)
    revisions = [load_model(str(p)).identity.revision for p in (folder, again, other)]
    assert revisions[0] == revisions[1] != revisions[2]


def test_dtype_is_the_one_asked_for(folder: Path) -> None:
    assert load_model(str(folder), dtype="bfloat16").dtype == "bfloat16"
    with pytest.raises(UnknownNameError, match="float32"):
        load_model(str(folder), dtype="float31")


@pytest.mark.parametrize(("native", "expected"), [(True, "bfloat16"), (False, "float32")])
def test_auto_dtype_follows_the_processor(
    native: bool, expected: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    tiny_model("llama", torch.bfloat16).save_pretrained(tmp_path / "m")
    monkeypatch.setattr(torch.cpu, "get_capabilities", lambda: {"avx512_bf16": native})
    model = load_model(str(tmp_path / "m"), device="cpu")
    assert model.dtype == expected
    assert ("emulates" in model.dtype_reason) is not native


def test_a_folder_without_config(tmp_path: Path) -> None:
    (tmp_path / "weights.bin").write_bytes(b"x")
    with pytest.raises(ModelLoadError, match=r"no config\.json[\s\S]*weights\.bin"):
        load_model(str(tmp_path))


def test_a_missing_folder_and_an_unreachable_name() -> None:
    with pytest.raises(ModelLoadError, match="check the path"):
        load_model("./no/such/folder")
    with pytest.raises(ModelLoadError, match="'demo' is the bundled model"):
        load_model("nobody/no-such-model-anywhere")


def test_damaged_weights(folder: Path, tmp_path: Path) -> None:
    broken = tmp_path / "broken"
    broken.mkdir()
    for file in folder.iterdir():
        (broken / file.name).write_bytes(file.read_bytes())
    weights = broken / "model.safetensors"
    weights.write_bytes(weights.read_bytes()[:200])
    with pytest.raises(ModelLoadError, match="weights"):
        load_model(str(broken))


def test_an_encoder_decoder_is_refused(tmp_path: Path) -> None:
    from transformers import T5Config, T5ForConditionalGeneration

    config = T5Config(vocab_size=32, d_model=16, d_kv=4, d_ff=16, num_layers=1, num_heads=2)
    T5ForConditionalGeneration(config).save_pretrained(tmp_path / "t5")
    with pytest.raises(ModelLoadError, match="encoder-decoder"):
        load_model(str(tmp_path / "t5"))


def test_tensors_on_several_devices_are_named() -> None:
    hf = tiny_model("llama")
    hf.model.layers[1].mlp.to("meta")
    with pytest.raises(ModelLoadError, match=r"layers\.1\.mlp.* is on meta[\s\S]*model\.to"):
        wrap_model(hf)


def test_a_device_that_is_not_there(folder: Path) -> None:
    with pytest.raises(BadInputError, match="unknown device"):
        load_model(str(folder), device="gpu7")
    if not torch.cuda.is_available():
        with pytest.raises(BadInputError, match="no CUDA device"):
            load_model(str(folder), device="cuda")


def test_wrapping_something_else() -> None:
    with pytest.raises(ModelLoadError, match="torch module"):
        wrap_model("llama")
    with pytest.raises(ModelLoadError, match="no token embedding"):
        wrap_model(torch.nn.Linear(3, 3))


def test_a_model_in_training_mode_stays_in_it() -> None:
    hf = tiny_model("gpt2").train()
    hf.transformer.h[0].attn.resid_dropout.p = 0.5
    model = wrap_model(hf)
    a = model.capture([[3, 4, 5]])["resid_post", 2][0]
    b = model.capture([[3, 4, 5]])["resid_post", 2][0]
    assert torch.equal(a, b)  # dropout was off
    assert hf.training and hf.transformer.h[0].attn.resid_dropout.training


def without(folder: Path, target: Path, part: str) -> Path:
    """A copy of a checkpoint whose tensors of that name are gone."""
    from safetensors.torch import load_file, save_file

    target.mkdir()
    for file in folder.iterdir():
        (target / file.name).write_bytes(file.read_bytes())
    weights = load_file(target / "model.safetensors")
    kept = {name: tensor for name, tensor in weights.items() if part not in name}
    assert len(kept) < len(weights)
    save_file(kept, target / "model.safetensors", {"format": "pt"})
    return target


def test_missing_weights_are_refused_and_not_drawn_at_random(folder: Path, tmp_path: Path) -> None:
    broken = without(folder, tmp_path / "broken", "layers.1.mlp.up_proj")
    with pytest.raises(ModelLoadError, match=r"lacks weights[\s\S]*layers\.1\.mlp\.up_proj"):
        load_model(str(broken))


def test_a_checkpoint_without_pooler_has_none(tmp_path: Path) -> None:
    from transformers import AutoConfig, BertForMaskedLM

    from actscope import Site
    from actscope.testing.tiny_models import ENCODERS

    config = AutoConfig.for_model("bert", **ENCODERS["bert"])
    BertForMaskedLM(config).save_pretrained(tmp_path / "mlm")
    model = load_model(str(tmp_path / "mlm"))
    assert not model.sites()[Site("pooler")].verified
    again = load_model(str(tmp_path / "mlm"))
    assert model.identity == again.identity


@pytest.mark.parametrize(
    ("field", "value"), [("rms_norm_eps", 0.5), ("rope_theta", 77.0), ("hidden_act", "gelu")]
)
def test_the_configuration_is_part_of_the_identity(field: str, value: object) -> None:
    plain, other = tiny_model("llama"), tiny_model("llama")
    setattr(other.config, field, value)
    a, b = (wrap_model(hf, name="same").identity for hf in (plain, other))
    assert a.revision == b.revision
    assert a.config != b.config


def test_stop_tokens_and_buffers_are_part_of_the_identity() -> None:
    plain, other = tiny_model("llama"), tiny_model("llama")
    other.generation_config.eos_token_id = [2, 7]
    assert wrap_model(plain).identity.config != wrap_model(other).identity.config
    other.register_buffer("extra", torch.ones(3))
    assert wrap_model(plain).identity.revision != wrap_model(other).identity.revision
