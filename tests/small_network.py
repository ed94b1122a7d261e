"""A network that is no Hugging Face model, whose blocks can be given habits for a test."""

from __future__ import annotations

from types import SimpleNamespace

import torch
from torch import nn

VOCAB, WIDTH = 40, 16


class Mixer(nn.Module):
    """Every token sees the mean of itself and the tokens before it."""

    def __init__(self) -> None:
        super().__init__()
        self.out = nn.Linear(WIDTH, WIDTH)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        count = torch.arange(1, x.shape[1] + 1, device=x.device, dtype=x.dtype)[:, None]
        return self.out(torch.cumsum(x, dim=1) / count)


class Block(nn.Module):
    """Attention and an MLP; ``habit`` says how they join the stream."""

    def __init__(self, habit: str) -> None:
        super().__init__()
        self.habit = habit
        self.ln1, self.ln2 = nn.LayerNorm(WIDTH), nn.LayerNorm(WIDTH)
        self.attn, self.mlp = Mixer(), nn.Sequential(nn.Linear(WIDTH, WIDTH), nn.GELU())
        self.extra = nn.Linear(WIDTH, WIDTH)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        if self.habit == "mlp first":
            x = x + self.mlp(self.ln1(x))
            return x + self.attn(self.ln2(x))
        if self.habit == "hidden constant":
            x = x + self.attn(self.ln1(x)) * 0.37
            return x + self.mlp(self.ln2(x)) * 0.37
        if self.habit == "bias outside":
            x = x + (self.attn(self.ln1(x)) + self.extra.bias)
            return x + self.mlp(self.ln2(x))
        if self.habit == "rescaled":
            x = x * 0.9 + self.attn(self.ln1(x))
            return x * 0.9 + self.mlp(self.ln2(x))
        if self.habit == "two MLPs":
            x = x + self.attn(self.ln1(x))
            normed = self.ln2(x)
            return x + (self.mlp(normed) + self.extra(normed))
        x = x + self.attn(self.ln1(x))
        return x + self.mlp(self.ln2(x))


class Network(nn.Module):
    """Embedding, blocks, a final norm, a head; ``tail`` says what else happens."""

    def __init__(self, habit: str = "", tail: str = "", layers: int = 3) -> None:
        super().__init__()
        torch.manual_seed(0)
        self.habit, self.tail = habit, tail
        self.embed = nn.Embedding(VOCAB, WIDTH)
        self.layers = nn.ModuleList(Block(habit) for _ in range(layers))
        self.side = nn.ModuleList(Block("") for _ in range(layers - 1))
        self.norm = nn.LayerNorm(WIDTH)
        self.before_norm = nn.Linear(WIDTH, WIDTH)
        self.head = nn.Linear(WIDTH, VOCAB, bias=False)
        with torch.no_grad():
            for parameter in self.parameters():
                parameter.add_(torch.randn_like(parameter) * 0.2)

    def forward(self, input_ids: torch.Tensor) -> SimpleNamespace:
        x = start = self.embed(input_ids)
        for layer in self.layers:
            x = layer(x)
        if self.tail == "mixes":  # more of the model lies behind the blocks
            for layer in self.side:
                x = layer(x * 1.5) + start
        if self.tail == "reads the start":
            x = x + start
        if self.tail == "dense before norm":
            logits = self.head(self.norm(self.before_norm(x)))
        elif self.tail == "soft-cap":
            logits = torch.tanh(self.head(self.norm(x)) / 2.5) * 2.5
        else:
            logits = self.head(self.norm(x))
        return SimpleNamespace(logits=logits)
