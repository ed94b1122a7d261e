"""Reasoning between ``<think>`` and ``</think>`` is kept apart from the answer."""

from __future__ import annotations

import json
import re
from typing import Any

import numpy as np
import pytest
from chat_templates import STYLES, spaced_tokenizer, with_template
from hypothesis import given, settings
from hypothesis import strategies as st

from actscope import Span, wrap_model
from actscope.backends.hf.answer_text import AnswerText, Said, opens_reasoning, said_by
from actscope.core.activations import ExampleRecord
from actscope.core.errors import ExampleError
from actscope.core.text import PHASE_NAMES, PROMPT, RESPONSE, THINK
from actscope.selectors import select
from actscope.testing.tiny_models import tiny_model
from actscope.testing.tiny_tokenizer import BYTE_VOCAB, tiny_tokenizer

BYTES = tiny_tokenizer()


def tags_are_tokens(special: bool) -> Any:
    """Reasoning models differ: the tags are tokens, special or not, or several tokens."""
    from tokenizers import AddedToken

    tokenizer = tiny_tokenizer()
    for tag in ("<think>", "</think>"):
        tokenizer.add_tokens([AddedToken(tag, special=special, normalized=False)])
    return tokenizer


def merged() -> Any:
    """Tags whose ends are merged with what follows them, as byte-pair encodings do."""
    return spaced_tokenizer(["<th", "ink", ">hm", "</", "think", ">yes", "k></", "hm", "yes"])


TOKENIZERS = {
    "bytes": BYTES,
    "ordinary tokens": tags_are_tokens(False),
    "special tokens": tags_are_tokens(True),
    "merged": merged(),
}


def split_by_hand(text: str, *, thinking: bool) -> tuple[str, str, list[bool]]:
    """Answer, reasoning, and for each character whether it is reasoning or a tag."""
    answer, thought, inside, at = "", "", [], 0
    while at < len(text):
        tag = "</think>" if thinking else "<think>"
        if text.startswith(tag, at):
            inside += [True] * len(tag)
            at, thinking = at + len(tag), not thinking
            continue
        if thinking:
            thought += text[at]
        else:
            answer += text[at]
        inside.append(thinking)
        at += 1
    return answer, thought, inside


parts = st.sampled_from(["<think>", "</think>", "<thi", "</", "think>", "a", "é", "🙂", "\n", "<"])


@given(words=st.lists(parts, max_size=8), thinking=st.booleans())
@settings(max_examples=400, deadline=None)
def test_bytes_are_split_as_by_hand(words: list[str], thinking: bool) -> None:
    text = "".join(words)
    ids = BYTES(text, add_special_tokens=False)["input_ids"]
    answer = AnswerText(BYTES, thinking=thinking)
    pieces = [answer.add(t, last=i == len(ids) - 1) for i, t in enumerate(ids)]
    said, thought, inside = split_by_hand(text, thinking=thinking)
    assert "".join(p.text for p in pieces) == answer.whole.text == said
    assert "".join(p.thought for p in pieces) == answer.whole.thought == thought
    of_byte = [inside[i] for i, c in enumerate(text) for _ in c.encode()]
    assert answer.phases().tolist() == [THINK if i else RESPONSE for i in of_byte]
    whole, phases = said_by(BYTES, ids, thinking=thinking)
    assert (whole, phases.tolist()) == (answer.whole, answer.phases().tolist())


@given(
    words=st.lists(parts, max_size=8),
    stop=st.lists(st.sampled_from(["<think>", "</think>", "k>\n", "a", ">é", "<think>a", "<"]),
                  max_size=2),
)  # fmt: skip
@settings(max_examples=400, deadline=None)
def test_stop_strings_and_tags_together(words: list[str], stop: list[str]) -> None:
    """A stop string counts wherever it stands; what is said is what stands before the first."""
    text = "".join(words)
    ids = BYTES(text, add_special_tokens=False)["input_ids"]
    answer = AnswerText(BYTES, stop)
    for place, token in enumerate(ids):
        answer.add(token, last=place == len(ids) - 1)
        so_far = BYTES.decode(ids[: place + 1])
        assert answer.stopped == any(s in so_far for s in stop)
        if answer.stopped:
            cut = min(so_far.find(s) for s in stop if s in so_far)
            said, thought, _ = split_by_hand(so_far[:cut], thinking=False)
            assert answer.whole == Said(said, thought)
            return
    said, thought, _ = split_by_hand(text, thinking=False)
    assert answer.whole == Said(said, thought)


@pytest.mark.parametrize("name", TOKENIZERS)
@pytest.mark.parametrize(
    ("text", "thought", "answer"),
    [
        ("<think>hm</think>yes", "hm", "yes"),
        ("<think></think>yes", "", "yes"),
        ("<think>hm", "hm", ""),
        ("yes", "", "yes"),
        ("<think>hm</think>", "hm", ""),
        ("<think>hm</think>yes<think>hm</think>yes", "hmhm", "yesyes"),
    ],
)
def test_tags_are_found_whatever_way_they_are_tokenised(
    name: str, text: str, thought: str, answer: str
) -> None:
    tokenizer = TOKENIZERS[name]
    ids = tokenizer(text, add_special_tokens=False)["input_ids"]
    whole, phases = said_by(tokenizer, ids, thinking=False)
    assert (whole.thought, whole.text) == (thought, answer)
    tokens = zip(ids, phases.tolist(), strict=True)
    spelled = tokenizer.decode([i for i, phase in tokens if phase == RESPONSE])
    assert spelled == answer or (name == "merged" and answer.endswith(spelled))


def test_the_tokenizers_above_differ_where_it_matters() -> None:
    lengths = {n: len(t("<think>hm</think>yes", add_special_tokens=False)["input_ids"])
               for n, t in TOKENIZERS.items()}  # fmt: skip
    assert lengths["bytes"] == 20 and lengths["ordinary tokens"] == 7
    pieces = TOKENIZERS["merged"].tokenize("<think>hm</think>yes")
    assert any(">hm" in p for p in pieces) and any(">yes" in p for p in pieces)


# --- generated ----------------------------------------------------------------------------------


class Scripted:
    """A model that says what it is told to: its logits are replaced, nothing else is."""

    def __init__(self, tokenizer: Any, script: str, *, stop: bool = True) -> None:
        size = max(len(tokenizer), BYTE_VOCAB)
        self.hf = tiny_model("llama", vocab_size=size, max_position_embeddings=256)
        self.ids = tokenizer(script, add_special_tokens=False)["input_ids"]
        self.hf.generation_config.eos_token_id = 0 if stop else None
        self.model = wrap_model(self.hf, tokenizer)
        self.said = 0
        self.hf.register_forward_hook(self._say)

    def _say(self, module: Any, args: Any, output: Any) -> Any:
        token = self.ids[self.said] if self.said < len(self.ids) else 0
        output.logits[:, -1] = -1.0
        output.logits[:, -1, token] = 1.0
        self.said += 1
        return output

    def answer(self, prompt: Any = "q", n: int = 64, **how: Any) -> Any:
        self.said = 0
        return self.model.generate([prompt], n, temperature=0, capture="replay", **how)


SCRIPT = "<think>\nfirst, é\n</think>\n\nThe answer."


@pytest.mark.parametrize("name", ["bytes", "ordinary tokens", "special tokens"])
def test_rows_are_labelled_and_spans_follow(name: str) -> None:
    tokenizer = TOKENIZERS[name]
    made = Scripted(tokenizer, SCRIPT).answer(sites="embed")
    assert made.thoughts == ["\nfirst, é\n"] and made.texts == ["\n\nThe answer."]
    row = made.rows[0]
    assert [PHASE_NAMES[p] for p in dict.fromkeys(row.phase.tolist())] == [
        "prompt", "think", "response"
    ]  # fmt: skip
    think = row.token_ids[select(row, Span.parse("think"))]
    response = row.token_ids[select(row, Span.parse("response"))]
    assert tokenizer.decode(think) == "<think>\nfirst, é\n</think>"
    assert tokenizer.decode(response) == "\n\nThe answer.<pad>"  # the stop token is its last
    assert len(made.activations["embed"][0]) == len(row)
    bare = select(row, Span.parse("think", exclude_special=True))
    assert ("<think>" in tokenizer.decode(row.token_ids[bare])) == (name != "special tokens")


def test_reasoning_that_is_never_closed_is_no_answer() -> None:
    for n, thought in ((12, "\nfirs"), (64, "\nfirst, é\n")):
        script = SCRIPT.partition("</think>")[0]
        made = Scripted(BYTES, script).answer(n=n)
        assert made.thoughts == [thought] and made.texts == [""]
        row = made.rows[0]
        assert set(row.phase[row.phase != PROMPT].tolist()) == {THINK}
        with pytest.raises(ExampleError, match="response"):
            select(row, Span.parse("response"))


def test_without_reasoning_nothing_changes() -> None:
    made = Scripted(BYTES, "just this").answer()
    assert made.thoughts == [""] and made.texts == ["just this"]
    with pytest.raises(ExampleError, match="span think"):
        select(made.rows[0], Span.parse("think"))


def test_a_template_that_opens_the_reasoning_itself() -> None:
    tokenizer = with_template(tiny_tokenizer(), STYLES["forgetful"])
    made = Scripted(tokenizer, "hmm\n</think>\n\nyes").answer(chat=True)
    assert made.thoughts == ["hmm\n"] and made.texts == ["\n\nyes"]
    cut = Scripted(tokenizer, "hmm\n</think>\n\nyes").answer(chat=True, n=3)
    assert cut.thoughts == ["hmm"] and cut.texts == [""]


@pytest.mark.parametrize(
    ("prompt", "opens"),
    [("a<think>", True), ("<think>\n", True), ("<think></think>", False), ("<think> a", False),
     ("what does <think> mean?", False), ("", False)],
)  # fmt: skip
def test_only_an_end_in_an_open_tag_opens_it(prompt: str, opens: bool) -> None:
    ids = np.array(BYTES(prompt)["input_ids"])
    assert opens_reasoning(BYTES, ids) == opens
    assert not opens_reasoning(None, ids)


def test_reasoning_and_answer_are_told_apart_while_they_are_made() -> None:
    told: list[tuple[str, int, str]] = []
    made = Scripted(BYTES, SCRIPT).answer(
        on_token=lambda i, token, text: told.append(("answer", token, text)),
        on_thought=lambda i, token, text: told.append(("thought", token, text)),
    )
    row = made.rows[0]
    tokens = [token for kind, token, _ in told if kind == "answer"]
    assert tokens == row.token_ids[row.phase != PROMPT].tolist()
    for kind, whole in (("answer", made.texts[0]), ("thought", made.thoughts[0])):
        assert "".join(text for k, _, text in told if k == kind) == whole
    kinds = [kind for kind, _, text in told if text]
    assert kinds == sorted(kinds, reverse=True)  # all of the reasoning, then the answer


def test_the_assistants_words_are_the_answer_and_not_the_reasoning() -> None:
    tokenizer = with_template(tiny_tokenizer(), STYLES["chatml"])
    row = Scripted(tokenizer, SCRIPT).answer(chat=True).rows[0]
    kept = row.token_ids[select(row, Span.parse("assistant"))]
    assert tokenizer.decode(kept) == "\n\nThe answer."


def test_runs_keep_the_reasoning_and_old_runs_still_read(tmp_path: Any) -> None:
    from actscope import ActivationExtractor, DatasetRunner, ShardStorage
    from actscope.capture import CaptureOptions
    from actscope.core.protocols import GenerationParams

    scripted = Scripted(BYTES, SCRIPT)
    params = GenerationParams(64, 0.0, capture="replay")
    for keep in (True, False):
        scripted.said = -1  # measuring a row generates one token first
        runner = DatasetRunner(
            ["q"], None, ActivationExtractor(scripted.model, [0]), ShardStorage(tmp_path),
            options=CaptureOptions(generation=params, keep_text=keep),
        )  # fmt: skip
        run = runner.run(run_id=f"r{keep}").open()
        record = run.examples[0]
        said = (record.thought, record.response)
        assert said == (("\nfirst, é\n", "\n\nThe answer.") if keep else (None, None))
        assert set(run.phase(0).tolist()) == {PROMPT, THINK, RESPONSE}
        assert run.verify().ok
    old = json.loads(json.dumps(record.to_json()))
    del old["thought"]
    assert ExampleRecord.from_json(old).thought is None


def test_a_run_over_the_reasoning(tmp_path: Any) -> None:
    from actscope import ActivationExtractor, DatasetRunner, ShardStorage
    from actscope.capture import CaptureOptions
    from actscope.core.protocols import GenerationParams

    scripted = Scripted(BYTES, SCRIPT)
    scripted.said = -1
    runner = DatasetRunner(
        ["q"], None, ActivationExtractor(scripted.model, [0], "mean", span="think"),
        ShardStorage(tmp_path),
        options=CaptureOptions(generation=GenerationParams(64, 0.0, capture="replay")),
    )  # fmt: skip
    run = runner.run(run_id="r").open()
    row = run.tokens(0)
    whole = scripted.model.capture([row.tolist()], layers=[0]).numpy("resid_post", 0)
    thinks = run.phase(0).numpy() == THINK
    assert 0 < thinks.sum() < len(row)
    np.testing.assert_allclose(
        run.get("resid_post", 0, example=0).numpy(), whole[thinks].mean(0), rtol=1e-5, atol=1e-6
    )


def test_phases_have_names() -> None:
    assert PHASE_NAMES[THINK] == "think" and re.fullmatch("[a-z]+", PHASE_NAMES[RESPONSE])
