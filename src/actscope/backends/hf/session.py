"""An open capture: hooks that keep the selected rows, and nothing else, until it is closed.

A hook selects or pools on the model's device into a buffer and returns. When the last wanted tensor
has been seen the forward pass is stopped: deeper blocks and the LM head never run. One copy per
buffer brings the batch to the CPU.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from contextlib import AbstractContextManager, nullcontext
from dataclasses import replace
from types import TracebackType
from typing import TYPE_CHECKING, Any

import numpy as np
import torch

from actscope.backends.hf.attention_call import AttentionCall
from actscope.backends.hf.attention_route import Route, watching
from actscope.backends.hf.attention_rows import (
    chosen_columns,
    head_rows,
    pattern_rows,
    query_blocks,
    refuse_unverified,
)
from actscope.backends.hf.exclusive import alone, innermost, is_innermost, on_entering
from actscope.backends.hf.forward import forward
from actscope.backends.hf.kept_rows import (
    Group,
    Kept,
    assemble,
    cut,
    described,
    keeps_width,
    picks,
    plan_rows,
    to_arrays,
)
from actscope.backends.hf.placement import is_offloaded
from actscope.backends.hf.prefix import SharedPrefix, shareable
from actscope.backends.hf.resolve import Tap
from actscope.backends.hf.stacks import encoder_text
from actscope.backends.hf.trace import evaluation_mode, first_tensor, float_inputs
from actscope.backends.hf.transfer import BufferSet, Transfer, placed
from actscope.core.activations import (
    ActivationBatch,
    Batch,
    empty_rows,
    one_row_per_example,
)
from actscope.core.arrays import DTYPES, Array
from actscope.core.errors import BadInputError
from actscope.core.protocols import Selection, Started
from actscope.core.sites import Site

if TYPE_CHECKING:
    from actscope.backends.hf.model import HFModel

__all__ = ["HFSession"]


class _Seen(BaseException):
    """Every wanted tensor has been captured: stop the forward pass.

    A BaseException, so that no ``except Exception`` inside a model swallows it.
    """


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
        self._adapter = model.active_adapter
        # A pass that is cut short would leave accelerate's weights on the device.
        self._stops_early = not is_offloaded(model.hf)
        self._results = [s for s, tap in taps.items() if tap.side == "result"]
        self._attention = {s: tap for s, tap in taps.items() if tap.side == "attention"}
        self._handles: list[Any] = []
        self._modules: list[torch.nn.Module] = []
        self._open = False
        self._kept: Kept | None = None
        self._transfer: Transfer | None = None

    def __enter__(self) -> HFSession:
        self._open = True
        self._modules = list(self._model.hf.modules())
        for site, tap in self._taps.items():
            for part in tap.parts or (tap,):
                self._hook(site, part)
        return self

    def _hook(self, site: Site, tap: Tap) -> None:
        if tap.side in ("result", "attention"):
            return
        module = self._model.hf.get_submodule(tap.path)
        if tap.side == "input":
            hook = self._on_input(site, tap)
            self._handles.append(on_entering(module, hook))
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
        self._transfer = None
        self._modules.clear()
        self._open = False

    def run(self, batch: Batch) -> ActivationBatch:
        """One forward pass over a batch; one for each length where padding would change rows.

        Returns:
            Activations of the examples whose span has tokens; the others are ``failures``.

        Raises:
            BadInputError: the session is closed, the adapter was switched since it was opened,
                tensors lie on different devices, or padding on the left changes what this model
                computes.
        """
        return self._begin(batch, None)()

    def begin(self, batch: Batch) -> Started:
        """See ``CaptureSession.begin``; raises what ``run`` raises."""
        if self._transfer is None:
            self._transfer = Transfer(self._model.device)
        return self._begin(batch, self._transfer)

    @property
    def bytes_copied(self) -> int:
        """Bytes that ``begin`` has brought to host memory of its own."""
        return 0 if self._transfer is None else self._transfer.bytes_copied

    def run_shared(self, batch: Batch) -> ActivationBatch:
        """``run`` without asking whether texts may share their beginnings; for the check of it."""
        return self._begin(batch, None, checked=True)()

    def _begin(self, batch: Batch, transfer: Transfer | None, *, checked: bool = False) -> Started:
        self._check(batch)
        if batch.shared and not checked:
            batch = shareable(self._model, self._taps, batch)
        uneven = len({len(row) for row in batch.rows}) > 1
        with alone(self._model.hf):
            if uneven and not self._model.pads_alike(batch.padding_side):
                whole = self._run_by_length(batch)
                return lambda: whole
            return self._pass(batch, transfer)

    def run_anyway(self, batch: Batch) -> ActivationBatch:
        """One pass, whatever padding does to the rows: for the check that finds out."""
        return self._pass(batch, None)()

    def _pass(self, batch: Batch, transfer: Transfer | None) -> Started:
        spans, failures = cut(batch, self._selection)
        keep = [i for i, positions in enumerate(spans) if positions is not None]
        arrive = self._forward(batch, spans, keep, transfer) if keep else self._nothing
        done = self._model.interventions.describe()

        def finish() -> ActivationBatch:
            found = assemble(batch, spans, keep, arrive(), self._selection, failures)
            return replace(described(self._model, found), interventions=done)

        return finish

    def _nothing(self) -> dict[Site, Array]:
        return {s: self._empty(s) for s in self._selection.sites}

    def _check(self, batch: Batch) -> None:
        if not self._open:
            raise BadInputError(
                "this capture session is closed", next_step="call run inside its `with` block"
            )
        if self._model.active_adapter != self._adapter:
            raise BadInputError(
                "the adapter was switched while this capture was open",
                got=self._model.active_adapter or "the plain base",
                expected=self._adapter or "the plain base",
                next_step="switch first, then open the capture",
            )
        self._check_padding(batch)

    def _check_padding(self, batch: Batch) -> None:
        ragged = len({len(row) for row in batch.rows}) > 1
        if (
            batch.padding_side == "left"
            and ragged
            and not self._model.padded_left_alike(self._selection.sites)
        ):
            who = self._model.identity
            raise BadInputError(
                f"padding on the left changes what {who.name} ({who.model_type}) computes",
                got=f"{len(batch.rows)} examples of different lengths",
                expected="padding on the right, or examples of one length",
                next_step="Batch(rows), whose padding is on the right",
            )

    def gather(
        self, batch: Batch, tensors: Mapping[Site, torch.Tensor], starts: Sequence[int]
    ) -> ActivationBatch:
        """What ``run`` returns, from tensors that were recorded elsewhere.

        Args:
            batch: The examples.
            tensors: ``[n, columns, d]`` of each site.
            starts: The column of each example's first token.
        """
        spans, failures = cut(batch, self._selection)
        keep = [i for i, positions in enumerate(spans) if positions is not None]
        arrays = {s: self._empty(s) for s in self._selection.sites}
        if keep:
            columns = next(iter(tensors.values())).shape[1]
            kept = self._plan(spans, keep, columns, starts)
            self._allocate(kept, len(keep))
            for site, tensor in tensors.items():
                self._store(kept, site, tensor)
            arrays = to_arrays(kept)
        return described(
            self._model, assemble(batch, spans, keep, arrays, self._selection, failures)
        )

    def _run_by_length(self, batch: Batch) -> ActivationBatch:
        """Examples of one length together, put back in their order."""
        spans, failures = cut(batch, self._selection)
        keep = [i for i, positions in enumerate(spans) if positions is not None]
        if not keep:
            return self.run_anyway(batch)
        groups: dict[int, list[int]] = {}
        for index in keep:
            groups.setdefault(len(batch.rows[index]), []).append(index)
        parts = [self.run_anyway(Batch(tuple(batch.rows[i] for i in g))) for g in groups.values()]
        whole = ActivationBatch.join(parts, [i for g in groups.values() for i in g])
        return replace(whole, failures=failures)

    def _forward(
        self,
        batch: Batch,
        spans: list[Array | None],
        keep: list[int],
        transfer: Transfer | None,
    ) -> Callable[[], dict[Site, Array]]:
        ids, mask = batch.padded(self._model.pad_id)
        device = self._model.device
        starts = mask.argmax(axis=1).tolist()
        kept = self._kept = self._plan(spans, keep, ids.shape[1], starts)
        self._kept.restart(self._taps)
        self._kept.blocks = query_blocks(batch, spans, keep, ids.shape[1], device)
        self._allocate(self._kept, len(keep), None if transfer is None else transfer.next())
        input_ids = placed(ids, device)
        attention = placed(mask.astype(np.int64), device)
        try:
            with (
                innermost(self),
                torch.no_grad(),
                evaluation_mode(self._model.hf, self._modules),
                self._model.interventions.announced(batch),
                self._watching(len(batch.rows)),
            ):
                if batch.shared:
                    shared = kept.share(SharedPrefix.of(batch, self._model.pad_id, device))
                    shared.run(self._model.hf, lambda: kept.restart(self._taps), _Seen)
                    raise _Seen
                result = forward(
                    self._model.hf,
                    input_ids,
                    attention,
                    left_padded=batch.padding_side == "left" and not bool(mask.all()),
                    encoder=encoder_text(batch, self._model.pad_id, device),
                )
                for site in self._results:
                    self._keep_result(site, result)
        except _Seen:
            pass
        finally:
            self._kept = None
        if kept.pending:
            missing = ", ".join(str(s) for s in sorted(kept.pending))
            raise BadInputError(f"the forward pass never reached {missing}")
        if transfer is None:
            refuse_unverified(kept.checks)
            return lambda: to_arrays(kept)
        copied = transfer.to_host(list(kept.buffers.values()))

        def arrive() -> dict[Site, Array]:
            refuse_unverified(kept.checks)  # looking at them waits for the device
            return to_arrays(kept, copied())

        return arrive

    def _watching(self, n: int) -> AbstractContextManager[None]:
        """See the attention operations of the sites asked for; nothing where there are none."""
        routes = [tap.route for tap in self._attention.values() if tap.route is not None]
        if not routes:
            return nullcontext()
        return watching(self._model.hf, routes, n, self._on_attention)

    def _on_attention(self, route: Route, call: AttentionCall) -> None:
        for site, tap in self._attention.items():
            kept = self._kept
            if kept is None or tap.route != route or site not in kept.pending:
                continue
            if not is_innermost(self):
                return
            if site.layout == "blocks":
                kept.loose[site], kept.checks[site] = pattern_rows(call, site.parts, kept.blocks)
                self._done(kept, site)
            else:
                self._keep(site, head_rows(call, tap.name, site.parts), 1.0)

    def _plan(
        self, spans: list[Array | None], keep: list[int], columns: int, starts: Sequence[int]
    ) -> Kept:
        device = self._model.device
        return plan_rows(spans, keep, columns, starts, device, picks(self._selection))

    def _allocate(self, kept: Kept, n: int, memory: BufferSet | None = None) -> None:
        """One buffer per group of sites alike in rows, width and dtype."""
        pools = self._selection.strategy.pools
        groups: dict[Group, list[Site]] = {}
        for site in self._selection.sites:
            if site.layout == "blocks":
                continue
            pooled = pools and not one_row_per_example(site)
            if pooled and not keeps_width(self._selection):
                continue  # the strategy decides its own width
            rows = n if pools or one_row_per_example(site) else len(kept.rows)
            dtype = torch.float32 if pools else self._model.site_dtype(site)
            groups.setdefault((rows, self._model.width(site), dtype), []).append(site)
        for key, sites in groups.items():
            rows, width, dtype = key
            shape = (len(sites), rows, width)
            if memory is None:
                kept.buffers[key] = torch.empty(shape, dtype=dtype, device=self._model.device)
            else:
                kept.buffers[key] = memory.buffer(len(kept.buffers), shape, dtype)
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

    def _chosen(self, site: Site, tensor: torch.Tensor) -> torch.Tensor:
        """The heads or neurons asked for."""
        if not site.parts:
            return tensor
        return chosen_columns(tensor, site.parts, self._model.width(site) // len(site.parts))

    def _is_turn(self, site: Site, tap: Tap) -> bool:
        """Whether this call of the module is the one that the site means."""
        kept = self._kept
        if kept is None or site not in kept.pending or not is_innermost(self):
            return False
        calls = kept.calls.get((site, tap), 0)
        kept.calls[site, tap] = calls + 1
        return calls == tap.turn

    def _arrived(self, site: Site, tap: Tap, tensor: torch.Tensor) -> None:
        """Keep a site's tensor, or add it to the other parts of the site."""
        kept = self._kept
        assert kept is not None
        whole = self._taps[site]
        if not whole.parts:
            self._keep(site, self._chosen(site, tap.layout.rows(tensor)), tap.scale)
            return
        parts = kept.parts.setdefault(site, {})
        tensor = tap.layout.rows(tensor)
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
        rows = tensor if kept.shared is None else kept.shared.arrived(site, tensor)
        if rows is not None:
            self._store(kept, site, rows)
        self._done(kept, site)

    def _done(self, kept: Kept, site: Site) -> None:
        kept.pending.discard(site)
        if not kept.pending and self._stops_early:
            raise _Seen

    def _store(self, kept: Kept, site: Site, tensor: torch.Tensor) -> None:
        strategy = self._selection.strategy
        if (picks(self._selection) or not strategy.pools) and not one_row_per_example(site):
            group, place = kept.slots[site]
            flat, into = tensor.reshape(-1, tensor.shape[-1]), kept.buffers[group][place]
            if flat.dtype == into.dtype:
                torch.index_select(flat, 0, kept.rows, out=into)
            else:
                into.copy_(flat.index_select(0, kept.rows))
            return
        if one_row_per_example(site):
            rows = kept.of_examples(tensor)
        else:
            rows = strategy.pool(kept.padded(tensor), kept.mask)
        if site in kept.slots:
            group, place = kept.slots[site]
            kept.buffers[group][place].copy_(rows)
        else:
            kept.loose[site] = rows.detach().clone()

    def _empty(self, site: Site) -> Array:
        pooled = self._selection.strategy.pools
        name = "float32" if pooled else str(self._model.site_dtype(site)).removeprefix("torch.")
        return empty_rows(site, self._model.width(site), DTYPES[name])
