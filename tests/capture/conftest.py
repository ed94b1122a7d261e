"""A tiny Llama from configuration and a word tokenizer with BOS, built on the spot."""

import pytest

CHAT = (
    "{{ bos_token }}{% for m in messages %}<{{ m.role }}> {{ m.content }} {% endfor %}"
    "{% if add_generation_prompt %}<assistant>{% endif %}"
)


def word_tokenizer(bos=True, pad=True, chat=True):
    """Words ``w0`` to ``w89`` and a few marks; anything else is ``<unk>``."""
    from tokenizers import Tokenizer, models, pre_tokenizers, processors
    from transformers import PreTrainedTokenizerFast

    marks = ["<pad>", "<s>", "</s>", "<unk>", "<user>", "<assistant>"]
    vocabulary = {word: i for i, word in enumerate([*marks, *(f"w{n}" for n in range(90))])}
    tokenizer = Tokenizer(models.WordLevel(vocabulary, unk_token="<unk>"))
    tokenizer.pre_tokenizer = pre_tokenizers.WhitespaceSplit()
    if bos:
        tokenizer.post_processor = processors.TemplateProcessing(
            single="<s> $A", special_tokens=[("<s>", 1)]
        )
    made = PreTrainedTokenizerFast(
        tokenizer_object=tokenizer,
        unk_token="<unk>",
        eos_token="</s>",
        additional_special_tokens=["<user>", "<assistant>"],
        **({"bos_token": "<s>"} if bos else {}),
        **({"pad_token": "<pad>"} if pad else {}),
    )
    if chat:
        made.chat_template = CHAT
    return made


def words(*lengths, start=0):
    """Texts of so many words, all different."""
    return [
        " ".join(f"w{(start + 7 * i + 3 * j) % 90}" for j in range(n))
        for i, n in enumerate(lengths)
    ]


@pytest.fixture(scope="session")
def tokenizer():
    return word_tokenizer()


@pytest.fixture(scope="session")
def model(tokenizer):
    from actscope import wrap_model
    from actscope.testing.tiny_models import tiny_model

    return wrap_model(tiny_model("llama"), tokenizer)


@pytest.fixture(scope="session")
def model_without_bos():
    from actscope import wrap_model
    from actscope.testing.tiny_models import tiny_model

    return wrap_model(tiny_model("llama"), word_tokenizer(bos=False, pad=False, chat=False))


@pytest.fixture(scope="session")
def text_of():
    return words
