"""Contributions and ``resid_mid``: set to zero in an untouched copy, the output must follow."""

from __future__ import annotations

from dataclasses import dataclass
from functools import cached_property
from typing import Any

import torch
from coverage_subject import (
    ABSENT,
    UNAVAILABLE,
    VERIFIED,
    WRONG,
    Flow,
    Hooks,
    Subject,
    Tensor,
    Verdict,
    as_rows,
    batch_of,
    close,
    fed,
    flow,
    layer_numbers,
    run,
    signs,
)
from torch import nn

from actscope import Batch, Site

STEP = 64.0  # larger than any stream here, so that a factor shows in half precision too


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
