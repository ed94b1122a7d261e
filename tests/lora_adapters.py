"""LoRA adapters made with peft for tests: random ones, and one trained for a few steps."""

from __future__ import annotations

import copy
import warnings
from pathlib import Path
from typing import Any

import torch
from peft import LoraConfig, PeftModel, get_peft_model


def save_adapter(folder: Path, base: Any, *, seed: int = 0, **config: Any) -> Path:
    """Write an adapter with random weights for a copy of ``base``; the base is not touched."""
    torch.manual_seed(seed)
    settings: dict[str, Any] = {"r": 4, "lora_alpha": 8, "target_modules": ["q_proj", "v_proj"]}
    settings |= {"init_lora_weights": False, **config}
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        model = get_peft_model(copy.deepcopy(base), LoraConfig(**settings))
        model.save_pretrained(folder)
    return folder


def train_adapter(folder: Path, base: Any, *, steps: int = 5, **config: Any) -> Path:
    """Write an adapter that was trained to repeat one sequence, from peft's usual start."""
    torch.manual_seed(0)
    settings: dict[str, Any] = {"r": 4, "target_modules": "all-linear", **config}
    ids = torch.tensor([[5, 6, 7, 8, 9, 10]])
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        model = get_peft_model(copy.deepcopy(base), LoraConfig(**settings)).train()
        optimiser = torch.optim.AdamW(model.parameters(), lr=1e-2)
        for _ in range(steps):
            optimiser.zero_grad()
            model(input_ids=ids, labels=ids).loss.backward()
            optimiser.step()
        model.save_pretrained(folder)
    return folder


def as_peft(base: Any, folder: Path) -> Any:
    """The reference: peft's own wrapping of a copy of ``base``."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        return PeftModel.from_pretrained(copy.deepcopy(base), str(folder)).eval()
