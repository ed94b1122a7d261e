"""Interventions on a running model: a context, what it did, and the hooks behind it."""

from __future__ import annotations

import threading
import warnings
from collections.abc import Callable, Generator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from types import TracebackType
from typing import TYPE_CHECKING, Any

import torch
from torch import nn

from actscope.backends.hf.effects import Effect, Tally
from actscope.backends.hf.exclusive import on_entering
from actscope.backends.hf.passes import Bools, Ints, Pass, PassReader, direct_pass
from actscope.backends.hf.resolve import ModelMap, Tap
from actscope.backends.hf.stacks import reads_two_texts
from actscope.backends.hf.unfolding import are_special
from actscope.backends.hf.write_checks import check_write
from actscope.backends.hf.writing import Change, WritePoint, install, working, write_point
from actscope.core.activations import Batch
from actscope.core.errors import BadInputError, RunError
from actscope.core.protocols import Intervention, SitePlace
from actscope.core.sites import Site
from actscope.interventions import tokens_in_words

if TYPE_CHECKING:
    from actscope.backends.hf.model import HFModel

__all__ = ["Applied", "Interventions"]


@dataclass
class _Step:
    """One intervention at one site."""

    place: int  # of the intervention among those of its context
    intervention: Intervention
    site: Site
    point: WritePoint
    tally: Tally


class Applied:
    """Interventions on a model while a ``with`` block runs; ``model.intervene`` makes one.

    Every forward pass inside is changed, whatever started it. On exit the model is as it was,
    also after an exception or Ctrl-C. It warns where passes ran and an intervention changed none.
    """

    def __init__(self, owner: Interventions, interventions: Sequence[Intervention]) -> None:
        self._owner = owner
        self._asked = tuple(interventions)
        self._steps: list[_Step] = []
        self.passes = 0

    def __enter__(self) -> Applied:
        self._owner.enter(self)
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        value: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        self._owner.leave(self)
        if kind is None and self.passes and (idle := self.idle()):
            warnings.warn(
                f"{self.passes} forward passes ran and never met {'; '.join(idle)}", stacklevel=2
            )

    def __str__(self) -> str:
        return "\n".join(str(effect) for effect in self.effects)

    @property
    def asked(self) -> tuple[Intervention, ...]:
        """The interventions, in order."""
        return self._asked

    @property
    def steps(self) -> list[_Step]:
        """One an intervention and site, in order; filled on entry."""
        return self._steps

    @property
    def effects(self) -> list[Effect]:
        """What each intervention did at each of its sites so far."""
        return [step.tally.effect(repr(step.intervention), step.site) for step in self._steps]

    def idle(self) -> list[str]:
        """Interventions that changed no token at any site."""
        used = {step.place for step in self._steps if step.tally.passes}
        words = {step.place: repr(step.intervention) for step in self._steps}
        return [text for place, text in words.items() if place not in used]

    def check(self) -> None:
        """Make sure that every intervention did something at every site.

        Raises:
            RunError: one never fired.
        """
        unused = [effect for effect in self.effects if not effect.passes]
        if unused or not self._steps:
            raise RunError(
                "an intervention never fired",
                got=f"{self.passes} forward passes; " + "; ".join(str(e) for e in unused),
                next_step="run the model inside the context, deep enough and with tokens that "
                "are chosen",
            )

    def describe(self) -> list[Mapping[str, Any]]:
        """JSON: what is done to the model, in order."""
        done: dict[int, dict[str, Any]] = {}
        for step in self._steps:
            what = step.intervention
            tokens = tokens_in_words(what.chosen)
            entry: dict[str, Any] = {"name": what.name, "sites": [], "tokens": tokens}
            done.setdefault(step.place, {**entry, **what.params})["sites"].append(str(step.site))
        return list(done.values())


class Interventions:
    """The interventions of one model: which are active, and which token is where in each pass.

    Args:
        model: The wrapped model.
        found: Gives its map, which is another one with an adapter on.
        tap: Where a site is read; raises where it is not.
    """

    def __init__(
        self, model: HFModel, found: Callable[[], ModelMap], tap: Callable[[Site], Tap]
    ) -> None:
        self._model = model
        self._map = found
        self._tap = tap
        self._active: list[Applied] = []
        self._handles: list[Any] = []
        self._thread: int | None = None
        self._reader: PassReader | None = None
        self._pass: Pass | None = None
        self._suspended = False
        self._writable: set[tuple[str | None, Site]] = set()

    def describe(self) -> tuple[Mapping[str, Any], ...]:
        """JSON: everything that is done to the model now, in order."""
        if self._suspended:
            return ()
        return tuple(entry for applied in self._active for entry in applied.describe())

    def apply(self, interventions: Sequence[object]) -> Applied:
        """Check what can be checked without running the model.

        Raises:
            BadInputError: nothing to apply, no such layer, another width.
            SiteUnavailableError: a site that this model has not or that cannot be changed.
        """
        if not interventions:
            raise BadInputError("there is nothing to apply: no intervention")
        ready: list[Intervention] = []
        for what in interventions:
            if not isinstance(what, Intervention) or isinstance(what, type):
                raise BadInputError(
                    "not an intervention",
                    got=repr(what)[:80],
                    expected="Add, Ablate, Clamp or Patch",
                )
            what.bind(self._places(what), None)
            ready.append(what)
        return Applied(self, ready)

    def _places(self, what: Intervention) -> list[SitePlace]:
        """Its sites, each of which can be changed as far as is known without running."""
        model, (site, layers) = self._model, what.where
        places: list[SitePlace] = []
        for found in model.expand(site if isinstance(site, str) else [site], layers):
            self.point(found)
            width, heads = model.width(found), model.heads(found)
            places.append(SitePlace(found, width, width // heads if heads else None))
        return places

    def point(self, site: Site) -> WritePoint:
        """Where a site is changed.

        Raises:
            SiteUnavailableError: this model has it not, or it cannot be changed.
        """
        return write_point(self._map(), site, self._tap(site))

    def checked_point(self, site: Site) -> WritePoint:
        """The same, after a change was seen to arrive: by value, once for each site."""
        point = self.point(site)
        checked = (self._model.active_adapter, site)
        if checked not in self._writable:
            with self.suspended():
                check_write(self._model, site, point)
            self._writable.add(checked)
        return point

    def enter(self, applied: Applied) -> None:
        """Put its hooks in place, after those of contexts that are open already.

        Raises:
            BadInputError: another thread has interventions in place, or it is open already.
        """
        self._refuse_other_thread("open an intervention")
        if applied in self._active:
            raise BadInputError("this context is open already", next_step="make a second one")
        steps: list[_Step] = []
        for index, what in enumerate(applied.asked):
            places = self._places(what)
            points = [self.checked_point(place.site) for place in places]
            bound = what.bind(places, self._model.capture)
            for place, point in zip(places, points, strict=True):
                tally = Tally(bound.axis(place.width))
                steps.append(_Step(index, bound, place.site, point, tally))
        applied.steps[:] = steps
        applied.passes = 0
        self._thread = threading.get_ident()
        self._active.append(applied)
        try:
            self._install()
        except BaseException:
            self.leave(applied)
            raise

    def leave(self, applied: Applied) -> None:
        """Take its hooks away; what else is open stays in place."""
        self._remove()
        if applied in self._active:
            self._active.remove(applied)
        if self._active:
            self._install()
        else:
            self._thread = None

    def lift(self) -> None:
        """Take all hooks off, because modules are about to be exchanged.

        Raises:
            BadInputError: another thread has interventions in place.
        """
        self._refuse_other_thread("switch an adapter")
        self._remove()

    def follow(self) -> None:
        """Put the hooks where the sites of the model are now.

        Raises:
            SiteUnavailableError: one of them cannot be changed there.
        """
        for applied in self._active:
            for step in applied.steps:
                step.point = self.checked_point(step.site)
        if self._active:
            self._install()

    def _remove(self) -> None:
        for handle in self._handles:
            handle.remove()
        self._handles.clear()
        self._pass = None

    def _install(self) -> None:
        self._remove()
        root = self._model.hf
        keep = self._handles.append
        keep(on_entering(root, self._begin, prepend=True))
        keep(root.register_forward_hook(self._end, always_call=True))
        changes = [
            (step.point, self._change(step)) for applied in self._active for step in applied.steps
        ]
        install(self._model.hf, changes, self._handles)

    def _change(self, step: _Step) -> Change:
        def change(tensor: torch.Tensor) -> torch.Tensor | None:
            if self._suspended or threading.get_ident() != self._thread:
                return None  # another thread's pass began before this context
            current = self._pass
            if current is None:
                return None  # a module called by itself, outside a forward pass
            return _changed(tensor, step, current)

        return change

    def _begin(self, module: nn.Module, args: tuple[Any, ...], kwargs: Mapping[str, Any]) -> None:
        """Find out which token is where, before the pass begins."""
        if self._suspended:
            return
        self._refuse_other_thread("run the model")
        if reads_two_texts(self._model.hf):
            ids, mask = kwargs.get("decoder_input_ids"), kwargs.get("decoder_attention_mask")
        else:
            ids = kwargs.get("input_ids", args[0] if args else None)
            mask = kwargs.get("attention_mask")
        if self._reader is None:
            cached = _remembered(kwargs)
            self._pass = direct_pass(ids, mask, cached, self._special)
        elif not isinstance(ids, torch.Tensor):
            raise RunError("the model was called without input_ids inside an intervention")
        else:
            width = mask.shape[1] if isinstance(mask, torch.Tensor) and mask.ndim == 2 else None
            self._pass = self._reader.read(ids.cpu().numpy(), width)
        for applied in self._active:
            applied.passes += 1

    def _end(self, module: nn.Module, args: tuple[Any, ...], output: Any) -> None:
        self._pass = None

    def _special(self, ids: Ints) -> Bools:
        return are_special(self._model.tokenizer, ids)

    def _refuse_other_thread(self, what: str) -> None:
        if self._thread is not None and self._thread != threading.get_ident():
            raise BadInputError(
                f"this thread cannot {what}: another one has interventions on this model",
                next_step="run both in one thread, or load the model a second time",
            )

    @contextmanager
    def announced(
        self, batch: Batch, answers: Callable[[], Sequence[int]] | None = None
    ) -> Generator[None]:
        """The next forward pass runs this batch; when generating, so do the ones that follow.

        Args:
            batch: The tokens that go in.
            answers: When generating, how many of each row's new tokens so far are still read.
        """
        if not self._active or self._suspended:
            yield
            return
        self._refuse_other_thread("run the model")
        before = self._reader
        self._reader = PassReader(batch, answers=answers, special=self._special)
        try:
            yield
        finally:
            self._reader, self._pass = before, None

    @contextmanager
    def suspended(self) -> Generator[None]:
        """The plain model, for what is about the model and not about this context."""
        before, self._suspended = self._suspended, True
        try:
            yield
        finally:
            self._suspended = before


def _remembered(kwargs: Mapping[str, Any]) -> int:
    """How many tokens a pass continues; a recurrent state does not say, and counts as some."""
    states = [kwargs.get(name) for name in ("cache_params", "state", "mems")]
    if any(state is not None and _is_filled(state) for state in states):
        return 1
    length = getattr(kwargs.get("past_key_values"), "get_seq_length", None)
    return int(length()) if length is not None else 0


def _is_filled(state: object) -> bool:
    filled = getattr(state, "has_previous_state", None)
    return bool(filled()) if callable(filled) else True


def _changed(tensor: torch.Tensor, step: _Step, current: Pass) -> torch.Tensor | None:
    """The site's tensor with the chosen rows changed; None where none is chosen."""
    chosen = current.choose(step.intervention.chosen, tensor.device)
    if not len(chosen.flat):
        return None
    flat = tensor.reshape(-1, tensor.shape[-1])
    if len(flat) != current.size:
        raise RunError(
            f"{step.site} has other rows than the pass has tokens",
            got=f"shape {list(tensor.shape)}",
            expected=f"{current.size} rows",
        )
    rows = working(flat.index_select(0, chosen.flat))
    changed = step.intervention.edit(rows, current.places(chosen, step.site))
    if changed.shape != rows.shape:
        raise BadInputError(
            f"{step.intervention!r} returned rows of another shape",
            got=list(changed.shape),
            expected=list(rows.shape),
        )
    changed = changed.to(tensor.dtype)
    step.tally.add(rows, working(changed))
    return flat.index_copy(0, chosen.flat, changed).reshape(tensor.shape)
