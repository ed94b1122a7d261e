"""mlp_pre, mlp_post and router, judged by the type's own modules.

``mlp_post`` must enter a linear map of the block, and zeros in some neurons take exactly that map's
columns out of a sum in the block. ``mlp_pre`` is changed where a linear map of the block returns
it: only the changed neurons of ``mlp_post`` may follow, each by the ratio of the type's own
activation function (the other factor of a gated MLP would follow in proportion). ``router`` is what
Hugging Face records as ``router_logits``, else the output of the type's own gate. Whether a block
has an MLP or a mixture of experts is read off its own code: the names of its classes and parts.
"""

from __future__ import annotations

import inspect
import re
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from functools import cached_property
from typing import Any

import torch
import torch.nn.functional as F
from coverage_attention import alike, tolerance
from coverage_exchange import Exchange, Reading, Readings, close_to
from coverage_references import REFERENCES
from coverage_subject import (
    ABSENT,
    UNAVAILABLE,
    UNJUDGED,
    VERIFIED,
    WRONG,
    Flow,
    Hooks,
    Subject,
    Tensor,
    Verdict,
    as_rows,
    batch_of,
    flow,
    layer_numbers,
    run,
)
from torch import nn
from transformers import PreTrainedModel
from transformers.activations import ACT2FN

from actscope import Site

__all__ = ["MLP_KINDS", "mlps", "structure"]

MLP_KINDS = ("mlp_pre", "mlp_post", "router")
MLP_PART = re.compile(
    r"mlp\w*|\w*_mlp|ffn\w*|\w*ffn|\w*feed_?forward\w*|fc_?[12i]|intermediate|lin1|ff", re.I
)
MLP_CLASS = re.compile(r".*(MLP|FeedForward|FFN|LayerFF|DenseAct|DenseGated).*")
EXPERT_CLASS = re.compile(r"Experts$|Top[kK](Router|Gating)|MoE$|SparseMoe|MoeBlock")
ACTS = ("act", "act_fn", "activation_fn", "activation", "intermediate_act_fn", "gelu_impl",
        "activation_function", "nonlinearity")  # fmt: skip
COUNTS = ("num_experts", "num_local_experts", "n_routed_experts", "moe_num_experts",
          "num_routed_experts", "n_experts")  # fmt: skip
EXPERTS = "a mixture of experts: every token goes through neurons of other experts"


def mlps(subject: Subject) -> dict[str, Verdict]:
    """Verdicts on the sites inside MLPs."""
    judged = Judged(subject)
    return {kind: judged.verdict(kind) for kind in MLP_KINDS}


@dataclass
class Judged:
    """The MLPs of one model."""

    subject: Subject

    @cached_property
    def index(self) -> list[int]:
        return layer_numbers(self.subject)

    @cached_property
    def statuses(self) -> Any:
        return self.subject.model.sites()

    @cached_property
    def batch(self) -> Any:
        return batch_of((9, 9))

    @cached_property
    def plain(self) -> Flow:
        return flow(self.subject, self.batch)

    @cached_property
    def captured(self) -> Any:
        sites = [
            Site(kind, n)
            for kind in MLP_KINDS
            for n in self.index
            if self.statuses[Site(kind, n)].verified
        ]
        return self.subject.model.capture(self.batch, sites=sites) if sites else None

    def rows(self, kind: str, layer: int) -> Tensor:
        return torch.stack(list(self.captured[kind, self.index[layer]]))

    def has(self, kind: str, layer: int) -> bool:
        return self.statuses[Site(kind, self.index[layer])].verified

    @cached_property
    def structure(self) -> list[str]:
        """``mlp``, ``experts`` or nothing for each own layer."""
        return [structure(layer, self.routers) for layer in self.subject.layers]

    @cached_property
    def routers(self) -> tuple[type, ...]:
        return tuple(kind for kind, _ in recorders(self.subject.hf))

    def verdict(self, kind: str) -> Verdict:
        wanted = "experts" if kind == "router" else "mlp"
        applicable = [i for i, s in enumerate(self.structure) if s == wanted]
        offered = [i for i in range(len(self.index)) if self.has(kind, i)]
        unjudged = ""
        for layer in offered:
            problem = getattr(self, f"judge_{kind}")(layer)
            if problem.startswith("?"):
                unjudged = f"layer {self.index[layer]}: {problem[1:]}"
            elif problem:
                return Verdict(WRONG, f"layer {self.index[layer]}: {problem}")
        phantom = [self.index[i] for i in offered if i not in applicable]
        if phantom:
            return Verdict(WRONG, f"offered in blocks {phantom}, which have no {wanted}")
        missing = [self.index[i] for i in applicable if i not in offered]
        if missing:
            some = "" if not offered else f"in {len(missing)} of {len(applicable)} blocks: "
            return Verdict(UNAVAILABLE, some + self.statuses[Site(kind, missing[0])].reason)
        if unjudged:
            return Verdict(UNJUDGED, unjudged)
        if not applicable:
            return Verdict(ABSENT, self.why_none(kind))
        others = [n for i, n in enumerate(self.index) if i not in applicable]
        return Verdict(VERIFIED, f"not in blocks {', '.join(map(str, others))}" if others else "")

    def why_none(self, kind: str) -> str:
        if kind == "router":
            return "no block has experts"
        return EXPERTS if "experts" in self.structure else "no block has an MLP of its own"

    def exchange(self, layer: int) -> Exchange:
        return Exchange(self.subject, self.batch, self.plain, layer)

    def judge_mlp_post(self, layer: int) -> str:
        rows, exchange = self.rows("mlp_post", layer), self.exchange(layer)
        reading = exchange.linear_reading(rows)
        if reading is None:
            return "no linear map of the block receives it"
        if not MLP_PART.search(reading.path) and re.search("attn|attention", reading.path):
            return f"{reading.path}, which receives it, is named like attention"
        width = rows.shape[-1]
        for chosen in ([0], list(range(1, width, 3)), list(range(width))):
            problem = exchange.removed(reading, chosen)
            if problem:
                return problem
        if not self.acts_alone(exchange, reading):
            return "it looks at other tokens"
        return self.by_reference("mlp_post", layer)

    def acts_alone(self, exchange: Exchange, reading: Reading) -> bool:
        """Whether a change of one token where the MLP begins stays at that token.

        The MLP begins at the first linear map whose columns, through no other linear map, make
        ``mlp_post``: of those before ``reading`` the last one.
        """
        place = exchange.readings.index(reading)
        makers = [
            r
            for r in exchange.readings[:place]
            if isinstance(r.module, nn.Linear) or type(r.module).__name__ == "Conv1D"
        ]
        if not makers or makers[-1].returned is None:
            return True

        def change(tensor: Tensor) -> Tensor:
            changed = tensor.clone()
            rows = as_rows(changed, *self.batch.padded(0)[0].shape)
            assert rows is not None
            rows[:, 4] += 1.0
            return changed

        now = exchange.with_output(makers[-1], change)[reading.key].received
        assert now is not None and reading.received is not None
        others = [t for t in range(now.shape[1]) if t != 4]
        return close_to(now[:, others], reading.received[:, others])

    def judge_mlp_pre(self, layer: int) -> str:
        """Change some neurons where a linear map returns them, and see mlp_post follow."""
        if not self.has("mlp_post", layer):
            return "?mlp_post is not offered"
        exchange = self.exchange(layer)
        pre, post = self.rows("mlp_pre", layer), self.rows("mlp_post", layer)
        if pre.shape != post.shape:
            return f"{pre.shape[-1]} neurons, and mlp_post has {post.shape[-1]}"
        reading = exchange.linear_reading(post)
        chosen = list(range(0, pre.shape[-1], 5))
        made = None if reading is None else self.changed(exchange, reading, pre, chosen)
        if reading is None or made is None:
            return "no module of the block returns or receives it"
        after, factor = made
        old_pre = pre[..., chosen].double()
        new_pre = (old_pre / factor * 0.5 + 0.25) * factor
        change_of = Followed(chosen, old_pre, new_pre, activations(self.subject, exchange.block))
        for r in [reading, *exchange.readings]:  # a norm may stand in front of the last map
            now = after[r.key].received if r.key in after else None
            if r.received is None or now is None or r.received.shape != pre.shape:
                continue
            if change_of(r.received, now):
                return self.by_reference("mlp_pre", layer)
        return "mlp_post does not follow by the type's own activation function"

    def changed(
        self, exchange: Exchange, reading: Reading, pre: Tensor, chosen: list[int]
    ) -> tuple[Readings, float] | None:
        """The block with some neurons changed where they are made, and what they are times."""

        def change(tensor: Tensor, columns: list[int]) -> Tensor:
            changed = tensor.clone()
            changed[..., columns] = changed[..., columns] * 0.5 + 0.25
            return changed

        made = exchange.maker(pre, reading)
        if made is not None:
            maker, places, factor = made
            columns = [places[i] for i in chosen]
            return exchange.with_output(maker, lambda t: change(t, columns)), factor
        for r in exchange.readings:  # something lies between: a sparsity, a clamp
            same = r.received is not None and r.received.shape == pre.shape
            if same and torch.equal(r.received, pre) and r is not reading:
                return exchange.with_input(r, lambda t: change(t, chosen))[0], 1.0
        return None

    def judge_router(self, layer: int) -> str:
        """What Hugging Face records as router logits, or the own gate's output."""
        ours = self.rows("router", layer).flatten(0, 1)
        counts = {getattr(c, n, None) for c in configs(self.subject.hf.config) for n in COUNTS}
        if ours.shape[-1] not in counts and ours.shape[-1] - 1 not in counts:
            return f"{ours.shape[-1]} logits, and the configuration has {counts - {None}} experts"
        recorded = self.recorded(layer, ours.shape)
        if not recorded:
            return "?nothing that Hugging Face records or a gate returns has this shape"
        kind = torch.float32
        forms = (ours, ours.to(kind).softmax(-1), ours.to(kind).sigmoid())
        if any(alike(form, theirs, tolerance(ours)) for form in forms for theirs in recorded):
            return ""
        return "not what Hugging Face records as the router's logits"

    def recorded(self, layer: int, shape: tuple[int, ...]) -> list[Tensor]:
        found: list[Tensor] = []
        block = self.subject.layers[layer]
        with Hooks() as hooks:
            for kind, index in recorders(self.subject.hf):
                for module in block.modules():
                    if isinstance(module, kind):
                        hooks.handles.append(module.register_forward_hook(_keep(found, index)))
            if not hooks.handles:
                for path, module in block.named_modules():
                    if re.search(r"(^|\.)(gate|router)(\.\w+)?$", path):
                        hooks.handles.append(module.register_forward_hook(_keep(found, None)))
            run(self.subject.hf, self.batch)
        return [t.reshape(shape) for t in found if t.numel() == shape[0] * shape[1]]

    def by_reference(self, kind: str, layer: int) -> str:
        """A reference written by hand, for the families that have one."""
        reference = REFERENCES.get(self.subject.name)
        if reference is None or self.subject.dtype != torch.float32:
            return ""
        ours = self.rows(kind, layer)
        for example in range(2):
            pre = self.plain.entered[layer][example].double().numpy()
            made = torch.from_numpy(reference(self.subject.hf, layer, pre)[kind])
            if not alike(ours[example], made, tolerance(ours)):
                return "not what the reference written by hand computes"
        return ""


@dataclass(frozen=True)
class Followed:
    """Whether some neurons, and only they, followed a change by the ratio of an activation."""

    chosen: list[int]
    before: Tensor
    after: Tensor
    acts: list[Callable[[Tensor], Tensor]]

    def __call__(self, old: Tensor, new: Tensor) -> bool:
        others = [i for i in range(old.shape[-1]) if i not in self.chosen]
        if torch.equal(old, new) or not close_to(new[..., others], old[..., others]):
            return False
        allowed = 0.05 if old.dtype != torch.float32 else 1e-4
        a, b = old[..., self.chosen].double(), new[..., self.chosen].double()
        for act in self.acts:
            ratio = (a * act(self.after), b * act(self.before))
            size = (ratio[0].abs() + ratio[1].abs()).max()
            if float((ratio[0] - ratio[1]).abs().max()) <= allowed * float(size):
                return True
        return False


def _keep(found: list[Tensor], index: int | None) -> Callable[..., None]:
    def hook(module: Any, args: Any, output: Any) -> None:
        parts = output if isinstance(output, (tuple, list)) else (output,)
        parts = parts if index is None else parts[index : index + 1]
        found.extend(t.clone() for t in parts if isinstance(t, Tensor) and t.is_floating_point())

    return hook


def recorders(hf: nn.Module) -> list[tuple[type, int]]:
    """The classes, and which of their outputs, that transformers records as router logits."""
    found: list[tuple[type, int]] = []
    for part in hf.modules():
        said = (
            getattr(part, "_can_record_outputs", None) if isinstance(part, PreTrainedModel) else 0
        )
        specs = (said or {}).get("router_logits")
        for spec in specs if isinstance(specs, (list, tuple)) else [specs]:
            kind = getattr(spec, "target_class", None)
            if inspect.isclass(kind) and (kind, spec.index) not in found:
                found.append((kind, spec.index))
    return found


def structure(layer: nn.Module, routers: tuple[type, ...]) -> str:
    """``experts``, ``mlp`` or nothing, by the names of a layer's classes and parts."""
    parts = list(layer.named_modules())
    if any(routers and isinstance(m, routers) for _, m in parts):
        return "experts"
    if any(EXPERT_CLASS.search(type(m).__name__) or p.endswith("experts") for p, m in parts if p):
        return "experts"
    for path, module in parts:
        if path and MLP_CLASS.match(type(module).__name__):
            return "mlp"
        if any(MLP_PART.fullmatch(word) for word in path.split(".") if word):
            return "mlp"
    return ""


def configs(config: Any) -> Iterator[Any]:
    """A configuration and those inside it."""
    yield config
    for value in vars(config).values():
        if hasattr(value, "to_dict"):
            yield from configs(value)


def activations(subject: Subject, block: nn.Module) -> list[Callable[[Tensor], Tensor]]:
    """The type's own activation functions, by the names that its code and configuration use."""
    found: list[Any] = []
    for module in block.modules():
        found += [a for name in ACTS if callable(a := getattr(module, name, None))]
    for config in configs(subject.hf.config):
        for name, value in vars(config).items():
            named = isinstance(value, str) and re.search("act|ffn|feed_forward", name)
            if named and value in ACT2FN:
                found.append(ACT2FN[value])
    found += [m for m in block.modules() if not list(m.children()) and not list(m.parameters())]
    for module in block.modules():
        if not isinstance(module, (nn.ModuleList, nn.Sequential)):
            code = inspect.getsource(type(module))
            found += [getattr(F, name) for name in re.findall(r"\bF\.(silu|gelu|relu)\(", code)]
    found += [F.gelu] if not found else []

    def applied(act: Any) -> Callable[[Tensor], Tensor]:
        return lambda x: act(x.to(subject.dtype)).double()

    return [applied(act) for act in found if bends(act, subject.dtype)]


def bends(act: Any, dtype: torch.dtype) -> bool:
    """Whether a function of one tensor is not linear: dropout and identities are no activation."""
    x = torch.linspace(-2, 2, 9, dtype=dtype).reshape(3, 3)
    try:
        one, other = act(x), act(-x)
    except (TypeError, ValueError, RuntimeError, IndexError, AttributeError):
        return False
    tensors = isinstance(one, Tensor) and isinstance(other, Tensor) and one.shape == x.shape
    return tensors and not bool(torch.allclose(one, -other, atol=1e-2))
