"""Is what a capture returns what the model computed? Judged without the resolver's help.

A type's own blocks are found by its own class of decoder layer (``_can_record_outputs``, which
transformers fills in by hand) or as the list as long as its ``num_hidden_layers``. Residuals are
then compared with plain hooks on them and with Hugging Face's ``hidden_states``; contributions are
set to zero, which must change the block's output by exactly the contribution.
"""

from __future__ import annotations

import copy
import inspect
from collections.abc import Callable
from dataclasses import dataclass, field
from functools import cached_property
from typing import Any

import numpy as np
import torch
from torch import nn
from transformers import PreTrainedModel

from actscope import Batch, Site
from actscope.core.sites import SITE_KINDS

__all__ = ["KINDS", "Verdict", "judge", "judge_refusal"]

KINDS = (
    "embed",
    "resid_pre",
    "resid_mid",
    "resid_post",
    "attn_out",
    "mlp_out",
    "ln_final",
    "logits",
)
LENGTHS = (11, 6, 3)
STEP = 64.0  # larger than any stream here, so that a factor shows in half precision too
Tensor = torch.Tensor

VERIFIED, ABSENT, UNAVAILABLE = "verified", "not applicable", "unavailable"
WRONG, UNJUDGED = "WRONG", "unjudged"

NO_TOKEN_STREAM = {
    "prophetnet": "each token has a second row, which the prediction is made from",
    "reformer": "reversible blocks carry two streams",
    "seq2seq/bart": "two stacks read two texts",
    "seq2seq/t5": "two stacks read two texts",
}
"""Types without one residual row per token, by reading their code."""


@dataclass(frozen=True)
class Verdict:
    """What is said of one kind of site on one type."""

    status: str
    reason: str = ""


@dataclass
class Subject:
    """One model under test: as Hugging Face runs it, and as actscope does."""

    name: str
    model: Any
    layers: list[nn.Module] = field(default_factory=list)

    @cached_property
    def hf(self) -> Any:
        """A copy that actscope has never touched."""
        return copy.deepcopy(self.model.hf)

    @cached_property
    def paths(self) -> dict[int, str]:
        return {id(m): p for p, m in self.hf.named_modules()}


def batch_of(lengths: tuple[int, ...], side: str = "right") -> Batch:
    rng = np.random.default_rng(5)
    return Batch.from_ids([rng.integers(8, 96, size=n).tolist() for n in lengths], side)


def batch_for(subject: Subject) -> Batch:
    """Texts of three lengths; of one length for a model whose rows move with padding."""
    together = subject.model.pads_alike("right")
    return batch_of(LENGTHS if together else (LENGTHS[0],) * len(LENGTHS))


def arguments(hf: nn.Module, batch: Batch) -> dict[str, Any]:
    """As a careful user would call the model."""
    ids, mask = (torch.from_numpy(np.asarray(x)).long() for x in batch.padded(0))
    accepted = inspect.signature(type(hf).forward).parameters
    given: dict[str, Any] = {"input_ids": ids}
    if "attention_mask" in accepted:
        given["attention_mask"] = mask
    if "use_cache" in accepted:
        given["use_cache"] = False
    if batch.padding_side == "left" and not bool(mask.all()) and "position_ids" in accepted:
        given["position_ids"] = (mask.cumsum(-1) - 1).clamp_min(0)
    return given


def run(hf: nn.Module, batch: Batch, **more: Any) -> Any:
    with torch.no_grad():
        return hf(**arguments(hf, batch), **more)


def own_layers(hf: nn.Module, batch: Batch) -> list[nn.Module]:
    """The type's own decoder layers that run on text, in order."""
    seen: list[nn.Module] = []
    handles = [m.register_forward_hook(lambda m, a, o: seen.append(m)) for m in hf.modules()]
    run(hf, batch)
    for handle in handles:
        handle.remove()
    called = list(dict.fromkeys(seen))
    for part in hf.modules():
        recorded = getattr(part, "_can_record_outputs", None) or {}
        kinds = recorded.get("hidden_states") if isinstance(part, PreTrainedModel) else None
        kinds = kinds if isinstance(kinds, (list, tuple)) else [kinds]
        classes = tuple(getattr(k, "target_class", k) for k in kinds if k is not None)
        classes = tuple(c for c in classes if inspect.isclass(c))
        found = [m for m in called if classes and isinstance(m, classes)]
        if len(found) > 1:
            order = {m: i for i, m in enumerate(hf.modules())}
            return sorted(found, key=lambda m: order[m])
    depth = getattr(hf.config.get_text_config(), "num_hidden_layers", None)
    lists = [
        list(m)
        for part in hf.modules()
        if len(
            beside := [
                m for m in part.children() if isinstance(m, nn.ModuleList) and len(m) == depth
            ]
        )
        == 1
        for m in beside
        if all(item in called for item in m)
    ]  # several lists side by side: a layer is no module
    size = lambda items: sum(p.numel() for m in items for p in m.parameters())  # noqa: E731
    return max(lists, key=size, default=[])


def floats(args: tuple[Any, ...], kwargs: dict[str, Any]) -> list[Tensor]:
    values = (*args, *kwargs.values())
    return [x for x in values if isinstance(x, Tensor) and x.is_floating_point()]


def first(output: Any) -> Tensor:
    while not isinstance(output, Tensor):
        output = next(x for x in (output.values() if hasattr(output, "values") else output)
                      if x is not None)  # fmt: skip
    return output


def with_first(output: Any, tensor: Tensor) -> Any:
    if isinstance(output, Tensor):
        return tensor
    if isinstance(output, tuple) and not hasattr(output, "_fields"):
        return (tensor, *output[1:])
    if isinstance(output, list):
        return [tensor, *output[1:]]
    changed = copy.copy(output)
    changed[next(iter(output))] = tensor
    return changed


class Hooks:
    """Hooks on a model, gone at the end of the ``with`` block."""

    def __init__(self) -> None:
        self.handles: list[Any] = []

    def __enter__(self) -> Hooks:
        return self

    def __exit__(self, *_: object) -> None:
        for handle in self.handles:
            handle.remove()

    def output(
        self, module: nn.Module, change: Callable[[Tensor], Tensor | None], turn: int = -1
    ) -> None:
        count = [-1]

        def hook(m: Any, args: Any, output: Any) -> Any:
            count[0] += 1
            if turn not in (-1, count[0]) or not has_tensor(output):
                return None
            new = change(first(output))
            return None if new is None else with_first(output, new)

        self.handles.append(module.register_forward_hook(hook))

    def input(self, module: nn.Module, change: Callable[[int, Tensor], Tensor | None]) -> None:
        """``change(which floating-point input, tensor)``."""

        def hook(m: Any, args: Any, kwargs: Any) -> Any:
            place, new_args, new_kwargs = 0, list(args), dict(kwargs)
            for holder, keys in ((new_args, range(len(args))), (new_kwargs, list(kwargs))):
                for key in keys:
                    if isinstance(holder[key], Tensor) and holder[key].is_floating_point():
                        new = change(place, holder[key])
                        holder[key] = holder[key] if new is None else new
                        place += 1
            return tuple(new_args), new_kwargs

        self.handles.append(module.register_forward_pre_hook(hook, with_kwargs=True))


def has_tensor(output: Any) -> bool:
    try:
        return first(output).is_floating_point()
    except (StopIteration, TypeError):
        return False


@dataclass
class Flow:
    """What entered and left each of the type's own layers in one pass."""

    entered: list[Tensor]
    places: list[int]
    left: list[Tensor]
    result: Any


def flow(subject: Subject, batch: Batch, hooks: Hooks | None = None) -> Flow:
    n = len(subject.layers)
    inputs: dict[int, list[Tensor]] = {}
    left: dict[int, Tensor] = {}
    with Hooks() as watch:
        for i, layer in enumerate(subject.layers):

            def enter(place: int, tensor: Tensor, i: int = i) -> None:
                inputs.setdefault(i, []).append(tensor.clone())

            def leave(tensor: Tensor, i: int = i) -> None:
                left[i] = tensor.clone()

            watch.input(layer, enter)
            watch.output(layer, leave)
        result = run(subject.hf, batch)
    places = [
        next((p for p, t in enumerate(inputs[i]) if t.shape == left[i].shape), 0) for i in range(n)
    ]
    return Flow(
        [inputs[i][p] for i, p in enumerate(places)], places, [left[i] for i in range(n)], result
    )


def as_rows(tensor: Tensor, n: int, pos: int) -> Tensor | None:
    """``[n, pos, d]`` of a tensor as a model lays it out."""
    shape = tuple(tensor.shape)
    if shape[:2] == (n, pos):
        return tensor.flatten(2)
    if len(shape) == 4 and shape[1:3] == (n, pos):
        return tensor.permute(1, 2, 0, 3).flatten(2)
    if shape[:2] == (pos, n):
        return tensor.transpose(0, 1)
    if shape[0] == n and len(shape) == 3 and shape[1] > pos:
        return tensor[:, -pos:]  # a learnt prompt in front
    if len(shape) == 2 and shape[0] == n * pos:
        return tensor.reshape(n, pos, -1)
    return None


def unpadded(tensor: Tensor, batch: Batch) -> list[Tensor] | None:
    _, mask = batch.padded(0)
    rows = as_rows(tensor, *mask.shape)
    if rows is None:
        return None
    return [rows[i][torch.from_numpy(np.asarray(mask[i])).bool()] for i in range(len(mask))]


def equal(ours: Any, theirs: list[Tensor] | None) -> bool:
    if theirs is None or len(ours) != len(theirs):
        return False
    return all(a.dtype == b.dtype and torch.equal(a, b) for a, b in zip(ours, theirs, strict=True))


def close(a: Tensor, b: Tensor, size: Tensor | None = None, ulps: float = 16) -> bool:
    """Equal up to rounding of numbers as large as the row's largest."""
    if a.shape != b.shape:
        return False
    scale = torch.maximum(a.abs(), b.abs()) if size is None else size.abs()
    return bool(
        ((a - b).abs() <= ulps * torch.finfo(a.dtype).eps * scale.amax(-1, keepdim=True)).all()
    )


def judge_refusal(name: str, message: str) -> dict[str, Verdict]:
    """Verdicts on a type that actscope refuses as a whole."""
    if name in NO_TOKEN_STREAM:
        return {kind: Verdict(ABSENT, NO_TOKEN_STREAM[name]) for kind in KINDS}
    return {kind: Verdict(UNAVAILABLE, message) for kind in KINDS}


def judge(name: str, model: Any) -> dict[str, Verdict]:
    """Verdicts on every kind of site of the table."""
    subject = Subject(name, model)
    subject.layers = own_layers(subject.hf, batch_of((7,)))
    verdicts: dict[str, Verdict] = {}
    if subject.layers and len(subject.layers) < len(subject.model._map.blocks.ran):
        raise AssertionError(
            f"only {len(subject.layers)} of {subject.model.n_layers} own layers found"
        )
    if subject.layers:
        verdicts |= residuals(subject)
        verdicts |= contributions(subject)
    else:
        verdicts |= residuals_by_hidden_states(subject)
        kinds = ("resid_mid", "attn_out", "mlp_out")
        verdicts |= {kind: unjudged_or(subject, kind) for kind in kinds}
    verdicts |= ends(subject)
    for kind in SITE_KINDS:
        if kind not in verdicts and kind != "pooler":
            verdicts[kind] = unjudged_or(subject, kind)
    return verdicts


def unjudged_or(subject: Subject, kind: str) -> Verdict:
    """For kinds that have no oracle here."""
    statuses = [s for site, s in subject.model.sites().items() if site.kind == kind]
    refused = [s.reason for s in statuses if not s.verified]
    return Verdict(UNAVAILABLE, refused[0]) if refused else Verdict(UNJUDGED)


def hidden_states(subject: Subject, batch: Batch) -> list[list[Tensor]]:
    """Hugging Face's own, as unpadded rows; asking for them leaves hooks behind, so from a copy."""
    twin = copy.deepcopy(subject.hf)
    try:
        states = run(twin, batch, output_hidden_states=True).hidden_states
    except (TypeError, AttributeError, ValueError):
        return []
    found = [unpadded(t, batch) for t in states or () if isinstance(t, Tensor)]
    return [rows for rows in found if rows is not None]


def residuals(subject: Subject) -> dict[str, Verdict]:
    """Plain hooks, Hugging Face's hidden states, and both padding sides."""
    batch = batch_for(subject)
    seen, model = flow(subject, batch), subject.model
    states = hidden_states(subject, batch)
    verdicts = {}
    own = list(range(len(subject.layers)))
    index = layer_numbers(subject)
    captured = model.capture(batch, sites=["resid_pre", "resid_post"])
    for kind, tensors in (("resid_pre", seen.entered), ("resid_post", seen.left)):
        wrong = [i for i in own if not equal(captured[kind, index[i]], unpadded(tensors[i], batch))]
        told = [
            i for i in own
            if not states or any(equal(captured[kind, index[i]], rows) for rows in states)
        ]  # fmt: skip
        # Some tuples begin behind the first block, most end behind the final norm, and where a
        # model rescales the stream between two blocks they hold what the second one receives.
        ends = own[:1] if kind == "resid_pre" else own[-1:]
        cut = [i for i in own[:-1] if not torch.equal(seen.left[i], seen.entered[i + 1])]
        excused = {*ends, *(cut if kind == "resid_post" else ())}
        untold = [i for i in own if i not in told and i not in excused]
        if wrong or len(own) > model.n_layers:
            verdicts[kind] = Verdict(WRONG, f"hooks on the type's own layers differ in {wrong}")
        elif untold:
            verdicts[kind] = Verdict(
                WRONG, f"not among Hugging Face's hidden_states: layers {untold}"
            )
        else:
            verdicts[kind] = padding(subject, kind)
    return verdicts


def layer_numbers(subject: Subject) -> list[int]:
    """The number of each of the type's own layers that ran: its place in its list."""
    numbers = []
    for layer in subject.layers:
        last = subject.paths[id(layer)].rsplit(".", 1)[-1]
        numbers.append(int(last) if last.isdigit() else len(numbers))
    return numbers if numbers == sorted(set(numbers)) else list(range(len(numbers)))


def residuals_by_hidden_states(subject: Subject) -> dict[str, Verdict]:
    """For types whose layers are no modules."""
    batch = batch_for(subject)
    states = hidden_states(subject, batch)
    captured = subject.model.capture(batch, sites=["resid_pre", "resid_post"])
    verdicts = {}
    for kind in ("resid_pre", "resid_post"):
        shift = 0 if kind == "resid_pre" else 1
        wrong = [
            i for i in range(subject.model.n_layers)
            if not states or not equal(captured[kind, i], states[i + shift])
        ]  # fmt: skip
        if wrong:
            verdicts[kind] = Verdict(WRONG, f"differs from hidden_states in layers {wrong}")
        else:
            verdicts[kind] = padding(subject, kind)
    return verdicts


def padding(subject: Subject, kind: str) -> Verdict:
    """Each text alone, beside others padded on the right, and padded on the left."""
    together = subject.model.capture(batch_of(LENGTHS), sites=[kind])
    try:
        left = subject.model.capture(batch_of(LENGTHS, "left"), sites=[kind])
    except Exception as error:  # a refusal is an answer; what it says goes into the table
        if type(error).__name__ not in ("BadInputError", "SiteUnavailableError"):
            raise
        left = None
    batch = batch_of(LENGTHS)
    for i, row in enumerate(batch.rows):
        alone = subject.model.capture(Batch.from_ids([row.token_ids]), sites=[kind])
        for name, other in (("right", together), ("left", left)):
            for site in alone.sites if other is not None else ():
                a, b = alone[site][0], other[site][i]
                allowed = 0.1 if a.dtype != torch.float32 else 2e-4
                if not torch.allclose(a, b, rtol=allowed, atol=allowed / 2 * float(a.abs().max())):
                    return Verdict(WRONG, f"{site} moves with padding on the {name}")
    return Verdict(VERIFIED, "" if left is not None else "padding on the left is refused")


@dataclass
class Fed:
    """A pass in which every layer gets its plain input and some parts are exchanged."""

    left: list[Tensor]


def fed(
    subject: Subject, batch: Batch, plain: Flow, prepare: Callable[[Hooks], None], step: float = 0.0
) -> list[Tensor]:
    """What leaves each layer when it gets its plain input (plus ``step``) under some hooks."""
    left: dict[int, Tensor] = {}
    with Hooks() as hooks:
        prepare(hooks)
        for i, layer in enumerate(subject.layers):

            def feed(place: int, tensor: Tensor, i: int = i) -> Tensor | None:
                if place != plain.places[i]:
                    return None
                return plain.entered[i] + (signs(tensor) * step if step else 0)

            def leave(tensor: Tensor, i: int = i) -> None:
                left[i] = tensor.clone()

            hooks.input(layer, feed)
            hooks.output(layer, leave)
        run(subject.hf, batch)
    return [left[i] for i in range(len(subject.layers))]


def signs(like: Tensor) -> Tensor:
    generator = torch.Generator().manual_seed(3)
    return (torch.randint(0, 2, like.shape, generator=generator) * 2 - 1).to(like.dtype)


def taps_of(subject: Subject, kind: str, layer: int) -> list[Any]:
    tap = subject.model._map.taps[Site(kind, layer)]
    return list(tap.parts) or [tap]


def silence(subject: Subject, hooks: Hooks, kind: str, layers: list[int]) -> None:
    """Zero what actscope calls a contribution, in the untouched copy."""
    for layer in layers:
        for tap in taps_of(subject, kind, layer):
            hooks.output(subject.hf.get_submodule(tap.path), torch.zeros_like, tap.turn)


def hold(
    subject: Subject, hooks: Hooks, kind: str, layers: list[int], values: dict[str, Tensor]
) -> None:
    """Keep a contribution at its plain value, whatever its module now reads."""
    for layer in layers:
        for tap in taps_of(subject, kind, layer):
            value = values[tap.path]
            hooks.output(subject.hf.get_submodule(tap.path), lambda _, v=value: v, tap.turn)


def contributions(subject: Subject) -> dict[str, Verdict]:
    """Zero them; where actscope offers none, ask whether there is such a thing."""
    batch, index = batch_of((9, 9)), layer_numbers(subject)
    plain = flow(subject, batch)
    statuses = subject.model.sites()
    has = {
        kind: [i for i, n in enumerate(index) if statuses[Site(kind, n)].verified]
        for kind in ("attn_out", "mlp_out", "resid_mid")
    }
    judged = Judged(subject, batch, plain, index, has)
    return {kind: judged.verdict(kind) for kind in has}


@dataclass
class Judged:
    subject: Subject
    batch: Batch
    plain: Flow
    index: list[int]
    has: dict[str, list[int]]

    def numbers(self, kind: str) -> list[int]:
        return [self.index[i] for i in self.has[kind]]

    def rows(self, tensor: Tensor) -> Tensor:
        rows = as_rows(tensor, *self.batch.padded(0)[0].shape)
        assert rows is not None
        return rows

    @cached_property
    def values(self) -> dict[str, Tensor]:
        """What the modules of the contributions return in a plain pass."""
        values: dict[str, Tensor] = {}
        with Hooks() as hooks:
            for kind in ("attn_out", "mlp_out"):
                for number in self.numbers(kind):
                    for tap in taps_of(self.subject, kind, number):

                        def keep(tensor: Tensor, path: str = tap.path) -> None:
                            values[path] = tensor.clone()

                        hooks.output(self.subject.hf.get_submodule(tap.path), keep, tap.turn)
            run(self.subject.hf, self.batch)
        return values

    @cached_property
    def captured(self) -> dict[str, dict[int, Tensor]]:
        found: dict[str, dict[int, Tensor]] = {}
        for kind in self.has:
            sites = [Site(kind, n) for n in self.numbers(kind)]
            got = self.subject.model.capture(self.batch, sites=sites) if sites else None
            found[kind] = (
                {n: torch.stack(list(got[kind, n])) for n in self.numbers(kind)} if got else {}
            )
        return found

    def verdict(self, kind: str) -> Verdict:
        wrong = self.mid() if kind == "resid_mid" else self.zeroed(kind)
        if wrong:
            return Verdict(WRONG, wrong)
        missing = [i for i in range(len(self.index)) if i not in self.has[kind]]
        absent = {i: self.absence(kind, i) for i in missing}
        open_ones = [i for i in missing if not absent[i]]
        statuses = self.subject.model.sites()
        if open_ones:
            reason = statuses[Site(kind, self.index[open_ones[0]])].reason
            some = (
                ""
                if len(open_ones) == len(self.index)
                else f"in {len(open_ones)} of {len(self.index)} blocks: "
            )
            return Verdict(UNAVAILABLE, some + reason)
        if self.has[kind] and missing:
            places = ", ".join(str(self.index[i]) for i in missing)
            return Verdict(VERIFIED, f"not in blocks {places}: {absent[missing[0]]}")
        if self.has[kind]:
            return Verdict(VERIFIED)
        return Verdict(ABSENT, absent[missing[0]] if missing else "")

    def zeroed(self, kind: str) -> str:
        """Without the contribution, all else as it was, the output is less by exactly that."""
        other = "mlp_out" if kind == "attn_out" else "attn_out"

        def prepare(hooks: Hooks) -> None:
            hold(self.subject, hooks, other, self.numbers(other), self.values)
            silence(self.subject, hooks, kind, self.numbers(kind))

        if not self.has[kind]:
            return ""
        left = fed(self.subject, self.batch, self.plain, prepare)
        for i in self.has[kind]:
            number = self.index[i]
            ours = self.captured[kind][number]
            with_it, without = self.rows(self.plain.left[i]), self.rows(left[i])
            if float(ours.abs().max()) < 1e-3 * float(with_it.abs().max()):
                return f"layer {number}: the contribution is nothing"
            size = torch.maximum(with_it.abs(), ours.abs())
            if not close(without + ours, with_it, size):
                gap = float((without + ours - with_it).abs().max())
                return (
                    f"layer {number}: without it the output changes by something else ({gap:.2g})"
                )
            name = taps_of(self.subject, kind, number)[0].path.lower().split(".")[-2:]
            if looks_like(other, ".".join(name)) and not looks_like(kind, ".".join(name)):
                return f"layer {number}: {'.'.join(name)} is named like {other}"
        return self.nothing_left()

    def nothing_left(self) -> str:
        """Without any contribution a block returns what it received."""

        def prepare(hooks: Hooks) -> None:
            for kind in ("attn_out", "mlp_out"):
                silence(self.subject, hooks, kind, self.numbers(kind))

        left = fed(self.subject, self.batch, self.plain, prepare)
        statuses = self.subject.model.sites()
        for i, number in enumerate(self.index):
            whole = all(
                i in self.has[kind] or self.is_lone(statuses, number)
                for kind in ("attn_out", "mlp_out")
            )
            if whole and not torch.equal(left[i], self.plain.entered[i]):
                return f"layer {number}: without attn_out and mlp_out something is still added"
        return ""

    def is_lone(self, statuses: Any, number: int) -> bool:
        return sum(statuses[Site(k, number)].verified for k in ("attn_out", "mlp_out")) == 1

    def mid(self) -> str:
        """Without the MLP a block returns ``resid_mid``; a normed one determines the output."""

        def prepare(hooks: Hooks) -> None:
            silence(self.subject, hooks, "mlp_out", self.numbers("mlp_out"))

        if not self.has["resid_mid"]:
            return ""
        left = fed(self.subject, self.batch, self.plain, prepare)
        for i in self.has["resid_mid"]:
            number = self.index[i]
            if i in self.has["mlp_out"]:
                if not close(self.captured["resid_mid"][number], self.rows(left[i])):
                    return f"layer {number}: without the MLP the block returns something else"
            elif not self.mid_determines(i, number):
                return f"layer {number}: it does not determine what the block returns"
        return ""

    def mid_determines(self, i: int, number: int) -> bool:
        """Exchange it for another text's: the block returns what it returned for that text."""
        tap = self.subject.model._map.taps[Site("resid_mid", number)]
        other = Batch.from_ids([r.token_ids[::-1] for r in self.batch.rows])
        there = flow(self.subject, other)
        kept: list[Tensor] = []
        module = self.subject.hf.get_submodule(tap.path)
        with Hooks() as hooks:
            hooks.output(module, lambda t: kept.append(t.clone()), tap.turn)
            run(self.subject.hf, other)

        def prepare(hooks: Hooks) -> None:
            hooks.output(module, lambda _: kept[0], tap.turn)

        left = fed(self.subject, self.batch, self.plain, prepare)
        return tap.side == "output" and close(left[i], there.left[i])

    @cached_property
    def additive(self) -> list[bool]:
        """Whether a layer, all its parts held still, hands a change of its input on unchanged."""
        values: dict[nn.Module, list[Tensor]] = {}
        inner = {m for layer in self.subject.layers for m in layer.modules()} - set(
            self.subject.layers
        )
        with Hooks() as hooks:
            for module in inner:
                hooks.output(module, lambda t, m=module: values.setdefault(m, []).append(t.clone()))
            run(self.subject.hf, self.batch)

        def prepare(hooks: Hooks) -> None:
            for module, held in values.items():
                if len(held) == 1:
                    hooks.output(module, lambda _, v=held[0]: v)

        left = fed(self.subject, self.batch, self.plain, prepare, step=STEP)
        return [
            close(a - b, signs(a) * STEP, torch.maximum(a.abs(), b.abs()))
            for a, b in zip(left, self.plain.left, strict=True)
        ]

    def absence(self, kind: str, i: int) -> str:
        """Why there is no such thing in this layer; empty where there may be one."""
        number, statuses = self.index[i], self.subject.model.sites()
        if not self.additive[i]:
            return "the block normalises or rescales the stream after adding to it"
        if self.is_lone(statuses, number):
            return "the block adds one thing"  # nothing_left has shown it
        if kind == "resid_mid" and i in self.has["attn_out"] and self.is_parallel(i):
            return "attention and MLP read one input"
        return ""

    def is_parallel(self, i: int) -> bool:
        """Whether the MLP adds the same without attention."""

        def prepare(hooks: Hooks) -> None:
            silence(self.subject, hooks, "attn_out", self.numbers("attn_out"))

        left = fed(self.subject, self.batch, self.plain, prepare)
        attn = self.captured["attn_out"][self.index[i]]
        return close(self.rows(left[i]) + attn, self.rows(self.plain.left[i]))


def looks_like(kind: str, name: str) -> bool:
    words = {
        "attn_out": ("attn", "attention", "mamba", "conv", "rnn", "recurrent", "temporal", "xl"),
        "mlp_out": ("mlp", "ffn", "feed_forward", "fc1", "fc2", "moe", "expert"),
    }
    return any(word in name for word in words[kind])


def ends(subject: Subject) -> dict[str, Verdict]:
    """The embedding's own output, the base model's last hidden state, and the logits."""
    batch, model, hf = batch_for(subject), subject.model, subject.hf
    embedding = hf.get_input_embeddings()
    embedding = embedding[0] if isinstance(embedding, nn.ModuleList) else embedding
    decoder = hf.get_decoder() if callable(getattr(hf, "get_decoder", None)) else None
    named = getattr(hf, getattr(hf, "base_model_prefix", "") or "", None)
    parts = (decoder, named, getattr(hf, "model", None))
    bases = [m for m in parts if isinstance(m, PreTrainedModel) and m is not hf] or [hf]
    caught: dict[Any, Tensor] = {}
    with Hooks() as hooks:
        for module in {embedding, *bases}:

            def keep(tensor: Tensor, module: Any = module) -> None:
                caught[module] = tensor.clone()

            hooks.output(module, keep)
        result = run(hf, batch)
    last = next((caught[m] for m in bases if m in caught), None)
    statuses = {s.kind: status for s, status in model.sites().items() if s.layer is None}
    logits = getattr(result, "logits", None)
    return {
        "embed": one_end(subject, "embed", statuses, caught.get(embedding), batch),
        "ln_final": final_norm(subject, statuses, last, batch),
        "logits": Verdict(ABSENT, "built without a head") if logits is None
        else one_end(subject, "logits", statuses, logits, batch),
    }  # fmt: skip


def one_end(
    subject: Subject, kind: str, statuses: Any, theirs: Tensor | None, batch: Batch
) -> Verdict:
    if not statuses[kind].verified:
        return Verdict(UNAVAILABLE, statuses[kind].reason)
    ours = subject.model.capture(batch, sites=[kind])[kind]
    rows = None if theirs is None else unpadded(theirs, batch)
    return (
        Verdict(VERIFIED) if equal(ours, rows) else Verdict(WRONG, "differs from the model's own")
    )


def final_norm(subject: Subject, statuses: Any, base: Tensor | None, batch: Batch) -> Verdict:
    """The base model's last hidden state is behind the final norm, if there is one."""
    if base is None:
        return Verdict(UNAVAILABLE, "no base model to compare with")
    theirs = unpadded(base, batch)
    stream = subject.model.capture(batch, sites=["resid_post"], layers=[-1])[
        "resid_post", subject.model.n_layers - 1
    ]
    if not statuses["ln_final"].verified:
        if theirs is not None and equal(stream, theirs):
            return Verdict(ABSENT, "nothing normalises the last block's output")
        return Verdict(UNAVAILABLE, statuses["ln_final"].reason)
    return one_end(subject, "ln_final", statuses, base, batch)
