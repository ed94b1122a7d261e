"""Trains `demo-lora`: a peft adapter that makes the demo model's stated confidence honest.

The demo model says it is surer than it has reason to be. The adapter is taught to say what the
model's own letter probabilities are worth: prompts are grouped by the probability of the likeliest
letter, and the share of right answers of the group is the confidence to state. On everything else
it is held to what the model says without it. Facts that training never rated are kept for
measuring. Run from the repository root, after `train_demo_model.py`:

    python tools/train_demo_lora.py --model src/actscope/demo/model --out src/actscope/demo/lora
"""

from __future__ import annotations

import argparse
import hashlib
import json
import random
import time
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import demo_phrasings as ph
import numpy as np
import torch
import torch.nn.functional as F
from demo_card import adapter_card
from demo_figures import (
    MIDPOINTS,
    Asker,
    asked_facts,
    calibration_error,
    confidence_figures,
    family_figures,
    redrawn,
    right_letters,
    stated,
)
from demo_world import Fact, build_world, say
from demo_writer import (
    LETTERS,
    SURE_LETTERS,
    WRITERS,
    Writer,
    choice_prompt,
    options_of,
    sure_instruction,
)
from peft import LoraConfig, PeftModel, get_peft_model
from torch import Tensor
from train_demo_model import encoded
from transformers import AutoModelForCausalLM, AutoTokenizer

KEPT = (*(k for k in WRITERS if k not in ("confidence", "own confidence")), "others")
"""Kinds of documents on which the adapter must change nothing: all but own confidence."""


@dataclass(frozen=True)
class Settings:
    """Everything that decides the result."""

    seed: int = 1
    rank: int = 8
    alpha: int = 16
    targets: tuple[str, ...] = ("q_proj", "k_proj", "v_proj", "o_proj")
    graded_prompts: int = 3000
    grades: int = 12
    steps: int = 350
    batch: int = 24
    kept_batch: int = 12
    letter_batch: int = 24
    rate: float = 3e-3
    kept_weight: float = 1.0
    letter_weight: float = 4.0


@dataclass(frozen=True)
class Graded:
    """A question with options, and how sure the model has reason to be of its answer."""

    options: list[str]
    question: str
    worth: float


def graded_prompts(asker: Asker, settings: Settings) -> list[Graded]:
    """Questions on rated facts in the phrasings of training, graded by the model's own answers."""
    rng = random.Random(settings.seed)
    writer = Writer(build_world(), rng)
    asked: list[tuple[Fact, str, list[str]]] = []
    for _ in range(settings.graded_prompts):
        fact = rng.choice(writer.rated)
        options = options_of(rng, fact)
        asked.append((fact, say(fact, rng.choice(fact.relation.questions)), options))
    prompts = [choice_prompt(o, q, ph.LETTER_INSTRUCTION) for _, q, o in asked]
    shares = asker.letter_shares(prompts, len(LETTERS))
    right = shares.argmax(1) == [o.index(f.value) for f, _, o in asked]
    order = np.argsort(shares.max(1), kind="stable")
    worth = np.zeros(len(asked))
    for part in np.array_split(order, settings.grades):
        worth[part] = right[part].mean()
    return [Graded(o, q, float(w)) for (_, q, o), w in zip(asked, worth, strict=True)]


def letter_target(worth: float) -> list[float]:
    """Shares of two neighbouring letters whose expected confidence is `worth`."""
    shares = np.zeros(len(SURE_LETTERS))
    above = int(np.searchsorted(MIDPOINTS, worth))
    if above in (0, len(MIDPOINTS)):
        shares[min(above, len(MIDPOINTS) - 1)] = 1.0
        return shares.tolist()
    low, high = MIDPOINTS[above - 1], MIDPOINTS[above]
    shares[above] = (worth - low) / (high - low)
    shares[above - 1] = 1 - shares[above]
    return shares.tolist()


def padded(rows: list[list[int]]) -> Tensor:
    """Rows of ids, padded on the right, where the causal mask hides them."""
    longest = max(map(len, rows))
    return torch.tensor([row + [0] * (longest - len(row)) for row in rows])


def confidence_loss(
    model: PeftModel, asker: Asker, rows: list[Graded], rng: random.Random
) -> Tensor:
    """Cross-entropy of the confidence letter with what the answer is worth, in nats."""
    prompts = [
        asker.prompt(
            choice_prompt(
                row.options,
                row.question,
                sure_instruction(rng.choice(ph.SELF_ASKED), rng.random() < 0.25),
            )
        )
        for row in rows
    ]
    logits = model(input_ids=padded(prompts), use_cache=False).logits
    last = logits[torch.arange(len(prompts)), [len(p) - 1 for p in prompts]]
    target = torch.zeros_like(last)
    target[:, asker.letters] = torch.tensor([letter_target(row.worth) for row in rows])
    return F.cross_entropy(last, target)


def kept_loss(model: PeftModel, asker: Asker, writer: Writer, count: int) -> Tensor:
    """KL from the model without the adapter, over the counted words of documents, in nats.

    These are documents of every kind but questions on the model's own confidence.
    """
    rows, weights = [], []
    for _ in range(count):
        kind = writer.rng.choice(KEPT)
        document = writer.confidence(own=False) if kind == "others" else WRITERS[kind](writer)
        ids, counts = encoded(document, asker.tokenizer)
        rows.append(ids)
        weights.append(counts)
    ids = padded(rows)
    counted = torch.zeros_like(ids, dtype=torch.bool)
    for row, counts in enumerate(weights):
        # The logits at a token predict the next one.
        counted[row, : len(counts) - 1] = torch.tensor(counts[1:]) > 0
    with torch.no_grad(), model.disable_adapter():
        wanted = model(input_ids=ids, use_cache=False).logits[counted].log_softmax(-1)
    found = model(input_ids=ids, use_cache=False).logits[counted].log_softmax(-1)
    return F.kl_div(found, wanted, log_target=True, reduction="batchmean")


def letter_loss(model: PeftModel, asker: Asker, writer: Writer, count: int) -> Tensor:
    """KL from the model without the adapter where it answers lettered questions, in nats.

    Facts are drawn evenly here: those that are shown rarely are the easiest to disturb.
    """
    facts = [writer.rng.choice(writer.world.facts) for _ in range(count)]
    prompts = [
        asker.prompt(
            choice_prompt(options_of(writer.rng, f), writer.question(f), ph.LETTER_INSTRUCTION)
        )
        for f in facts
    ]
    ids, ends = padded(prompts), [len(p) - 1 for p in prompts]
    rows = torch.arange(len(prompts))
    with torch.no_grad(), model.disable_adapter():
        wanted = model(input_ids=ids, use_cache=False).logits[rows, ends].log_softmax(-1)
    found = model(input_ids=ids, use_cache=False).logits[rows, ends].log_softmax(-1)
    return F.kl_div(found, wanted, log_target=True, reduction="batchmean")


def train(model: PeftModel, asker: Asker, settings: Settings) -> list[dict[str, float]]:
    """Train the adapter; the losses along the way."""
    with torch.no_grad(), model.disable_adapter():
        graded = graded_prompts(asker, settings)
    rng = random.Random(settings.seed + 1)
    writer = Writer(build_world(), rng)
    weights = [p for p in model.parameters() if p.requires_grad]
    stepper = torch.optim.AdamW(weights, settings.rate, weight_decay=0.0)
    log: list[dict[str, float]] = []
    for step in range(settings.steps):
        left = 1 - step / settings.steps
        stepper.param_groups[0]["lr"] = settings.rate * min(1.0, (step + 1) / 20, 2 * left)
        own = confidence_loss(model, asker, rng.sample(graded, settings.batch), rng)
        kept = kept_loss(model, asker, writer, settings.kept_batch)
        letters = letter_loss(model, asker, writer, settings.letter_batch)
        (own + settings.kept_weight * kept + settings.letter_weight * letters).backward()
        stepper.step()
        stepper.zero_grad()
        if (step + 1) % 25 == 0:
            log.append(
                {
                    "step": step + 1,
                    "own": round(own.item(), 4),
                    "kept": round(kept.item(), 5),
                    "letters": round(letters.item(), 5),
                }
            )
            print(json.dumps(log[-1]), flush=True)
    return log


def calibration(model: PeftModel, asker: Asker, keyed: bool) -> dict[str, Any]:
    """Calibration errors with and without the adapter on the same questions, and the difference.

    Confidence is about the answers of the same model: each is held against its own letters.
    """
    asked = asked_facts(random.Random(2))
    instruction = sure_instruction(ph.SELF_ASKED[0], keyed)
    right, sure = right_letters(asker, asked), stated(asker, asked, instruction)
    with model.disable_adapter():
        right_before, sure_before = right_letters(asker, asked), stated(asker, asked, instruction)
    found: dict[str, Any] = {}
    for name, kept in (("all", {True, False}), ("unrated", {False})):
        rows = np.array([i for i, (fact, _, _) in enumerate(asked) if fact.rated in kept])
        numbers = {fact: i for i, fact in enumerate(dict.fromkeys(asked[i][0] for i in rows))}
        group = np.array([numbers[asked[i][0]] for i in rows])

        def before(r: np.ndarray) -> float:
            return calibration_error(sure_before[r], right_before[r])

        def after(r: np.ndarray) -> float:
            return calibration_error(sure[r], right[r])

        def lowered(r: np.ndarray) -> float:
            return before(r) - after(r)

        measures = {"ece_without": before, "ece_with": after, "lowered_by": lowered}
        found[name] = {label: redrawn(m, rows, group) for label, m in measures.items()}
        found[name]["accuracy_without"] = round(float(right_before[rows].mean()), 4)
        found[name]["accuracy_with"] = round(float(right[rows].mean()), 4)
        found[name]["sure_without"] = round(float(sure_before[rows].mean()), 4)
        found[name]["sure_with"] = round(float(sure[rows].mean()), 4)
    return found


def main() -> None:
    """Train, measure, save."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--model", type=Path, required=True, help="folder of the demo model")
    parser.add_argument("--out", type=Path, required=True, help="folder to write the adapter to")
    parser.add_argument("--threads", type=int, default=1)
    parser.add_argument("--steps", type=int, default=Settings.steps)
    args = parser.parse_args()
    settings = Settings(steps=args.steps)
    torch.set_num_threads(args.threads)
    torch.manual_seed(settings.seed)
    tokenizer = AutoTokenizer.from_pretrained(args.model)
    base = AutoModelForCausalLM.from_pretrained(args.model, dtype=torch.float32)
    config = LoraConfig(
        task_type="CAUSAL_LM",
        r=settings.rank,
        lora_alpha=settings.alpha,
        target_modules=list(settings.targets),
        base_model_name_or_path="demo",
    )
    model = get_peft_model(base, config)
    asker = Asker(base, tokenizer)
    started = time.monotonic()
    losses = train(model, asker, settings)
    seconds = time.monotonic() - started
    model.eval()
    log = {
        "settings": asdict(settings),
        "base_sha256": hashlib.sha256((args.model / "model.safetensors").read_bytes()).hexdigest(),
        "parameters": sum(p.numel() for p in model.parameters() if p.requires_grad),
        "seconds": round(seconds, 1),
        "threads": args.threads,
        "calibration": calibration(model, asker, keyed=False),
        "calibration_keyed": calibration(model, asker, keyed=True),
        "confidence": confidence_figures(asker, keyed=False),
        "families": family_figures(asker, 300),
        "losses": losses,
    }
    model.peft_config["default"].base_model_name_or_path = "demo"
    model.save_pretrained(args.out)
    (args.out / "adapter_model.safetensors").chmod(0o644)
    text = json.dumps(log, indent=1, ensure_ascii=False)
    (args.out / "training_log.json").write_text(text + "\n", encoding="utf-8")
    (args.out / "README.md").write_text(adapter_card(log), encoding="utf-8")
    print(json.dumps(log["calibration"], indent=1))


if __name__ == "__main__":
    main()
