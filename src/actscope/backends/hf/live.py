"""Activations taken while an answer is decoded, and the check that they are the right ones.

While ``generate`` runs, the prompt goes through the model in one pass and each new token in a pass
of its own that reads the cache. A recorder keeps the rows of every pass; one more pass after the
last token gives that token its row. Whether a model's cache allows this is never assumed: at first
use a short ragged batch is decoded and compared, value by value, with one plain pass over the same
tokens.
"""

from __future__ import annotations

from collections.abc import Collection, Mapping, Sequence
from contextlib import ExitStack
from dataclasses import dataclass
from types import TracebackType
from typing import TYPE_CHECKING, Any

import numpy as np
import torch

from actscope.backends.hf.attention_call import AttentionCall
from actscope.backends.hf.attention_route import Route, watching
from actscope.backends.hf.attention_rows import chosen_columns, head_rows
from actscope.backends.hf.exclusive import alone, innermost, is_innermost, on_entering
from actscope.backends.hf.forward import text_config
from actscope.backends.hf.generation import check_generates, generate_rows
from actscope.backends.hf.resolve import Tap, probe_ids
from actscope.backends.hf.stacks import answer_start, prompt_rows
from actscope.backends.hf.trace import first_tensor, float_inputs
from actscope.core.activations import ActivationBatch, Batch, TokenRow
from actscope.core.arrays import to_float32
from actscope.core.errors import BadInputError
from actscope.core.protocols import (
    AnswerCapture,
    Generated,
    GenerationParams,
    Listeners,
    Selection,
)
from actscope.core.sites import MODULE_KIND, SITE_KINDS, Site
from actscope.core.text import Span
from actscope.strategies import as_strategy

if TYPE_CHECKING:
    from actscope.backends.hf.model import HFModel

__all__ = [
    "answer_capture",
    "beyond_window",
    "generate_live",
    "length_dependent",
    "live_tolerance",
    "no_live_site",
    "window_of",
    "worst_row",
]

_PROMPT_SPANS = ("prompt", "answer", "system", "user")
_ANSWER_SPANS = ("response", "think")
_SHORT, _LONG, _NEW = 3, 24, 12
"""Prompt tokens of the two rows of the check, and how many tokens are decoded after them."""

_WIDEST_WINDOW = 1024
"""Checks reach past windows of up to so many tokens."""


def live_tolerance(dtype: str) -> float:
    """The largest difference from a plain pass, relative to the row's largest value.

    Decoding from a cache computes the same sums in other shapes; what that comes to by itself is
    measured by ``benchmarks/generation.py``.
    """
    return 0.05 if dtype in ("bfloat16", "float16") else 1e-3


def answer_capture(
    model: HFModel, params: GenerationParams, taps: Mapping[Site, Tap]
) -> AnswerCapture:
    """Live or replay, as ``core.protocols.BackendModel.answer_capture`` says.

    Raises:
        BadInputError: the model cannot generate, or live was asked for and this model or these
            sites do not allow it.
    """
    check_generates(model)
    if params.capture == "replay":
        return AnswerCapture("replay", "asked for")
    with model.interventions.suspended():
        refusal = _refusal(model, taps)
    if not refusal:
        return AnswerCapture("live", "decoding gives the values of a plain pass: compared")
    if params.capture == "live":
        raise BadInputError(
            f"answers of {model.identity.name} cannot be captured live",
            got=refusal,
            next_step="leave the choice open (capture='auto'), or take capture='replay' (--replay)",
        )
    return AnswerCapture("replay", refusal)


def generate_live(
    model: HFModel,
    rows: Sequence[TokenRow],
    params: GenerationParams,
    selection: Selection,
    taps: Mapping[Site, Tap],
    *,
    stops: Collection[int] | None = None,
    listeners: Listeners | None = None,
) -> tuple[list[Generated], ActivationBatch]:
    """Continue rows as one batch and take the selection's activations on the way.

    Args:
        model: The wrapped model.
        rows: The prompts.
        params: How to continue.
        selection: What is kept.
        taps: Where each site is read.
        stops: Token ids that end an answer; None takes the model's.
        listeners: Told every new token.

    Raises:
        BadInputError: the model did not decode one token at a time.
    """
    rows = [answer_start(row) for row in rows]
    width = max(len(row) for row in rows)
    shape = _Shape(len(rows), width, params.max_new_tokens, selection.span)
    head = any(tap.side == "result" or site.kind == MODULE_KIND for site, tap in taps.items())
    with alone(model.hf), LiveRecorder(model, taps, shape) as recorder:
        made = generate_rows(
            model, rows, params, stops=stops, listeners=listeners, live=True, prompt_logits=head
        )
    tensors = recorder.tensors()
    starts = [width - len(row) for row in rows]
    batch = Batch(tuple(one.row for one in made), padding_side="left")
    return made, model.open(selection).gather(batch, tensors, starts)


@dataclass(frozen=True)
class _Shape:
    """What a batch comes to: rows, columns of the prompts, longest answer, and which are kept."""

    rows: int
    width: int
    new: int
    span: Span

    @property
    def keeps_prompt(self) -> bool:
        return self.span.kind not in _ANSWER_SPANS

    @property
    def keeps_answer(self) -> bool:
        return self.span.kind not in _PROMPT_SPANS


class LiveRecorder:
    """Hooks that keep the rows of every pass while a batch is decoded; a context.

    Rows stay on the model's device, ``[n, prompt columns + new tokens, d]`` a site, where row i of
    the batch begins at its own prompt's first column.

    Args:
        model: The wrapped model.
        taps: Where each site is read.
        shape: What the batch comes to.
    """

    def __init__(self, model: HFModel, taps: Mapping[Site, Tap], shape: _Shape) -> None:
        self._model = model
        self._taps = taps
        self._shape = shape
        self._kept: dict[Site, torch.Tensor] = {}
        self._seen = dict.fromkeys(taps, 0)
        self._undo = ExitStack()

    def __enter__(self) -> LiveRecorder:
        with ExitStack() as undo:
            for site, tap in self._taps.items():
                if tap.side != "attention":
                    undo.callback(self._hook(site, tap).remove)
            routes = [tap.route for tap in self._taps.values() if tap.route is not None]
            if routes:
                hf, rows = self._model.hf, self._shape.rows
                undo.enter_context(watching(hf, routes, rows, self._on_attention))
            undo.enter_context(innermost(self))
            self._undo = undo.pop_all()
        return self

    def _hook(self, site: Site, tap: Tap) -> Any:
        module = self._model.hf.get_submodule(tap.path)
        if tap.side == "input":
            return on_entering(module, self._on_input(site, tap))
        return module.register_forward_hook(self._on_output(site, tap))

    def __exit__(
        self,
        kind: type[BaseException] | None,
        value: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        self._undo.close()

    def _on_input(self, site: Site, tap: Tap) -> Any:
        def hook(module: torch.nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any]) -> None:
            tensor = float_inputs(args, kwargs)[tap.index]
            if site.parts:
                size = self._model.width(site) // len(site.parts)
                tensor = chosen_columns(tensor, site.parts, size)
            self._keep(site, tensor, tap.scale)

        return hook

    def _on_output(self, site: Site, tap: Tap) -> Any:
        def hook(module: torch.nn.Module, args: tuple[Any, ...], output: Any) -> None:
            tensor = output[tap.name] if tap.side == "result" else first_tensor(output)
            if tensor is not None:
                self._keep(site, tensor, tap.scale)

        return hook

    def _on_attention(self, route: Route, call: AttentionCall) -> None:
        for site, tap in self._taps.items():
            if tap.side == "attention" and tap.route == route:
                rows = head_rows(call, tap.name, site.parts)
                # Keys and values of all tokens so far: the newest stand last.
                self._keep(site, rows[:, -self._columns(site) :], 1.0)

    def _columns(self, site: Site) -> int:
        """Tokens that go in in the pass that is running."""
        return self._shape.width if self._seen[site] == 0 else 1

    def _keep(self, site: Site, tensor: torch.Tensor, scale: float) -> None:
        """Copy one pass's rows to their columns; the pass itself is never disturbed."""
        if not is_innermost(self):
            return
        shape, step, columns = self._shape, self._seen[site], self._columns(site)
        self._seen[site] = step + 1
        if step > shape.new:  # a device that reports the end late runs one pass too many
            return
        rows = tensor.reshape(shape.rows, -1, tensor.shape[-1])
        if rows.shape[1] != columns:
            raise BadInputError(
                f"{site} had rows of {rows.shape[1]} tokens in pass {step} of decoding, not of "
                f"{columns}: the model does not decode one token at a time from a cache",
                next_step="take capture='replay' (--replay)",
            )
        if not (shape.keeps_prompt if step == 0 else shape.keeps_answer):
            return
        if site not in self._kept:
            size = (shape.rows, shape.width + shape.new, rows.shape[2])
            self._kept[site] = torch.empty(size, dtype=rows.dtype, device=self._model.device)
        first = 0 if step == 0 else shape.width + step - 1
        self._kept[site][:, first : first + columns] = rows if scale == 1.0 else rows * scale

    def tensors(self) -> dict[Site, torch.Tensor]:
        """What was kept, ``[n, columns, d]`` a site.

        Raises:
            BadInputError: a site was not seen once in every pass.
        """
        if len(set(self._seen.values())) > 1 or len(self._kept) < len(self._taps):
            counts = ", ".join(f"{site}: {n}" for site, n in self._seen.items())
            raise BadInputError("not every site was seen once in every pass", got=counts)
        return self._kept


def _refusal(model: HFModel, taps: Mapping[Site, Tap]) -> str:
    """Why answers cannot be captured live; empty where they can."""
    for site, tap in taps.items():
        reason = no_live_site(model, site, tap)
        if reason:
            return reason
    key = (model.active_adapter, frozenset(taps))
    if key not in model.live_refusals:
        model.live_refusals[key] = length_dependent(model) or _compared(model, tuple(taps), taps)
    return model.live_refusals[key]


def no_live_site(model: HFModel, site: Site, tap: Tap) -> str:
    """Why a site cannot be read token by token; empty where it can."""
    if site.layout == "blocks":
        return f"rows of {site} are as long as the text, which grows while decoding"
    if tap.side == "sum":
        return f"{site} is the sum of what several modules return"
    if model.runs_of(tap.path) > 1:
        return f"{tap.path} runs {model.runs_of(tap.path)} times in one pass"
    if str(tap.layout):
        return f"the model keeps {site} in another shape ({tap.layout})"
    rows = site.kind == MODULE_KIND or SITE_KINDS[site.kind].axes[0] == "pos"
    whole = tap.side != "result" or tap.name == "logits"
    return "" if rows and whole else f"{site} is not read token by token while decoding"


def length_dependent(model: HFModel) -> str:
    """Positions that are rotated by another angle once the text is longer: no short check sees it.

    Keys in the cache keep the angle of the length at which they were made.
    """
    rope = getattr(text_config(model.hf), "rope_parameters", None)
    if not isinstance(rope, Mapping):
        return ""
    parts = [rope, *(part for part in rope.values() if isinstance(part, Mapping))]
    found = {str(part.get("rope_type")) for part in parts} & {"dynamic", "longrope"}
    kinds = ", ".join(sorted(found))
    return f"its rotary angles depend on the text's length ({kinds})" if found else ""


def _compared(model: HFModel, sites: tuple[Site, ...], taps: Mapping[Site, Tap]) -> str:
    """Decode a ragged batch and compare every row with one plain pass over the same tokens."""
    rows = _probe_rows(model)
    if rows[0].longest <= _SHORT:
        return f"its context of {model.context_length} tokens is too short for the check"
    selection = Selection(sites, as_strategy(None))
    params = GenerationParams(_NEW, 0.0)
    tolerance = live_tolerance(model.dtype)
    groups = [rows] if model.generates_in_batches else [[row] for row in rows]
    for group in groups:
        try:
            made, live = generate_live(model, group, params, selection, taps, stops=())
        except BadInputError as error:
            return error.what
        with model.open(selection) as session:
            for place, one in enumerate(made):
                moved, site = worst_row(session.run(Batch((one.row,))), live, place)
                if moved > tolerance:
                    return (
                        f"decoding moves {site} by {moved:.1e} of the row's largest value against "
                        f"a plain pass; up to {tolerance:.0e} would be rounding"
                    )
    return ""


def _probe_rows(model: HFModel) -> list[TokenRow]:
    """A long and a short prompt; the long one reaches past a sliding window that is not wide."""
    length = max(_LONG, beyond_window(model))
    if model.context_length is not None:
        length = min(length, model.context_length - _NEW)
    ids = np.resize(probe_ids(model.hf)[0].cpu().numpy(), max(length, 1))
    return prompt_rows(model.hf, {"long": ids, "short": ids[:_SHORT]})


def window_of(model: HFModel) -> int | None:
    """How many tokens a block sees at most, where the configuration of the text model says so."""
    window = getattr(text_config(model.hf), "sliding_window", None)
    return window if isinstance(window, int) else None


def beyond_window(model: HFModel) -> int:
    """Tokens of a text that reaches past a window that is not wide; 0 where there is none."""
    window = window_of(model)
    return 0 if window is None or window > _WIDEST_WINDOW else window + 8


def worst_row(alone: ActivationBatch, live: ActivationBatch, place: int) -> tuple[float, Site]:
    """The largest difference of a row, relative to its largest value, and the site it is at."""
    found: list[tuple[float, Site]] = []
    rows = slice(int(live.offsets[place]), int(live.offsets[place + 1]))
    for site, plain in alone.arrays.items():
        a, b = to_float32(plain), to_float32(live.arrays[site][rows])
        scale = np.maximum(np.abs(a).max(axis=1, keepdims=True), np.finfo(np.float32).tiny)
        worst = float((np.abs(a - b) / scale).max())
        found.append((worst if np.isfinite(worst) else np.inf, site))
    return max(found)
