"""A tiny model in a folder, and the command as a child process or inside this one."""

import json
import os
import subprocess
import sys

import pytest
from click.testing import CliRunner

MARKS = ["<pad>", "<s>", "</s>", "<unk>", "<user>", "<assistant>"]
CHAT = (
    "{{ bos_token }}{% for m in messages %}<{{ m.role }}> {{ m.content }} {% endfor %}"
    "{% if add_generation_prompt %}<assistant>{% endif %}"
)


def save_model(folder, **special):
    """Write a tiny Llama and a word tokenizer (``w0`` to ``w89``) to a folder."""
    from tokenizers import Tokenizer, models, pre_tokenizers, processors
    from transformers import PreTrainedTokenizerFast

    from actscope.testing.tiny_models import tiny_model

    vocabulary = {word: i for i, word in enumerate([*MARKS, *(f"w{n}" for n in range(90))])}
    tokenizer = Tokenizer(models.WordLevel(vocabulary, unk_token="<unk>"))
    tokenizer.pre_tokenizer = pre_tokenizers.WhitespaceSplit()
    if "bos_token" in special:
        tokenizer.post_processor = processors.TemplateProcessing(
            single="<s> $A", special_tokens=[("<s>", 1)]
        )
    made = PreTrainedTokenizerFast(
        tokenizer_object=tokenizer,
        unk_token="<unk>",
        additional_special_tokens=["<user>", "<assistant>"],
        **special,
    )
    if "bos_token" in special:
        made.chat_template = CHAT
    made.save_pretrained(folder)
    tiny_model("llama").save_pretrained(folder)
    return folder


@pytest.fixture(scope="session")
def model_folder(tmp_path_factory):
    folder = tmp_path_factory.mktemp("models") / "tiny"
    return str(save_model(folder, bos_token="<s>", eos_token="</s>", pad_token="<pad>"))


@pytest.fixture(scope="session")
def bare_model_folder(tmp_path_factory):
    """A tokenizer without BOS, EOS, pad token and chat template."""
    return str(save_model(tmp_path_factory.mktemp("models") / "bare"))


@pytest.fixture(scope="session")
def adapter_folder(tmp_path_factory):
    """A LoRA adapter for the tiny model, which calls its base by another name."""
    from lora_adapters import save_adapter

    from actscope.testing.tiny_models import tiny_model

    folder = tmp_path_factory.mktemp("adapters") / "tiny-lora"
    path = save_adapter(folder, tiny_model("llama")) / "adapter_config.json"
    settings = json.loads(path.read_text()) | {"base_model_name_or_path": "someone/another-base"}
    path.write_text(json.dumps(settings))
    return str(folder)


@pytest.fixture
def actscope_cli():
    """Run the command inside this process: ``result = actscope_cli("capture", ...)``."""
    from actscope.cli.main import main

    def run(*arguments):
        return CliRunner().invoke(main, [str(a) for a in arguments])

    return run


@pytest.fixture
def actscope_process(tmp_path):
    """Run the command as a user does, in a process of its own."""

    def run(*arguments, **environment):
        return subprocess.run(
            [sys.executable, "-m", "actscope.cli.main", *map(str, arguments)],
            check=False,
            capture_output=True,
            text=True,
            timeout=300,
            cwd=tmp_path,
            env={**os.environ, "HF_HUB_OFFLINE": "1", **environment},
        )

    return run


@pytest.fixture
def prompts(tmp_path):
    """Six prompts of different lengths in a jsonl file."""
    path = tmp_path / "prompts.jsonl"
    lines: list[str] = []
    for i, n in enumerate([3, 9, 1, 6, 2, 7]):
        text = " ".join(f"w{(5 * i + j) % 90}" for j in range(n))
        lines.append(f'{{"id": "p{i}", "text": "{text}", "n": {i}}}')
    path.write_text("\n".join(lines) + "\n", encoding="utf-8")
    return path
