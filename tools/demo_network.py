"""The demo model's tokenizer, network and starting weights, and the optimizer of its matrices.

The network is a Llama with tied embeddings. Its starting weights hold a few attention heads that
training would find only slowly: in the first layer two heads that look one and two tokens back, in
every later layer one that finds the token the residual stream speaks of and reads what stood two
tokens before it (the letter of an option), and one that reads what followed such a token.
"""

from __future__ import annotations

import math
from collections.abc import Iterable
from dataclasses import dataclass

import torch
from tokenizers import Tokenizer, decoders, models, pre_tokenizers, processors, trainers
from torch import Tensor, nn
from transformers import GenerationConfig, LlamaConfig, LlamaForCausalLM, PreTrainedTokenizerFast

BOS, EOS, PAD, END = "<bos>", "<eos>", "<pad>", "<|end|>"
ROLES = ("user", "assistant", "system")
SPECIALS = [BOS, EOS, PAD, *(f"<|{role}|>" for role in ROLES), END]
CHAT_TEMPLATE = (
    "{{- '<bos>' -}}"
    "{%- for message in messages -%}"
    "{%- if message['role'] not in ['system', 'user', 'assistant'] -%}"
    "{{- raise_exception('the roles are system, user and assistant') -}}"
    "{%- endif -%}"
    "{{- '<|' + message['role'] + '|>' + message['content'] + '<|end|>' -}}"
    "{%- endfor -%}"
    "{%- if add_generation_prompt -%}{{- '<|assistant|>' -}}{%- endif -%}"
)


@dataclass(frozen=True)
class Shape:
    """The size of the network and of its starting weights."""

    vocab_size: int = 1536
    hidden_size: int = 160
    inner_size: int = 448
    layers: int = 6
    heads: int = 5
    rope_theta: float = 100_000.0
    embedding_std: float = 0.08


def new_tokenizer(
    texts: Iterable[str], words: Iterable[str], vocab_size: int
) -> PreTrainedTokenizerFast:
    """A byte-level BPE tokenizer; each of `words` is one token, at least after a space."""
    core = Tokenizer(models.BPE())
    core.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    core.decoder = decoders.ByteLevel()
    often = [f" {word}" for word in words] * 2000
    trainer = trainers.BpeTrainer(
        vocab_size=vocab_size,
        special_tokens=SPECIALS,
        initial_alphabet=sorted(pre_tokenizers.ByteLevel.alphabet()),
        show_progress=False,
    )
    core.train_from_iterator([*texts, *often], trainer)
    core.post_processor = processors.TemplateProcessing(
        single=f"{BOS} $A", pair=f"{BOS} $A $B", special_tokens=[(BOS, SPECIALS.index(BOS))]
    )
    return PreTrainedTokenizerFast(
        tokenizer_object=core,
        bos_token=BOS,
        eos_token=EOS,
        pad_token=PAD,
        additional_special_tokens=SPECIALS[3:],
        chat_template=CHAT_TEMPLATE,
        model_max_length=1024,
        padding_side="left",
        clean_up_tokenization_spaces=False,
    )


def new_model(shape: Shape, tokenizer: PreTrainedTokenizerFast) -> LlamaForCausalLM:
    """An untrained model whose config names the tokenizer's special tokens."""
    config = LlamaConfig(
        vocab_size=len(tokenizer),
        hidden_size=shape.hidden_size,
        intermediate_size=shape.inner_size,
        num_hidden_layers=shape.layers,
        num_attention_heads=shape.heads,
        num_key_value_heads=shape.heads,
        max_position_embeddings=1024,
        rope_parameters={"rope_type": "default", "rope_theta": shape.rope_theta},
        tie_word_embeddings=True,
        bos_token_id=tokenizer.bos_token_id,
        eos_token_id=[tokenizer.eos_token_id, tokenizer.convert_tokens_to_ids(END)],
        pad_token_id=tokenizer.pad_token_id,
    )
    model = LlamaForCausalLM(config)
    model.generation_config = GenerationConfig(
        bos_token_id=config.bos_token_id,
        eos_token_id=config.eos_token_id,
        pad_token_id=config.pad_token_id,
        do_sample=False,
    )
    structure(model, shape)
    return model


@torch.no_grad()
def structure(model: LlamaForCausalLM, shape: Shape) -> None:
    """Write the starting heads into the model.

    The width is cut, by one random rotation, into what tokens are (`own`), what stood one token
    back (`back1`), what stood two tokens back (`back2`), and the rest. One coordinate, the same for
    every token, lets a head attend by distance alone.
    """
    width, size = shape.hidden_size, shape.hidden_size // shape.heads
    basis = torch.linalg.qr(torch.randn(width, width))[0]
    basis[0] = 0  # coordinate 0 is the constant one
    own, back1, back2 = (
        basis[:, :size].T,
        basis[:, size : 2 * size].T,
        basis[:, 2 * size :][:, :size].T,
    )
    table = model.model.embed_tokens.weight
    table.normal_(0, shape.embedding_std)
    for taken in (back1, back2):
        table -= table @ taken.T @ taken
    table[: len(SPECIALS)] *= 0.1
    constant = 5 * shape.embedding_std
    table[:, 0] = constant
    level = constant / table.pow(2).mean(1).sqrt().median().item()
    for layer in model.model.layers:
        for matrix in (layer.self_attn.o_proj, layer.mlp.down_proj):
            matrix.weight.normal_(0, 0.02 / math.sqrt(2 * shape.layers))
    _look_back(model.model.layers[0], 0, 1, shape, level)
    _look_back(model.model.layers[0], 1, 2, shape, level)
    _read(model.model.layers[0], 0, own, back1, size, 0.08)
    _read(model.model.layers[0], 1, own, back2, size, 0.08)
    for layer in list(model.model.layers)[1:]:
        _match(layer, 0, own, own, shape)
        _read(layer, 0, back2, own, size, 0.15)
        _match(layer, 1, own, back1, shape)
        _read(layer, 1, own, own, size, 0.05)


def _look_back(layer: nn.Module, head: int, distance: int, shape: Shape, level: float) -> None:
    """Make a head attend to the token `distance` back, through the constant coordinate."""
    size = shape.hidden_size // shape.heads
    half, pairs, peak = size // 2, 6, 30.0
    gain = math.sqrt(peak * math.sqrt(size) / pairs) / level
    for pair in range(pairs):
        angle = distance * shape.rope_theta ** (-2 * pair / size)
        row = head * size + pair
        layer.self_attn.q_proj.weight[row, 0] = gain * math.cos(angle)
        layer.self_attn.q_proj.weight[row + half, 0] = -gain * math.sin(angle)
        layer.self_attn.k_proj.weight[row, 0] = gain


def _match(layer: nn.Module, head: int, asks: Tensor, has: Tensor, shape: Shape) -> None:
    """Make a head attend where the subspace `has` holds what `asks` holds here.

    Only slowly turning coordinates of the head are used, so that distance hardly matters.
    """
    size = shape.hidden_size // shape.heads
    half = size // 2
    slow = [i for i in range(half) if shape.rope_theta ** (-2 * i / size) < 0.03]
    rows = [*slow, *(i + half for i in slow)]
    for place, matrix in ((asks, layer.self_attn.q_proj), (has, layer.self_attn.k_proj)):
        block = matrix.weight[head * size : (head + 1) * size]
        block *= 0.1
        block[rows] = 1.7 * place[: len(rows)]


def _read(
    layer: nn.Module, head: int, source: Tensor, target: Tensor, size: int, gain: float
) -> None:
    """Make a head copy the subspace `source` of where it attends into `target` of where it is."""
    rows = slice(head * size, (head + 1) * size)
    layer.self_attn.v_proj.weight[rows] = source
    layer.self_attn.o_proj.weight[:, rows] = gain * target.T


class Muon(torch.optim.Optimizer):
    """Momentum whose matrix updates are made nearly orthogonal, in float32.

    Source: Jordan et al., "Muon: an optimizer for hidden layers in neural networks" (2024).
    `torch.optim.Muon` does its iteration in bfloat16, which a CPU may only emulate. Matrices of one
    shape are updated together.
    """

    def __init__(self, params: list[nn.Parameter], lr: float, momentum: float = 0.95) -> None:
        super().__init__(params, {"lr": lr, "momentum": momentum})

    @torch.no_grad()
    def step(self, closure: None = None) -> None:  # type: ignore[override]
        """One update of every matrix `[out, in]`."""
        for group in self.param_groups:
            shapes: dict[torch.Size, list[nn.Parameter]] = {}
            for matrix in group["params"]:
                shapes.setdefault(matrix.shape, []).append(matrix)
            for (rows, columns), matrices in shapes.items():
                gradients = torch.stack([matrix.grad for matrix in matrices])
                state = self.state.setdefault(matrices[0], {"mean": torch.zeros_like(gradients)})
                mean = state["mean"].lerp_(gradients, 1 - group["momentum"])
                updates = orthogonal(gradients.lerp(mean, group["momentum"]))
                scale = max(1.0, rows / columns) ** 0.5
                for matrix, update in zip(matrices, updates, strict=True):
                    matrix.mul_(1 - 0.01 * group["lr"]).add_(update, alpha=-group["lr"] * scale)


def orthogonal(stack: Tensor) -> Tensor:
    """Nearly orthogonal matrices with the singular directions of those in `[n, out, in]`."""
    wide = stack.shape[1] <= stack.shape[2]
    x = stack if wide else stack.mT
    x = x / (x.norm(dim=(1, 2), keepdim=True) + 1e-7)
    for _ in range(5):
        gram = x @ x.mT
        x = 3.4445 * x + (-4.7750 * gram + 2.0315 * gram @ gram) @ x
    return x if wide else x.mT
