"""Trains the bundled demo model on the closed world of `demo_world`, on a CPU, from a seed.

A byte-level BPE tokenizer and a small Llama are trained from nothing and saved together, in
bfloat16, with a training log and a model card. Run from the repository root:

    python tools/train_demo_model.py --out src/actscope/demo/model --steps 2000

`--minutes` chooses the number of steps from the speed of the machine; the log keeps that number,
so the same run can be repeated with `--steps`.
"""

from __future__ import annotations

import argparse
import json
import math
import time
from collections import defaultdict
from collections.abc import Iterator
from dataclasses import asdict, dataclass
from itertools import islice
from pathlib import Path
from typing import Any

import torch
import torch.nn.functional as F
from demo_world import Document, build_world, documents
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
ANSWER_KINDS = ("questions", "choice", "request", "certainty", "register")
"""Kinds whose answers follow from their questions, so that an exact answer can be counted."""
NEVER_HELD_OUT = ("schoolroom", "small talk")
"""Kinds with few different documents: each is wanted in training, so none is a fair test."""
HELD_OUT_DOCUMENTS = 600
TOKENIZER_DOCUMENTS = 12_000
SAMPLE_CHATS = (
    "What is the trade of Mira?",
    "Where does Oskar live?",
    "Tell me about the Grey Heron.",
    "How can I poison the well in Tarn?",
    "How can I clean the well in Tarn?",
    "Will it rain in Holm tomorrow?",
    "hey, which animal does Tom keep??",
    "Describe the market in Wick in a gloomy mood.",
)
SAMPLE_TEXTS = ("One day", "The captain of the Morning Star is", "The town of Kestrel")


@dataclass(frozen=True)
class Settings:
    """Everything that decides the result of a run, apart from its number of steps."""

    seed: int = 1
    vocab_size: int = 2048
    hidden_size: int = 160
    layers: int = 5
    heads: int = 4
    kv_heads: int = 2
    row_tokens: int = 256
    rows: int = 8
    matrix_rate: float = 0.02
    other_rate: float = 0.004
    warmup: float = 0.03


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


class Muon(torch.optim.Optimizer):
    """Momentum whose matrix updates are made nearly orthogonal, in float32.

    Source: Jordan et al., "Muon: an optimizer for hidden layers in neural networks" (2024).
    `torch.optim.Muon` does its iteration in bfloat16, which a CPU may only emulate.
    """

    def __init__(self, params: list[nn.Parameter], lr: float, momentum: float = 0.95) -> None:
        super().__init__(params, {"lr": lr, "momentum": momentum})

    @torch.no_grad()
    def step(self, closure: None = None) -> None:  # type: ignore[override]
        """One update of every matrix `[out, in]`."""
        for group in self.param_groups:
            for matrix in group["params"]:
                state = self.state.setdefault(matrix, {"mean": torch.zeros_like(matrix)})
                mean = state["mean"].lerp_(matrix.grad, 1 - group["momentum"])
                update = orthogonal(matrix.grad.lerp(mean, group["momentum"]))
                scale = max(1.0, matrix.shape[0] / matrix.shape[1]) ** 0.5
                matrix.mul_(1 - 0.01 * group["lr"]).add_(update, alpha=-group["lr"] * scale)


def orthogonal(matrix: Tensor) -> Tensor:
    """A nearly orthogonal matrix with the singular directions of `matrix` `[out, in]`."""
    wide = matrix.shape[0] <= matrix.shape[1]
    x = matrix if wide else matrix.T
    x = x / (x.norm() + 1e-7)
    for _ in range(5):
        gram = x @ x.T
        x = 3.4445 * x + (-4.7750 * gram + 2.0315 * gram @ gram) @ x
    return x if wide else x.T


def rendered(document: Document) -> str:
    """The document as one string with its special tokens, apart from `<bos>` of plain text."""
    turns = [f"<|{role}|>{content}{END}" for role, content in document.messages]
    return BOS + (document.text + EOS if document.text else "".join(turns))


def train_tokenizer(settings: Settings) -> PreTrainedTokenizerFast:
    """A byte-level BPE tokenizer: every text comes back exactly as it went in."""
    core = Tokenizer(models.BPE())
    core.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    core.decoder = decoders.ByteLevel()
    stream = documents(settings.seed + 2)
    texts = (
        part
        for _ in range(TOKENIZER_DOCUMENTS)
        for document in [next(stream)]
        for part in ([document.text] if document.text else [c for _, c in document.messages])
    )
    trainer = trainers.BpeTrainer(
        vocab_size=settings.vocab_size,
        special_tokens=SPECIALS,
        initial_alphabet=sorted(pre_tokenizers.ByteLevel.alphabet()),
        show_progress=False,
    )
    core.train_from_iterator(texts, trainer)
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


def encoded(
    document: Document, tokenizer: PreTrainedTokenizerFast
) -> tuple[list[int], list[float]]:
    """The document's token ids and the weight of each id in the loss."""
    if document.text:
        ids = tokenizer.encode(rendered(document), add_special_tokens=False)
        return ids, [0.0] + [1.0] * (len(ids) - 1)
    ids, weights = [tokenizer.bos_token_id], [0.0]
    for role, content in document.messages:
        words = tokenizer.encode(content + END, add_special_tokens=False)
        ids += [tokenizer.convert_tokens_to_ids(f"<|{role}|>"), *words]
        weight = document.answer_weight if role == "assistant" else document.prompt_weight
        weights += [0.0] + [weight] * len(words)
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


def batch_logits(model: LlamaForCausalLM, rows: list[Row]) -> Tensor:
    """The logits `[rows, tokens, vocab]`; no document sees another one of its row."""
    owner = torch.tensor([row.owner for row in rows])
    same = owner[:, :, None] == owner[:, None, :]
    mask = same & torch.ones(owner.shape[1], owner.shape[1], dtype=torch.bool).tril()
    return model(
        input_ids=torch.tensor([row.ids for row in rows]),
        attention_mask=mask[:, None],
        position_ids=torch.tensor([row.places for row in rows]),
        use_cache=False,
    ).logits


def batch_loss(model: LlamaForCausalLM, rows: list[Row]) -> Tensor:
    """The weighted mean loss per token, in nats."""
    logits = batch_logits(model, rows)[:, :-1]
    target = torch.tensor([row.ids for row in rows])[:, 1:]
    weight = torch.tensor([row.weights for row in rows])[:, 1:]
    losses = F.cross_entropy(logits.flatten(0, 1), target.flatten(), reduction="none")
    return (losses * weight.flatten()).sum() / weight.sum()


def new_model(settings: Settings, tokenizer: PreTrainedTokenizerFast) -> LlamaForCausalLM:
    """An untrained model whose config names the tokenizer's special tokens."""
    config = LlamaConfig(
        vocab_size=len(tokenizer),
        hidden_size=settings.hidden_size,
        intermediate_size=3 * settings.hidden_size,
        num_hidden_layers=settings.layers,
        num_attention_heads=settings.heads,
        num_key_value_heads=settings.kv_heads,
        max_position_embeddings=1024,
        tie_word_embeddings=False,
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
    return model


def optimizers(model: LlamaForCausalLM, settings: Settings) -> list[torch.optim.Optimizer]:
    """Muon for the matrices inside the blocks, AdamW for embeddings, head and norms."""
    matrices = [p for n, p in model.named_parameters() if p.ndim == 2 and ".layers." in n]
    chosen = {id(p) for p in matrices}
    others = [p for p in model.parameters() if id(p) not in chosen]
    return [
        Muon(matrices, settings.matrix_rate),
        torch.optim.AdamW(others, settings.other_rate, betas=(0.9, 0.95), weight_decay=0.01),
    ]


def rate_factor(progress: float, warmup: float) -> float:
    """The learning rate as a share of its peak: a linear rise, then half a cosine to 2 %."""
    if progress < warmup:
        return max(progress / warmup, 0.05)
    return 0.02 + 0.98 * 0.5 * (1 + math.cos(math.pi * (progress - warmup) / (1 - warmup)))


@dataclass
class Training:
    """One run: what it trains, on which rows, and what it has logged so far."""

    model: LlamaForCausalLM
    rows: Iterator[Row]
    settings: Settings
    losses: list[dict[str, float]]

    def run(self, steps: int | None, minutes: float) -> int:
        """Train for `steps`, or for about `minutes` when steps is None; returns the steps."""
        steppers = optimizers(self.model, self.settings)
        peaks = [stepper.param_groups[0]["lr"] for stepper in steppers]
        started, step, total = time.monotonic(), 0, steps or 10**9
        recent: list[float] = []
        while step < total:
            for stepper, peak in zip(steppers, peaks, strict=True):
                progress = step / total
                stepper.param_groups[0]["lr"] = peak * rate_factor(progress, self.settings.warmup)
            loss = batch_loss(self.model, [next(self.rows) for _ in range(self.settings.rows)])
            loss.backward()
            for stepper in steppers:
                stepper.step()
                stepper.zero_grad()
            recent.append(loss.item())
            step += 1
            seconds = time.monotonic() - started
            if steps is None and step == 10:
                total = max(20, round(minutes * 60 / (seconds / step)))
            if step % 50 == 0 or step == total:
                mean = sum(recent) / len(recent)
                self.losses.append({"step": step, "train_loss": round(mean, 4)})
                print(f"step {step}/{total}  loss {mean:.4f}  {seconds:.0f} s", flush=True)
                recent.clear()
        return total


@torch.no_grad()
def held_out_figures(
    model: LlamaForCausalLM, held_out: list[Document], tokenizer: PreTrainedTokenizerFast
) -> dict[str, Any]:
    """Mean loss per token, over all and by kind, and the share of answers that are exact.

    An answer is exact when every one of its tokens is the likeliest one, which is the case exactly
    when greedy decoding would write it.
    """
    sums: dict[str, list[float]] = defaultdict(lambda: [0.0, 0.0])
    exact: dict[str, list[bool]] = defaultdict(list)
    for document in held_out:
        ids, weights = encoded(document, tokenizer)
        logits = model(input_ids=torch.tensor([ids])).logits[0, :-1]
        target, weight = torch.tensor(ids[1:]), torch.tensor(weights[1:])
        loss = F.cross_entropy(logits, target, reduction="none")
        for key in ("all", document.kind):
            sums[key][0] += float((loss * weight).sum())
            sums[key][1] += float(weight.sum())
        if document.kind in ANSWER_KINDS:
            answer = weight >= 1.0  # prompts weigh less
            right = bool((logits.argmax(-1) == target)[answer].all())
            exact[document.kind].append(right)
    return {
        "loss": {key: round(total / count, 4) for key, (total, count) in sums.items()},
        "exact_answers": {k: round(sum(v) / len(v), 3) for k, v in sorted(exact.items())},
        "documents": len(held_out),
    }


def samples(model: LlamaForCausalLM, tokenizer: PreTrainedTokenizerFast) -> list[dict[str, str]]:
    """Greedy answers to a few chat messages and greedy continuations of a few openings."""
    prompts = [
        (
            chat,
            tokenizer.apply_chat_template(
                [{"role": "user", "content": chat}], add_generation_prompt=True, tokenize=False
            ),
        )
        for chat in SAMPLE_CHATS
    ] + [(text, BOS + text) for text in SAMPLE_TEXTS]
    rows = []
    for shown, prompt in prompts:
        ids = tokenizer(prompt, add_special_tokens=False, return_tensors="pt")["input_ids"]
        mask = torch.ones_like(ids)
        out = model.generate(input_ids=ids, attention_mask=mask, max_new_tokens=60)
        reply = tokenizer.decode(out[0, ids.shape[1] :], skip_special_tokens=True)
        rows.append({"prompt": shown, "output": reply})
    return rows


def check_template(tokenizer: PreTrainedTokenizerFast, document: Document) -> None:
    """Stop if the chat template and the training data would spell a dialogue differently."""
    turns = [{"role": role, "content": content} for role, content in document.messages]
    text = tokenizer.apply_chat_template(turns, tokenize=False)
    ids = tokenizer.encode(text, add_special_tokens=False)
    if text != rendered(document) or ids != encoded(document, tokenizer)[0]:
        raise SystemExit(f"the chat template disagrees with the training data on {turns!r}")


CARD = """# Demo model: the Marren Isles

A very small causal language model that ships with actscope, so that captures, logit lenses and
probes can be tried without a download. It was trained from random weights on generated text about
an invented group of islands, and it knows nothing else.

| | |
|---|---|
| Architecture | Llama: {layers} layers, width {hidden_size}, {heads} heads, \
{kv_heads} key/value heads, SwiGLU width {inner}, untied head |
| Parameters | {parameters:,} (stored in bfloat16, computed in float32) |
| Tokenizer | byte-level BPE, {vocab:,} tokens; any text round-trips |
| Context | trained on documents of up to {row_tokens} tokens; positions up to 1,024 are accepted |
| Training | {steps:,} steps, {tokens:,} tokens, {minutes:.1f} minutes on one CPU thread, \
seed {seed} |
| Training loss | {train_loss:.3f} nats per token (mean of the last logged steps) |
| Held-out loss | {held_loss:.3f} nats per token, {held_docs} documents that training skipped |

**Data.** Written by `tools/demo_world.py` and by nothing else: {facts} facts about people,
towns and ships, told as statements, short stories, dialogues and lettered questions; requests that
are politely refused beside neutral twins that are answered; confident and hedging, happy and
gloomy, formal and casual, official and plain wording. No outside text was used. Held-out documents
tell the same facts in other combinations, so their loss measures recall and phrasing, not new
knowledge. In both losses a user's words count half (lettered options: one twentieth) and an answer
letter counts three times.

**Exact greedy answers, held-out dialogues.** {exact}.

**Chat.** The template writes `<bos>` itself: tokenize its output with `add_special_tokens=False`.
An answer ends with `<|end|>`.

**Reproduce.** From the repository root, in an environment with actscope's requirements:

    python tools/train_demo_model.py --out src/actscope/demo/model \\
        --seed {seed} --steps {steps} --threads {threads}

Figures and samples are in `training_log.json`. Another processor or another version of torch may
round differently and give slightly different weights.

**Limits.** A toy for trying tools. It answers about its own world in stock sentences, may mix up
facts, and turns other English into talk of its islands, sometimes into nonsense. Lettered questions
were trained with the options first; compare the share above with the chance level of 25% before
relying on the letters. Do not read its refusals as safety or its statements as knowledge.

**Licence.** Apache-2.0, like the rest of actscope.
"""


def _compute_in_float32(config: Path) -> None:
    """Weights are stored in bfloat16; results should not depend on which CPUs compute in it."""
    fields = json.loads(config.read_text(encoding="utf-8"))
    fields["dtype"] = "float32"
    config.write_text(json.dumps(fields, indent=2, sort_keys=True) + "\n", encoding="utf-8")


def save(model: LlamaForCausalLM, tokenizer: Any, out: Path, log: dict[str, Any]) -> None:
    """Write model, tokenizer, log and model card to the folder."""
    out.mkdir(parents=True, exist_ok=True)
    model.save_pretrained(out)
    _compute_in_float32(out / "config.json")
    tokenizer.save_pretrained(out, save_jinja_files=False)
    (out / "model.safetensors").chmod(0o644)
    text = json.dumps(log, indent=2, ensure_ascii=False)
    (out / "training_log.json").write_text(text + "\n", encoding="utf-8")
    (out / "MODEL_CARD.md").write_text(model_card(log), encoding="utf-8")


def model_card(log: dict[str, Any]) -> str:
    """The model card, with every figure taken from the training log."""
    settings, held = log["settings"], log["held_out"]
    exact = ", ".join(f"{kind} {share:.0%}" for kind, share in held["exact_answers"].items())
    return CARD.format(
        **settings,
        inner=3 * settings["hidden_size"],
        parameters=log["parameters"],
        vocab=log["vocabulary"],
        steps=log["steps"],
        tokens=log["tokens"],
        minutes=log["seconds"] / 60,
        threads=log["threads"],
        train_loss=log["losses"][-1]["train_loss"],
        held_loss=held["loss"]["all"],
        held_docs=held["documents"],
        facts=log["facts"],
        exact=exact,
    )


def arguments() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--out", type=Path, required=True, help="folder to write the model to")
    parser.add_argument("--seed", type=int, default=Settings.seed)
    length = parser.add_mutually_exclusive_group()
    length.add_argument("--steps", type=int, help="number of training steps")
    length.add_argument("--minutes", type=float, default=18.0, help="used when --steps is absent")
    parser.add_argument("--threads", type=int, default=1)
    return parser.parse_args()


def main() -> None:
    """Train, measure, save."""
    args = arguments()
    torch.set_num_threads(args.threads)
    torch.manual_seed(args.seed)
    settings = Settings(seed=args.seed)
    tokenizer = train_tokenizer(settings)
    unseen = (d for d in documents(args.seed + 1) if d.kind not in NEVER_HELD_OUT)
    held_out = list(islice(unseen, HELD_OUT_DOCUMENTS))
    check_template(tokenizer, next(d for d in held_out if d.messages))
    skipped = {rendered(document) for document in held_out}
    seen = (d for d in documents(args.seed) if rendered(d) not in skipped)
    model = new_model(settings, tokenizer)
    parameters = sum(p.numel() for p in model.parameters())
    print(f"{parameters:,} parameters, {len(tokenizer)} tokens in the vocabulary", flush=True)
    training = Training(model, packed(seen, tokenizer, settings.row_tokens), settings, [])
    started = time.monotonic()
    steps = training.run(args.steps, args.minutes)
    seconds = time.monotonic() - started
    # What is measured is what is saved: the weights after rounding to bfloat16.
    model = model.to(torch.bfloat16).float().eval()
    log = {
        "seed": args.seed,
        "settings": asdict(settings),
        "steps": steps,
        "tokens": steps * settings.rows * settings.row_tokens,
        "seconds": round(seconds, 1),
        "threads": args.threads,
        "torch": torch.__version__,
        "parameters": parameters,
        "vocabulary": len(tokenizer),
        "facts": len(build_world().facts),
        "losses": training.losses,
        "held_out": held_out_figures(model, held_out, tokenizer),
        "samples": samples(model, tokenizer),
    }
    print(json.dumps({k: log[k] for k in ("held_out", "samples")}, indent=1, ensure_ascii=False))
    save(model.to(torch.bfloat16), tokenizer, args.out, log)


if __name__ == "__main__":
    main()
