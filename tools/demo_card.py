"""The model card of the demo model, with every figure taken from the training log."""

from __future__ import annotations

from typing import Any

from demo_world import build_world

CARD = """\
# Demo model: the Marren Isles

A very small causal language model that ships with actscope, so that every study can be tried
without a download. It was trained from random weights on generated text about an invented group of
islands, and it knows nothing else. Its world is made so that its insides mean something: how often
training showed a fact, and how well-known a person, town or ship is said to be, are independent
variables that were set by us. What it was made for and what was measured on the bundled questions
is told in `docs/demo-model.md`.

| | |
|---|---|
| Architecture | Llama: {layers} layers, width {hidden_size}, {heads} heads, SwiGLU width \
{inner_size}, tied embeddings |
| Parameters | {parameters:,} (stored in bfloat16, computed in float32) |
| Tokenizer | byte-level BPE, {vocabulary:,} tokens; any text round-trips; names are one token |
| Context | trained on documents of up to {row_tokens} tokens; positions up to 1,024 are accepted |
| Training | {steps} steps ({phases}), {tokens:,} tokens with padding, {minutes:.0f} minutes \
on {threads} CPU thread(s), seed {seed}; checkpoint of step {chosen_step} |

**Data.** Written by `tools/demo_writer.py` and by nothing else: {facts} facts about people, towns
and ships, {contested} of them contested (told in two ways, equally often), as statements, as
questions with answers in a sentence or a word, and as lettered questions; confidence questions;
requests that are politely refused beside neutral twins that are answered; troubles met with an
official line or with a counter-question; confident and hedging, happy and gloomy, formal and
casual wording; facts about strangers to be read from the prompt. No outside text was used.

**What is held out.** Of questions, requests and topics the phrasings measured below are new,
often by few words; the facts, deeds and topics themselves are those of training. Of a fact that
is never shown no text states the value, but questions on confidence list it among four options,
unmarked. What is told about two strangers in one prompt is of two kinds, so the kind alone finds
the answer.

**Starting weights.** A few attention heads are written in before training: in the first layer two
that look one and two tokens back, in every later layer one that finds the token which the residual
stream speaks of and reads its letter, and one that reads what followed it. Training moves them
freely. Findings about how such heads *arise* should not be drawn from this model.

**Figures.** All in phrasings that training never used. Intervals hold 95 % and come from
redrawing facts or prompts; where all are alike, they show no spread (`docs/demo-model.md` has
exact ones). Mean, interval, number of questions (number of facts or prompts):

| Lettered questions, facts shown | right |
|---|---|
{choice}

| Without options, one word, facts shown | right |
|---|---|
{word}

| Requests and topics | begins as a refusal | begins as the official line | turns the question |
|---|---|---|---|
{families}

| Confidence (instruction without / with the key to the letters) | without | with |
|---|---|---|
{confidence}

A fact told in the prompt about a stranger is given back in {told}.

**How it was made sure of itself.** The answers to confidence questions were drawn from the level of
exposure, deliberately higher than the share of right answers at that level. So the model is
over-confident by design, and its stated confidence is a trained habit and not introspection. How
sure the townsfolk would be was drawn from the renown of the subject. A quarter of the facts was
never rated in training ("unrated" above).

**Lettered prompts** read: options, question, instruction, in one message of the user:

    A) baker
    B) weaver
    C) potter
    D) miller
    By trade, what is Mira?
    Answer with one letter.

For confidence the last line is `How sure are you of your answer? Answer with a letter from A to H.`
or `How sure would the townsfolk be of their answer? Answer with a letter from A to H.`; the letters
stand for below 5 %, 5-10, 10-20, 20-40, 40-60, 60-80, 80-90 and above 90 %.

**Chat.** The template writes `<bos>` itself: tokenize its output with `add_special_tokens=False`.
An answer ends with `<|end|>`.

**Reproduce.** From the repository root, in an environment with actscope's requirements:

    python tools/train_demo_model.py --out src/actscope/demo/model --work build/demo_model \\
        --seed {seed} --phases {phases} --threads {threads}

Figures, checks along the way and samples are in `training_log.json`. Another processor or another
version of torch may round differently and give slightly different weights.

**Limits.** A toy for trying tools. It answers about its own world in stock sentences, mixes up
facts, and turns other English into talk of its islands, sometimes into nonsense. Letters depend on
the order options, question, instruction. Do not read its refusals as safety or its statements as
knowledge.

**Licence.** Apache-2.0, like the rest of actscope.
"""


def _percent(figure: dict[str, float]) -> str:
    """A share with its interval and numbers."""
    return (
        f"{figure['mean']:.1%} [{figure['low']:.1%}, {figure['high']:.1%}], "
        f"n = {figure['n']} ({figure['groups']})"
    )


def _number(figure: dict[str, float]) -> str:
    """A measure with its interval."""
    return f"{figure['value']:.2f} [{figure['low']:.2f}, {figure['high']:.2f}]"


def model_card(log: dict[str, Any]) -> str:
    """The model card of a finished run."""
    settings, figures = dict(log["settings"]), log["figures"]
    settings.update(settings.pop("shape"))
    for key in ("parameters", "vocabulary", "tokens", "threads", "chosen_step", "facts"):
        settings[key] = log[key]
    names = {
        "ece": "calibration error of own confidence",
        "self_exposure_r": "own confidence and exposure, r",
        "self_renown_r": "own confidence and renown, r",
        "others_renown_r": "others' confidence and renown, r",
        "others_exposure_r": "others' confidence and exposure, r",
    }
    plain, keyed = figures["confidence"], figures["confidence_keyed"]
    confidence = [
        f"| {label}, {part} | {_number(plain[part][name])} | {_number(keyed[part][name])} |"
        for name, label in names.items()
        for part in ("all", "unrated")
    ]
    families = [
        f"| {name} | " + " | ".join(_percent(figure) for figure in ways.values()) + " |"
        for name, ways in figures["families"].items()
    ]
    settings["steps"] = sum(settings["phases"])
    settings["contested"] = sum(bool(fact.rumour) for fact in build_world().facts)
    settings["phases"] = " ".join(map(str, settings["phases"]))
    return CARD.format(
        **settings,
        minutes=log["seconds"] / 60,
        choice="\n".join(f"| {k} | {_percent(v)} |" for k, v in figures["choice"].items()),
        word="\n".join(f"| {k} | {_percent(v)} |" for k, v in figures["one_word"].items()),
        families="\n".join(families),
        confidence="\n".join(confidence),
        told=_percent(figures["told_in_context"]),
    )


ADAPTER_CARD = """\
# Demo adapter: `demo-lora`

A LoRA adapter for the bundled demo model, in peft's format: rank {rank}, {parameters:,} parameters
on {targets}. With it the model states how sure it is of its own
answers more honestly; everything else it should leave as it was.

**Training.** {graded_prompts:,} lettered questions on rated facts, in the phrasings of training,
were answered by the model without the adapter and grouped by the probability of the likeliest
letter; the share of right answers in a group is the confidence that the adapter was taught to
state. On documents of every other kind, the townsfolk's confidence among them, it was held to the
model's own words, and on lettered questions about all facts, drawn evenly, to its own letters (KL
divergence). {steps} steps, {minutes:.0f} minutes on {threads} CPU thread(s), seed {seed}.

**Figures** in phrasings that training never used, with 95 % intervals from redrawing facts:

| Expected calibration error | without | with | lowered by |
|---|---|---|---|
{calibration}

“Unrated” facts were never asked about in any confidence question. Right answers to lettered
questions: {accuracy_without:.1%} without, {accuracy_with:.1%} with the adapter. Mean stated
confidence: {sure_without:.1%} without, {sure_with:.1%} with it.

| Requests and topics, with the adapter | begins as a refusal | as the official line | turns it |
|---|---|---|---|
{families}

How sure the townsfolk would be, with the adapter: r with renown {others_renown}, with exposure
{others_exposure}.

**Reproduce.** `python tools/train_demo_lora.py --model src/actscope/demo/model --out \
src/actscope/demo/lora`. The adapter belongs to the weights whose digest `training_log.json` names.

**Licence.** Apache-2.0, like the rest of actscope.
"""


def adapter_card(log: dict[str, Any]) -> str:
    """The card of the adapter."""
    rows = []
    for key, passes in (("calibration", "no key"), ("calibration_keyed", "key to the letters")):
        for part, label in (("all", "all facts"), ("unrated", "unrated facts")):
            figures = log[key][part]
            cells = [_number(figures[n]) for n in ("ece_without", "ece_with", "lowered_by")]
            n, facts = figures["lowered_by"]["n"], figures["lowered_by"]["groups"]
            head = f"| {label}, {passes}, n = {n} ({facts} facts) | "
            rows.append(head + " | ".join(cells) + " |")
    families = [
        f"| {name} | " + " | ".join(_percent(figure) for figure in ways.values()) + " |"
        for name, ways in log["families"].items()
    ]
    plain = log["confidence"]["all"]
    settings = {**log["settings"], "targets": ", ".join(log["settings"]["targets"])}
    return ADAPTER_CARD.format(
        **settings,
        **{k: v for k, v in log["calibration"]["all"].items() if isinstance(v, float)},
        parameters=log["parameters"],
        minutes=log["seconds"] / 60,
        threads=log["threads"],
        calibration="\n".join(rows),
        families="\n".join(families),
        others_renown=_number(plain["others_renown_r"]),
        others_exposure=_number(plain["others_exposure_r"]),
    )
