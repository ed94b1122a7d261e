"""An open capture: hooks that keep the selected rows, and nothing else, until it is closed.

A hook selects or pools on the model's device into a buffer and returns. When the last wanted tensor
has been seen the forward pass is stopped: deeper blocks and the LM head never run. One copy per
buffer brings the batch to the CPU.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field, replace
from types import TracebackType
from typing import TYPE_CHECKING, Any

import numpy as np
import torch

from actscope.backends.hf.forward import forward
from actscope.backends.hf.resolve import Tap
from actscope.backends.hf.trace import evaluation_mode, first_tensor, float_inputs
from actscope.core.activations import (
    ActivationBatch,
    Batch,
    ExampleFailure,
    ExampleRecord,
    TokenRow,
    one_row_per_example,
)
from actscope.core.arrays import DTYPES, Array
from actscope.core.errors import BadInputError, ExampleError
from actscope.core.protocols import Selection
from actscope.core.sites import Site
from actscope.core.text import PROMPT
from actscope.selectors import select

if TYPE_CHECKING:
    from actscope.backends.hf.model import HFModel

__all__ = ["HFSession"]


class _Seen(BaseException):
    """Every wanted tensor has been captured: stop the forward pass.

    A BaseException, so that no ``except Exception`` inside a model swallows it.
    """


_Group = tuple[int, int, torch.dtype]
"""Rows, width and dtype: sites alike in all three share one buffer and one copy."""


@dataclass
class _Kept:
    """What one batch keeps: which rows of the padded batch, and where they go.

    Attributes:
        rows: Flat row indices into ``[n * pos]``, examples in order (unpooled).
        examples: Which examples keep anything, or None for all.
        mask: ``[kept examples, pos]`` bool, the kept tokens (pooled).
        buffers: ``[sites, rows, width]`` of each group.
        slots: Site -> (group, place in its buffer).
        loose: Sites whose width only the strategy knows.
        pending: Sites not seen yet in this pass.
        calls: How often the module of a tap has run in this pass.
        parts: What has arrived of sites that are sums.
    """

    rows: torch.Tensor
    examples: torch.Tensor | None
    mask: torch.Tensor
    buffers: dict[_Group, torch.Tensor] = field(default_factory=dict[_Group, torch.Tensor])
    slots: dict[Site, tuple[_Group, int]] = field(default_factory=dict[Site, tuple[_Group, int]])
    loose: dict[Site, torch.Tensor] = field(default_factory=dict[Site, torch.Tensor])
    pending: set[Site] = field(default_factory=set[Site])
    calls: dict[tuple[Site, Tap], int] = field(default_factory=dict[tuple[Site, Tap], int])
    parts: dict[Site, dict[Tap, torch.Tensor]] = field(
        default_factory=dict[Site, dict[Tap, torch.Tensor]]
    )

    def of_examples(self, tensor: torch.Tensor) -> torch.Tensor:
        """The examples that keep anything."""
        return tensor if self.examples is None else tensor.index_select(0, self.examples)


class HFSession:
    """Hooks on a model for one selection. Use as a context; ``model.open`` makes one.

    Args:
        model: The wrapped model.
        selection: Sites, strategy and span.
        taps: Where each site is read.
    """

    def __init__(self, model: HFModel, selection: Selection, taps: dict[Site, Tap]) -> None:
        self._model = model
        self._selection = selection
        self._taps = taps
        self._results = [s for s, tap in taps.items() if tap.side == "result"]
        self._handles: list[Any] = []
        self._kept: _Kept | None = None

    def __enter__(self) -> HFSession:
        for site, tap in self._taps.items():
            for part in tap.parts or (tap,):
                self._hook(site, part)
        return self

    def _hook(self, site: Site, tap: Tap) -> None:
        if tap.side == "result":
            return
        module = self._model.hf.get_submodule(tap.path)
        if tap.side == "input":
            hook = self._on_input(site, tap)
            self._handles.append(module.register_forward_pre_hook(hook, with_kwargs=True))
        else:
            self._handles.append(module.register_forward_hook(self._on_output(site, tap)))

    def __exit__(
        self,
        kind: type[BaseException] | None,
        value: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        self.close()

    def close(self) -> None:
        """Remove every hook; the model is as it was."""
        for handle in self._handles:
            handle.remove()
        self._handles.clear()

    def run(self, batch: Batch) -> ActivationBatch:
        """One forward pass over a batch; one for each length where padding would change rows.

        Returns:
            Activations of the examples whose span has tokens; the others are ``failures``.

        Raises:
            BadInputError: the session is closed, or tensors lie on different devices.
        """
        if not self._handles and not self._results:
            raise BadInputError(
                "this capture session is closed", next_step="call run inside its `with` block"
            )
        spans, failures = _spans(batch, self._selection)
        keep = [i for i, positions in enumerate(spans) if positions is not None]
        uneven = len({len(row) for row in batch.rows}) > 1
        if keep and uneven and not self._model.pads_alike(batch.padding_side):
            return self._run_by_length(batch, keep, failures)
        if keep:
            arrays = self._forward(batch, spans, keep)
        else:
            arrays = {s: self._empty(s) for s in self._selection.sites}
        whole = _assemble(batch, spans, keep, arrays, self._selection, failures)
        return replace(whole, n_layers=self._model.n_layers)

    def _run_by_length(
        self, batch: Batch, keep: list[int], failures: tuple[ExampleFailure, ...]
    ) -> ActivationBatch:
        """Examples of one length together, put back in their order."""
        groups: dict[int, list[int]] = {}
        for index in keep:
            groups.setdefault(len(batch.rows[index]), []).append(index)
        parts = [self.run(Batch(tuple(batch.rows[i] for i in g))) for g in groups.values()]
        whole = ActivationBatch.join(parts, [i for g in groups.values() for i in g])
        return replace(whole, failures=failures)

    def _forward(
        self, batch: Batch, spans: list[Array | None], keep: list[int]
    ) -> dict[Site, Array]:
        ids, mask = batch.padded(self._model.pad_id)
        device = self._model.device
        self._kept = _plan_rows(batch, spans, keep, ids.shape[1], device)
        self._kept.pending = set(self._taps)
        self._allocate(self._kept, len(keep))
        input_ids = torch.from_numpy(ids).to(device)
        attention = torch.from_numpy(mask.astype(np.int64)).to(device)
        try:
            with torch.no_grad(), evaluation_mode(self._model.hf):
                result = forward(
                    self._model.hf,
                    input_ids,
                    attention,
                    left_padded=batch.padding_side == "left" and not bool(mask.all()),
                )
                for site in self._results:
                    self._keep_result(site, result)
        except _Seen:
            pass
        finally:
            kept, self._kept = self._kept, None
        if kept.pending:
            missing = ", ".join(str(s) for s in sorted(kept.pending))
            raise BadInputError(f"the forward pass never reached {missing}")
        return _to_numpy(kept)

    def _allocate(self, kept: _Kept, n: int) -> None:
        """One buffer per group of sites alike in rows, width and dtype."""
        pools = self._selection.strategy.pools
        groups: dict[_Group, list[Site]] = {}
        for site in self._selection.sites:
            pooled = pools and not one_row_per_example(site)
            if pooled and not _plain_width(self._selection):
                continue  # the strategy decides its own width
            rows = n if pools or one_row_per_example(site) else len(kept.rows)
            dtype = torch.float32 if pools else self._model.site_dtype(site)
            groups.setdefault((rows, self._model.width(site), dtype), []).append(site)
        for key, sites in groups.items():
            rows, width, dtype = key
            shape = (len(sites), rows, width)
            kept.buffers[key] = torch.empty(shape, dtype=dtype, device=self._model.device)
            kept.slots.update({site: (key, place) for place, site in enumerate(sites)})

    def _on_input(self, site: Site, tap: Tap) -> Callable[..., None]:
        def hook(module: torch.nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any]) -> None:
            if self._is_turn(site, tap):
                self._arrived(site, tap, float_inputs(args, kwargs)[tap.index])

        return hook

    def _on_output(self, site: Site, tap: Tap) -> Callable[..., None]:
        def hook(module: torch.nn.Module, args: tuple[Any, ...], output: Any) -> None:
            tensor = first_tensor(output)
            if tensor is not None and self._is_turn(site, tap):
                self._arrived(site, tap, tensor)

        return hook

    def _is_turn(self, site: Site, tap: Tap) -> bool:
        """Whether this call of the module is the one that the site means."""
        kept = self._kept
        if kept is None or site not in kept.pending:
            return False
        calls = kept.calls.get((site, tap), 0)
        kept.calls[site, tap] = calls + 1
        return calls == tap.turn

    def _arrived(self, site: Site, tap: Tap, tensor: torch.Tensor) -> None:
        """Keep a site's tensor, or add it to the other parts of the site."""
        kept = self._kept
        assert kept is not None
        tensor = tap.layout.rows(tensor)
        whole = self._taps[site]
        if not whole.parts:
            self._keep(site, tensor, tap.scale)
            return
        parts = kept.parts.setdefault(site, {})
        tensor = tensor.reshape(-1, tensor.shape[-1])  # experts return no batch axis
        parts[tap] = tensor if tap.scale == 1.0 else tensor * tap.scale
        if len(parts) == len(whole.parts):
            first, *others = (kept.parts[site].pop(part) for part in whole.parts)
            self._keep(site, sum(others, first), whole.scale)

    def _keep_result(self, site: Site, result: Any) -> None:
        name = self._taps[site].name
        tensor = result[name] if isinstance(result, dict) else getattr(result, name)
        self._keep(site, tensor, 1.0)

    def _keep(self, site: Site, tensor: torch.Tensor, scale: float) -> None:
        """Select or pool the wanted rows of ``[n, pos, d]`` on the device; stop after the last."""
        kept = self._kept
        assert kept is not None
        if scale != 1.0:
            tensor = tensor * scale
        self._store(kept, site, tensor)
        kept.pending.discard(site)
        if not kept.pending:
            raise _Seen

    def _store(self, kept: _Kept, site: Site, tensor: torch.Tensor) -> None:
        strategy = self._selection.strategy
        if not strategy.pools and not one_row_per_example(site):
            group, place = kept.slots[site]
            flat = tensor.reshape(-1, tensor.shape[-1])
            torch.index_select(flat, 0, kept.rows, out=kept.buffers[group][place])
            return
        if one_row_per_example(site):
            rows = kept.of_examples(tensor)
        else:
            shaped = tensor.reshape(-1, kept.mask.shape[1], tensor.shape[-1])
            rows = strategy.pool(kept.of_examples(shaped), kept.mask)
        if site in kept.slots:
            group, place = kept.slots[site]
            kept.buffers[group][place].copy_(rows)
        else:
            kept.loose[site] = rows.detach().clone()

    def _empty(self, site: Site) -> Array:
        pooled = self._selection.strategy.pools
        name = "float32" if pooled else str(self._model.site_dtype(site)).removeprefix("torch.")
        return np.zeros((0, self._model.width(site)), dtype=DTYPES[name])


def _plain_width(selection: Selection) -> bool:
    """Whether pooling keeps the width: every strategy but a custom one does."""
    return selection.strategy.name != "custom"


def _spans(
    batch: Batch, selection: Selection
) -> tuple[list[Array | None], tuple[ExampleFailure, ...]]:
    spans: list[Array | None] = []
    failures: list[ExampleFailure] = []
    for index, row in enumerate(batch.rows):
        try:
            spans.append(select(row, selection.span))
        except ExampleError as error:
            spans.append(None)
            failures.append(ExampleFailure(row.id, index, error.kind, str(error)))
    return spans, tuple(failures)


def _plan_rows(
    batch: Batch, spans: list[Array | None], keep: list[int], width: int, device: torch.device
) -> _Kept:
    mask = np.zeros((len(keep), width), dtype=np.bool_)
    flat: list[Array] = []
    for place, index in enumerate(keep):
        positions = spans[index]
        assert positions is not None
        shift = width - len(batch.rows[index]) if batch.padding_side == "left" else 0
        mask[place, positions + shift] = True
        flat.append(index * width + shift + positions)
    rows = torch.from_numpy(np.concatenate(flat).astype(np.int64)).to(device)
    everyone = len(keep) == len(batch.rows)
    examples = None if everyone else torch.tensor(keep, dtype=torch.int64, device=device)
    return _Kept(rows, examples, torch.from_numpy(mask).to(device))


def _to_numpy(kept: _Kept) -> dict[Site, Array]:
    """One copy per buffer, then views."""
    on_cpu = {group: buffer.cpu() for group, buffer in kept.buffers.items()}
    tensors = {site: on_cpu[group][place] for site, (group, place) in kept.slots.items()}
    tensors |= {site: tensor.cpu() for site, tensor in kept.loose.items()}
    return {site: _view(tensor) for site, tensor in tensors.items()}


def _view(tensor: torch.Tensor) -> Array:
    if tensor.dtype == torch.bfloat16:
        return tensor.view(torch.int16).numpy().view(DTYPES["bfloat16"])
    return tensor.numpy()


def _assemble(
    batch: Batch,
    spans: list[Array | None],
    keep: list[int],
    arrays: dict[Site, Array],
    selection: Selection,
    failures: tuple[ExampleFailure, ...],
) -> ActivationBatch:
    rows = [batch.rows[i] for i in keep]
    kept = [positions for positions in spans if positions is not None]
    counts = [1] * len(rows) if selection.strategy.pools else [len(p) for p in kept]
    positions = [] if selection.strategy.pools else kept
    return ActivationBatch(
        arrays={site: arrays[site] for site in selection.sites},
        offsets=_offsets(counts),
        positions=_joined(positions, np.int32),
        examples=tuple(_record(row, index) for row, index in zip(rows, keep, strict=True)),
        token_ids=_joined([row.token_ids for row in rows], np.int64),
        token_offsets=_offsets([len(row) for row in rows]),
        phase=_joined([row.phase for row in rows], np.uint8),
        pooled=selection.strategy.pools,
        failures=failures,
    )


def _record(row: TokenRow, index: int) -> ExampleRecord:
    return ExampleRecord(row.id, index, len(row), int((row.phase == PROMPT).sum()))


def _offsets(counts: list[int]) -> Array:
    return np.concatenate([[0], np.cumsum(counts)]).astype(np.int64)


def _joined(parts: list[Array], dtype: Any) -> Array:
    return np.concatenate(parts).astype(dtype) if parts else np.zeros(0, dtype)
