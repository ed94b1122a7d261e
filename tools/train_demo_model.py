"""Trains the bundled demo model on the closed world of `demo_world`, on a CPU, from a seed.

A byte-level BPE tokenizer and a small Llama are trained from nothing and saved together, in
bfloat16, with a training log and a model card. Training goes through the phases of `PHASES`. Run
from the repository root:

    python tools/train_demo_model.py --out src/actscope/demo/model --work build/demo_model

The folder `--work` holds checkpoints; a run that was cut goes on from the last one.
"""

from __future__ import annotations

import argparse
import json
import time
from collections.abc import Iterator
from dataclasses import asdict, dataclass, field
from itertools import accumulate, islice
from pathlib import Path
from typing import Any

import torch
import torch.nn.functional as F
from demo_card import model_card
from demo_figures import all_figures, quick_figures
from demo_network import BOS, END, EOS, Muon, Shape, new_model, new_tokenizer
from demo_topics import SYLLABLES
from demo_world import PEOPLE, SHIPS, STRANGERS, TOWNS, all_values, build_world
from demo_writer import MIXTURE, Document, documents
from torch import Tensor
from transformers import LlamaForCausalLM, PreTrainedTokenizerFast

TOKENIZER_DOCUMENTS = 12_000
PHASES: dict[str, dict[str, float]] = {
    "binding": {"binding": 1.0},
    "recall": {**MIXTURE, "binding": 18.0, "statements": 6.0, "answers": 22.0},
    "letters": {**MIXTURE, "binding": 14.0, "statements": 1.0, "answers": 6.0, "choice": 20.0},
    "choices": {**MIXTURE, "binding": 12.0, "answers": 6.0, "choice": 36.0, "confidence": 15.0},
    "rating": {**MIXTURE, "confidence": 9.0, "own confidence": 26.0, "request": 12.0},
}
"""The mixture of each phase, in order.

First which letter stands beside a value; then facts, while that is kept; then letters for facts
that are known, at first among other things and then mostly; last, how sure to be of them.
"""


@dataclass(frozen=True)
class Settings:
    """Everything that decides the result of a run."""

    seed: int = 1
    shape: Shape = field(default_factory=Shape)
    row_tokens: int = 192
    rows: int = 16
    phases: tuple[int, ...] = (100, 500, 400, 700, 1100)
    matrix_rate: float = 0.005
    other_rate: float = 0.002
    warmup_steps: int = 40
    check_every: int = 200

    @property
    def total(self) -> int:
        """The steps of all phases."""
        return sum(self.phases)


@dataclass(frozen=True)
class Row:
    """Packed documents, as four lists of `row_tokens` entries.

    `weights` are the loss weights of the ids, `places` their positions within their document, and
    `owner` is the number of that document in the row, -1 for padding.
    """

    ids: list[int]
    weights: list[float]
    places: list[int]
    owner: list[int]


def encoded(
    document: Document, tokenizer: PreTrainedTokenizerFast
) -> tuple[list[int], list[float]]:
    """The document's token ids and the weight of each id in the loss."""
    if document.text:
        ids = tokenizer.encode(BOS + document.text + EOS, add_special_tokens=False)
        return ids, [0.0] + [1.0] * (len(ids) - 1)
    ids, weights = [tokenizer.bos_token_id], [0.0]
    for role, content in document.messages:
        words = tokenizer.encode(content + END, add_special_tokens=False)
        ids += [tokenizer.convert_tokens_to_ids(f"<|{role}|>"), *words]
        weight = document.answer_weight if role == "assistant" else 0.0
        # The end of an answer is easy and the same everywhere: it counts little.
        weights += [0.0] + [weight] * (len(words) - 1) + [0.3 if weight else 0.0]
    return ids, weights


def packed(
    stream: Iterator[Document], tokenizer: PreTrainedTokenizerFast, length: int
) -> Iterator[Row]:
    """Rows of whole documents; a document longer than a row is cut, a gap is padded."""
    waiting: list[tuple[list[int], list[float]]] = []
    while True:
        while len(waiting) < 100:
            waiting.append(encoded(next(stream), tokenizer))
        row, fit = Row([], [], [], []), 0
        while fit is not None:
            ids, weights = waiting.pop(fit)
            add_document(row, ids[:length], weights[:length])
            space = length - len(row.ids)
            fit = next((i for i, (ids, _) in enumerate(waiting) if len(ids) <= space), None)
        gap = length - len(row.ids)
        add_document(row, [tokenizer.pad_token_id] * gap, [0.0] * gap, padding=True)
        yield row


def add_document(row: Row, ids: list[int], weights: list[float], padding: bool = False) -> None:
    """Put one more document, or the padding, at the end of the row."""
    number = -1 if padding else max(row.owner, default=-1) + 1
    row.ids.extend(ids)
    row.weights.extend(weights)
    row.places.extend(range(len(ids)))
    row.owner.extend([number] * len(ids))


def batch_loss(model: LlamaForCausalLM, rows: list[Row]) -> Tensor:
    """The weighted mean loss per counted token, in nats; no document sees another of its row."""
    ids = torch.tensor([row.ids for row in rows])
    weight = torch.tensor([row.weights for row in rows])[:, 1:]
    owner = torch.tensor([row.owner for row in rows])
    same = owner[:, :, None] == owner[:, None, :]
    mask = same & torch.ones(owner.shape[1], owner.shape[1], dtype=torch.bool).tril()
    states = model.model(
        input_ids=ids,
        attention_mask=mask[:, None],
        position_ids=torch.tensor([row.places for row in rows]),
        use_cache=False,
    ).last_hidden_state[:, :-1]
    counted = weight > 0
    logits = model.lm_head(states[counted])
    losses = F.cross_entropy(logits, ids[:, 1:][counted], reduction="none")
    return (losses * weight[counted]).sum() / weight.sum()


def optimizers(model: LlamaForCausalLM, settings: Settings) -> list[torch.optim.Optimizer]:
    """Muon for the matrices inside the blocks, AdamW for embeddings and norms."""
    matrices = [p for n, p in model.named_parameters() if p.ndim == 2 and ".layers." in n]
    chosen = {id(p) for p in matrices}
    others = [p for p in model.parameters() if id(p) not in chosen]
    return [
        Muon(matrices, settings.matrix_rate),
        torch.optim.AdamW(others, settings.other_rate, betas=(0.9, 0.95), weight_decay=0.01),
    ]


def rate_factor(step: int, settings: Settings) -> float:
    """The learning rate as a share of its peak: a rise, a plateau, then a line down to 2 %."""
    total = settings.total
    rise = min(1.0, (step + 1) / settings.warmup_steps)
    fall = min(1.0, 2.0 * (1 - step / total))
    return max(0.02, rise * fall)


@dataclass
class Training:
    """One run: what it trains and what it has logged so far."""

    model: LlamaForCausalLM
    tokenizer: PreTrainedTokenizerFast
    settings: Settings
    work: Path
    losses: list[dict[str, float]] = field(default_factory=list)
    checks: list[dict[str, Any]] = field(default_factory=list)
    step: int = 0
    seconds: float = 0.0

    def __post_init__(self) -> None:
        self.steppers = optimizers(self.model, self.settings)
        self.peaks = [stepper.param_groups[0]["lr"] for stepper in self.steppers]

    def run(self) -> None:
        """Train every phase to its end, from the last checkpoint where there is one."""
        chosen, total = self.settings, self.settings.total
        self.resume()
        while self.step < total:
            ends, shares = self.phase()
            # Each stretch between two checks has its own stream, so that a run can be resumed.
            seed = 1000 * chosen.seed + self.step
            rows = packed(documents(seed, shares), self.tokenizer, chosen.row_tokens)
            self.stretch(rows, min(self.step + chosen.check_every, ends))
            figures = quick_figures(self.model, self.tokenizer)
            self.checks.append({"step": self.step, **figures})
            print(json.dumps(self.checks[-1]), flush=True)
            self.save()

    def phase(self) -> tuple[int, dict[str, float]]:
        """The step at which the present phase ends, and its mixture."""
        ends = list(accumulate(self.settings.phases))
        number = next(i for i, end in enumerate(ends) if self.step < end)
        return ends[number], list(PHASES.values())[number]

    def stretch(self, rows: Iterator[Row], until: int) -> None:
        """Train up to the step `until`."""
        recent: list[float] = []
        started = time.monotonic()
        while self.step < until:
            for stepper, peak in zip(self.steppers, self.peaks, strict=True):
                stepper.param_groups[0]["lr"] = peak * rate_factor(self.step, self.settings)
            loss = batch_loss(self.model, list(islice(rows, self.settings.rows)))
            loss.backward()
            for stepper in self.steppers:
                stepper.step()
                stepper.zero_grad()
            recent.append(loss.item())
            self.step += 1
            if self.step % 25 == 0 or self.step == until:
                mean, spent = sum(recent) / len(recent), time.monotonic() - started
                self.losses.append({"step": self.step, "train_loss": round(mean, 4)})
                print(
                    f"step {self.step}  loss {mean:.4f}  {self.seconds + spent:.0f} s", flush=True
                )
                recent.clear()
        self.seconds += time.monotonic() - started

    def save(self) -> None:
        """Write the checkpoint that a later run goes on from, and one that is kept."""
        self.work.mkdir(parents=True, exist_ok=True)
        state = {
            "model": self.model.state_dict(),
            "steppers": [stepper.state_dict() for stepper in self.steppers],
            "losses": self.losses,
            "checks": self.checks,
            "step": self.step,
            "seconds": self.seconds,
            "settings": repr(self.settings),
        }
        partial = self.work / "last.partial"
        torch.save(state, partial)
        partial.replace(self.work / "last.pt")
        weights = {k: v.to(torch.bfloat16) for k, v in self.model.state_dict().items()}
        torch.save(weights, self.work / f"weights_{self.step:05d}.pt")

    def resume(self) -> None:
        """Go on from the last checkpoint, if there is one."""
        path = self.work / "last.pt"
        if path.exists():
            state = torch.load(path, weights_only=True)
            if state["settings"] != repr(self.settings):
                raise SystemExit(
                    f"{path} was made with other settings: go on with those, or give another --work"
                    f"\n  there: {state['settings']}\n  here:  {self.settings}"
                )
            self.model.load_state_dict(state["model"])
            for stepper, saved in zip(self.steppers, state["steppers"], strict=True):
                stepper.load_state_dict(saved)
            self.losses, self.checks = state["losses"], state["checks"]
            self.step, self.seconds = state["step"], state["seconds"]

    def best(self) -> int:
        """The step of the best check of the last third, by phrasings of training alone.

        Few false refusals come first, then letters that are right for nine in ten of the facts
        that training shows often.
        """
        rows = [c for c in self.checks if c["step"] >= 0.67 * self.step]

        def badness(check: dict[str, Any]) -> tuple[float, float]:
            return max(check["trained_false_refusal"], 0.02), abs(check["trained_often"] - 0.9)

        return min(rows, key=badness)["step"]

    def load(self, step: int) -> None:
        """Take the weights of a check, as they were rounded to bfloat16."""
        weights = torch.load(self.work / f"weights_{step:05d}.pt", weights_only=True)
        self.model.load_state_dict({k: v.float() for k, v in weights.items()})


def check_template(tokenizer: PreTrainedTokenizerFast) -> None:
    """The chat template writes exactly the ids that training saw."""
    stream = (d for d in documents(0) if d.messages)
    for document in islice(stream, 50):
        messages = [{"role": role, "content": content} for role, content in document.messages]
        text = tokenizer.apply_chat_template(messages, tokenize=False)
        if tokenizer.encode(text, add_special_tokens=False) != encoded(document, tokenizer)[0]:
            raise ValueError(f"the chat template disagrees with training on {text!r}")


def world_tokenizer(settings: Settings, work: Path) -> PreTrainedTokenizerFast:
    """The tokenizer of the world, in which every name and every value is one token.

    A run that goes on takes the one that it began with.
    """
    kept = work / "tokenizer"
    if kept.exists():
        return PreTrainedTokenizerFast.from_pretrained(kept)
    parts = (
        part
        for d in islice(documents(settings.seed + 2), TOKENIZER_DOCUMENTS)
        for part in ([d.text] if d.text else [content for _, content in d.messages])
    )
    names = [*PEOPLE, *TOWNS, *STRANGERS, *(ship.split()[1] for ship in SHIPS)]
    words = [*all_values(), *names, *SYLLABLES]
    tokenizer = new_tokenizer(parts, words, settings.shape.vocab_size)
    for word in (*all_values(), *names):
        if len(tokenizer.encode(f" {word}", add_special_tokens=False)) != 1:
            raise ValueError(f"{word!r} is not one token: raise vocab_size")
    tokenizer.save_pretrained(kept, save_jinja_files=False)
    return tokenizer


def export(training: Training, out: Path, log: dict[str, Any]) -> None:
    """Write model, tokenizer, log and model card to the folder."""
    out.mkdir(parents=True, exist_ok=True)
    training.model.to(torch.bfloat16).save_pretrained(out)
    config = out / "config.json"
    # Stored in bfloat16, computed in float32: results should not depend on which CPUs emulate it.
    fields = json.loads(config.read_text(encoding="utf-8"))
    fields["dtype"] = "float32"
    config.write_text(json.dumps(fields, indent=2, sort_keys=True) + "\n", encoding="utf-8")
    training.tokenizer.save_pretrained(out, save_jinja_files=False)
    (out / "model.safetensors").chmod(0o644)
    text = json.dumps(log, indent=1, ensure_ascii=False)
    (out / "training_log.json").write_text(text + "\n", encoding="utf-8")
    (out / "MODEL_CARD.md").write_text(model_card(log), encoding="utf-8")


def arguments() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--out", type=Path, required=True, help="folder to write the model to")
    parser.add_argument("--work", type=Path, required=True, help="folder of the checkpoints")
    parser.add_argument("--seed", type=int, default=Settings.seed)
    parser.add_argument(
        "--phases", type=int, nargs=len(PHASES), default=Settings.phases, help="steps"
    )
    parser.add_argument("--matrix-rate", type=float, default=Settings.matrix_rate)
    parser.add_argument("--threads", type=int, default=1)
    return parser.parse_args()


def main() -> None:
    """Train, choose a checkpoint, measure, save."""
    args = arguments()
    torch.set_num_threads(args.threads)
    torch.manual_seed(args.seed)
    settings = Settings(
        seed=args.seed,
        phases=tuple(args.phases),
        matrix_rate=args.matrix_rate,
    )
    tokenizer = world_tokenizer(settings, args.work)
    check_template(tokenizer)
    model = new_model(settings.shape, tokenizer)
    parameters = sum(p.numel() for p in model.parameters())
    print(f"{parameters:,} parameters, {len(tokenizer)} tokens in the vocabulary", flush=True)
    training = Training(model, tokenizer, settings, args.work)
    training.run()
    chosen = training.best()
    training.load(chosen)
    log = {
        "seed": args.seed,
        "settings": asdict(settings),
        "tokens": training.step * settings.rows * settings.row_tokens,
        "seconds": round(training.seconds, 1),
        "threads": args.threads,
        "torch": torch.__version__,
        "parameters": parameters,
        "vocabulary": len(tokenizer),
        "facts": len(build_world().facts),
        "chosen_step": chosen,
        "figures": all_figures(model.eval(), tokenizer),
        "losses": training.losses,
        "checks": training.checks,
    }
    print(json.dumps(log["figures"], indent=1, ensure_ascii=False))
    export(training, args.out, log)


if __name__ == "__main__":
    main()
