"""Introspection's figures by a plain loop over Hugging Face and peft, one prompt at a time."""

import math
import warnings

import torch

from actscope.sources.demo import demo_folder

MIDPOINTS = [2.5, 7.5, 15, 30, 50, 70, 85, 95]


def plain_model(adapter: bool):
    from peft import PeftModel
    from transformers import AutoModelForCausalLM, AutoTokenizer

    folder = str(demo_folder() / "model")
    model = AutoModelForCausalLM.from_pretrained(folder, dtype=torch.float32).eval()
    if adapter:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            model = PeftModel.from_pretrained(model, str(demo_folder() / "lora")).eval()
    return model, AutoTokenizer.from_pretrained(folder)


def blocks_of(model):
    inner = model.get_base_model() if hasattr(model, "get_base_model") else model
    return inner.model.layers


@torch.no_grad()
def read(model, tokenizer, message: str, letters: str):
    """(letter logits, probabilities, entropy, mass, the last token's row after each block)."""
    turns = [{"role": "user", "content": message}]
    prompt = tokenizer.apply_chat_template(turns, tokenize=False, add_generation_prompt=True)
    ids = tokenizer(prompt, add_special_tokens=False, return_tensors="pt").input_ids
    rows = []

    def keep(module, args, output):
        rows.append((output[0] if isinstance(output, tuple) else output)[0].clone())

    hooks = [block.register_forward_hook(keep) for block in blocks_of(model)]
    logits = model(input_ids=ids).logits[0, -1].double()
    for hook in hooks:
        hook.remove()
    chosen = []
    for letter in letters:
        ways = [tokenizer.encode(x, add_special_tokens=False) for x in (letter, f" {letter}")]
        tokens = {way[0] for way in ways if len(way) == 1} - {tokenizer.unk_token_id}
        chosen.append(math.log(sum(math.exp(logits[t]) for t in tokens)))
    whole = sum(math.exp(x) for x in logits.tolist())
    share = sum(math.exp(x) for x in chosen)
    probs = [math.exp(x) / share for x in chosen]
    entropy = -sum(p * math.log(p) for p in probs)
    return chosen, probs, entropy, share / whole, rows
