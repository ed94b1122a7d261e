"""A loaded Hugging Face model: its sites, captures and generations."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence
from typing import Any

import torch
from torch import nn

from actscope.backends.hf.adapters import Adaptable
from actscope.backends.hf.answers import Answering
from actscope.backends.hf.checks import (
    check_cls_span,
    check_pattern_strategy,
    check_pooler_sites,
    context_length,
)
from actscope.backends.hf.exclusive import alone
from actscope.backends.hf.experiments import Experiments
from actscope.backends.hf.forward import token_embedding
from actscope.backends.hf.identity import (
    chat_template_hash,
    config_hash,
    tokenizer_hash,
    values_hash,
)
from actscope.backends.hf.padding import pads_alike, rows_alike
from actscope.backends.hf.placement import check_model, input_device
from actscope.backends.hf.read_modules import read_modules
from actscope.backends.hf.resolve import Tap, known_sites, resolve
from actscope.backends.hf.router import Experts
from actscope.backends.hf.session import HFSession
from actscope.backends.hf.stacks import decoder_row, reads_two_texts, target_of
from actscope.backends.hf.tokens import check_text_span, encode_example
from actscope.backends.hf.trace import evaluation_mode
from actscope.core.activations import ActivationBatch, Batch, TokenRow
from actscope.core.batching import length_sorted_batches
from actscope.core.errors import (
    BadInputError,
    ExampleError,
    SiteUnavailableError,
    UnknownNameError,
)
from actscope.core.protocols import (
    LayerSelector,
    Selection,
    SiteStatus,
    Strategy,
)
from actscope.core.sites import MODULE_KIND, SITE_KINDS, Site, expand_sites
from actscope.core.spec import ModelIdentity
from actscope.core.text import Example, Span, as_examples
from actscope.strategies import as_strategy

__all__ = ["HFModel"]


class HFModel(Experiments, Adaptable, Answering):
    """A Hugging Face model whose sites have been verified.

    Made by ``load_model`` and ``wrap_model``. Nothing is left on the model between calls.

    Attributes:
        hf: The plain Hugging Face model.
        tokenizer: The plain tokenizer, or None.
        identity: What it is called on record.
        n_layers: Number of blocks.
        d_model: Width of the residual stream.
        context_length: Longest input in tokens, or None where the model sets no limit.
        device: Where token ids go.
        dtype: Compute dtype, such as ``float32``.
        dtype_reason: Why that dtype.
        causal: Whether no token sees a later one.
        cls_token_id: The CLS token of an encoder, else None.
    """

    def __init__(
        self,
        hf: nn.Module,
        tokenizer: Any,
        *,
        name: str,
        revision: str | None = None,
        dtype_reason: str = "",
    ) -> None:
        super().__init__()
        self.hf = hf
        self.tokenizer = tokenizer
        check_model(hf)
        self.device: torch.device = input_device(hf)
        self._vocab_size = int(token_embedding(hf).weight.shape[0])
        self._map = resolve(hf)
        self._pads_alike: dict[str, bool] = {}
        self._rotated_alike: dict[Site, bool] = {}
        self.n_layers = self._map.n_layers
        self.d_model = self._map.d_model
        self.causal = self._map.causal
        self.dtype = str(self._map.blocks.post(0).dtype).removeprefix("torch.")
        self.dtype_reason = dtype_reason
        self.context_length = context_length(hf, tokenizer)
        cls = getattr(tokenizer, "cls_token_id", None)
        self.cls_token_id: int | None = None if self.causal else cls
        config = getattr(hf, "config", None)
        self._identity = ModelIdentity(
            name=name,
            revision=revision or values_hash(hf),
            adapter=None,
            model_type=str(getattr(config, "model_type", "") or type(hf).__name__),
            n_layers=self.n_layers,
            d_model=self.d_model,
            dtype=self.dtype,
            config=config_hash(hf),
            tokenizer=tokenizer_hash(tokenizer),
            chat_template=chat_template_hash(tokenizer),
        )

    def __repr__(self) -> str:
        i = self.identity
        return f"HFModel({i.name!r}, {i.model_type}, {i.n_layers} layers, d_model {i.d_model})"

    @property
    def pad_id(self) -> int:
        """What fills the shorter rows of a batch; its value never matters, the mask hides it."""
        for name in ("pad_token_id", "eos_token_id"):
            value = getattr(self.tokenizer, name, None)
            if isinstance(value, int) and 0 <= value < self._vocab_size:
                return value
        return 0

    def sites(self) -> dict[Site, SiteStatus]:
        """Every site of the table with its status: verified and by what, or why not."""
        return {site: self._map.statuses[site] for site in known_sites(self.n_layers)}

    def width(self, site: Site) -> int:
        """The size of the last axis of a site; heads side by side; of a pattern, its heads."""
        self._tap(site)
        if site.kind == MODULE_KIND:
            return self._map.calls[str(site.path)][1][-1]
        return self._map.width(site)

    def heads(self, site: Site) -> int:
        """How many heads a site has, those chosen where some are; 0 where it has no heads."""
        self._tap(site)
        return (len(site.parts) or self._map.heads[site]) if site.whole in self._map.heads else 0

    def experts(self, layer: int) -> Experts:
        """How many experts a layer has, through how many a token goes, and how they are chosen.

        Raises:
            SiteUnavailableError: the layer has no verified router, with the reason.
        """
        (site,) = self.expand("router", [layer])
        assert site.layer is not None
        return self._map.experts[site.layer]

    def site_dtype(self, site: Site) -> torch.dtype:
        """The dtype the model computes a site in."""
        self._tap(site)
        if site.kind == MODULE_KIND:
            return self._map.calls[str(site.path)][2]
        return self._map.dtypes[site.whole]

    def resolve_layers(self, layers: Sequence[LayerSelector]) -> tuple[Site, ...]:
        """Sites of layer selectors.

        Args:
            layers: Indices (negative ones count from the end; they mean ``resid_post``), site keys,
                module paths, or modules of this model.

        Raises:
            BadInputError: no such layer, or the same one twice.
        """
        found: list[Site] = []
        for selector in layers:
            for site in self._resolve_layer(selector):
                if site in found:
                    raise BadInputError(
                        f"the layer {selector!r} was asked for twice",
                        got=str(site),
                        next_step="name every layer once",
                    )
                found.append(site)
        if not found:
            raise BadInputError("no layer was asked for", expected="for example layers=[-1]")
        return tuple(found)

    def _resolve_layer(self, selector: LayerSelector) -> tuple[Site, ...]:
        if isinstance(selector, nn.Module):
            for path, module in self.hf.named_modules():
                if module is selector:
                    return (Site.module(path),)
            raise BadInputError("the module is not part of this model", got=type(selector).__name__)
        if isinstance(selector, Site):
            return expand_sites([selector], None, self.n_layers)
        if isinstance(selector, bool) or not isinstance(selector, (int, str)):
            raise BadInputError(
                "a layer is an index, a site key, a module path or a module",
                got=type(selector).__name__,
            )
        if isinstance(selector, int):
            return expand_sites("resid_post", [selector], self.n_layers)
        if selector in self._map.calls:
            return (Site.module(selector),)
        return self.expand(selector, "all")

    def expand(
        self, sites: str | Sequence[str | Site], layers: str | int | Iterable[int] | None = "all"
    ) -> tuple[Site, ...]:
        """Turn site names and layers into sites this model has.

        Raises:
            UnknownNameError: no such site or module.
            SiteUnavailableError: the site is not verified on this model, with the reason.
        """
        found = expand_sites(sites, layers, self.n_layers, self._map.calls)
        for site in found:
            self._tap(site)
        return found

    def _tap(self, site: Site) -> Tap:
        if site.kind == MODULE_KIND:
            return self._module_tap(str(site.path))
        status = self._map.statuses.get(site.whole)
        if status is None:
            raise BadInputError(
                f"there is no site {site}", expected=f"layers 0 to {self.n_layers - 1}"
            )
        if not status.verified:
            raise SiteUnavailableError(
                f"site {site} is unavailable on {self.identity.name}",
                got=status.reason,
                next_step="`actscope doctor --model ...` lists what is verified",
            )
        if site.parts and site.parts[-1] >= (there := self._map.parts(site)):
            what = SITE_KINDS[site.kind].part
            raise BadInputError(f"{what} out of range", got=site, expected=f"0 to {there - 1}")
        return self._map.taps[site.whole]

    def runs_of(self, path: str) -> int:
        """How often a module runs in one forward pass."""
        return self._map.calls_of(path)

    def _module_tap(self, path: str) -> Tap:
        if path not in self._map.calls:
            known = [name for name, _ in self.hf.named_modules() if name]
            if path in known:
                raise SiteUnavailableError(
                    f"module {path} returns no floating-point tensor in a forward pass",
                )
            raise UnknownNameError("site or module", path, known)
        count, shape, _ = self._map.calls[path]
        if count != 1:
            raise SiteUnavailableError(
                f"module {path} runs {count} times in one forward pass", expected="once"
            )
        probe = tuple(self._map.blocks.post(0).shape[:2])
        if shape[:-1] not in (probe, (probe[0] * probe[1],)):
            raise SiteUnavailableError(
                f"module {path} has no token axis",
                got=f"shape {list(shape)} for a probe of {list(probe)}",
                expected="[n, pos, d]",
            )
        return Tap(path, "output")

    def encode(self, example: Example, *, chat: bool = False) -> TokenRow:
        """Tokens of one example, with exactly one BOS where the tokenizer writes one.

        On the decoder of an encoder-decoder the encoder reads the example, and the tokens are the
        decoder's: its start token, then those of ``metadata["target"]`` where that is given.

        Raises:
            ExampleError: it cannot be tokenised, or has no tokens.
            BadInputError: text without a tokenizer or chat without a template.
        """
        row = encode_example(self.tokenizer, example, chat=chat, vocab_size=self._vocab_size)
        if not reads_two_texts(self.hf):
            return row
        target = target_of(example)
        if target is None:
            return decoder_row(self.hf, row)
        read = encode_example(self.tokenizer, target, chat=False, vocab_size=self._vocab_size)
        return decoder_row(self.hf, row, read)

    def pads_alike(self, side: str) -> bool:
        """Whether a text's rows are the same beside a longer one; seen once, on a probe.

        Where they are not, texts of different lengths go through the model one length at a time.
        """
        if side not in self._pads_alike:
            with self.interventions.suspended():
                found = pads_alike(self.hf, self._map.blocks, self.pad_id, side)
            self._pads_alike[side] = found
        return self._pads_alike[side]

    def padded_left_alike(self, sites: Iterable[Site]) -> bool:
        """Whether these sites' rows are the same in a batch padded on the left."""
        if not self.pads_alike("left"):
            return False
        rotated = {site.whole for site in sites if site.kind in ("q", "k")}
        for site in sorted(rotated - self._rotated_alike.keys()):
            with self.interventions.suspended():
                self._rotated_alike[site] = rows_alike(self, [site])
        return all(self._rotated_alike[site] for site in rotated)

    def open(self, selection: Selection) -> HFSession:
        """Hooks for a selection; a context that removes them whatever happens."""
        selection.strategy.check(self)
        check_pattern_strategy(selection)
        check_text_span(self.tokenizer, selection.span)
        if selection.strategy.name == "pooler" and self._map.statuses[Site("pooler")].verified:
            check_pooler_sites(selection.sites)
        if selection.strategy.name == "cls" and self.cls_token_id is not None:
            check_cls_span(selection.span)
        return HFSession(self, selection, self.taps(selection))

    def taps(self, selection: Selection) -> dict[Site, Tap]:
        """Where each site of a selection is read.

        Raises:
            SiteUnavailableError: one is not verified on this model.
        """
        return {site: self._tap(site) for site in selection.sites}

    def capture(
        self,
        inputs: object,
        sites: str | Sequence[str | Site] = "resid_post",
        layers: str | int | Iterable[int] | None = "all",
        strategy: str | Strategy | Callable[..., Any] | None = None,
        span: str | Span = "all",
        *,
        chat: bool = False,
        batch_tokens: int = 4096,
    ) -> ActivationBatch:
        """Capture activations of some prompts, in memory.

        Args:
            inputs: Texts, token id lists, examples, or one ``Batch`` that runs exactly as it is.
            sites: Site names or keys, see ``Site``.
            layers: For bare names: ``"all"`` or indices, negative ones count from the end.
            strategy: A pooling strategy, its name, or a function; None keeps every token.
            span: Which tokens, see ``Span``.
            chat: Whether each text becomes a user turn of the chat template.
            batch_tokens: Padded tokens in one forward pass.

        Returns:
            ``batch["resid_post", 3]``: a list of ``[L_i, d_model]``, or ``[n, d_model]`` pooled.

        Raises:
            ExampleError: an example has no tokens, none in the span, or too many.
            SiteUnavailableError: a site is not verified on this model.
        """
        selection = Selection(self.expand(sites, layers), as_strategy(strategy), Span.parse(span))
        if isinstance(inputs, Batch):
            with self.open(selection) as session:
                return _refuse_failures(session.run(inputs))
        examples = as_examples(inputs)
        if not examples:
            raise BadInputError("there is nothing to capture: no inputs")
        rows = [self.checked(self.encode(example, chat=chat)) for example in examples]
        return self.capture_rows(rows, selection, batch_tokens)

    def capture_rows(
        self, rows: Sequence[TokenRow], selection: Selection, batch_tokens: int
    ) -> ActivationBatch:
        """Capture ready token rows in batches of a token budget, in memory.

        Raises:
            ExampleError: an example has no token in the span.
        """
        plan = length_sorted_batches([row.longest for row in rows], batch_tokens=batch_tokens)
        with self.open(selection) as session:
            parts = [
                _refuse_failures(session.run(Batch(tuple(rows[i] for i in indices))))
                for indices in plan
            ]
        return ActivationBatch.join(parts, [i for indices in plan for i in indices])

    def read_modules(self, paths: Sequence[str], **inputs: Any) -> dict[str, list[torch.Tensor]]:
        """What any modules return in one pass over any inputs, such as an image tower's blocks.

        Args:
            paths: Module paths of ``model.hf``.
            inputs: What ``model.hf`` is called with, such as ``input_ids`` and ``pixel_values``.

        Returns:
            For each path the first floating-point tensor of each of its calls, on the CPU.

        Raises:
            UnknownNameError: no such module.
            BadInputError: a module did not run on these inputs.
        """
        return read_modules(self, paths, inputs)

    def checked(self, row: TokenRow) -> TokenRow:
        """The row, if the context holds it.

        Raises:
            ExampleError: it is too long.
        """
        if self.context_length is not None and row.longest > self.context_length:
            raise ExampleError(
                "too_long",
                f"example {row.id!r} has {row.longest} tokens; the context holds "
                f"{self.context_length}",
                next_step="shorten it; DatasetRunner and `actscope capture` can skip or truncate",
            )
        return row

    def unembed(self, resid: torch.Tensor) -> torch.Tensor:
        """Logits of residual rows: final norm, unembedding, the model's own scale or soft-cap.

        Args:
            resid: ``[..., d_model]``.

        Returns:
            ``[..., d_vocab]`` on the CPU.

        Raises:
            SiteUnavailableError: the path from residual to logits is not verified here.
        """
        unembedding = self._map.unembedding
        if unembedding.transform is None:
            raise SiteUnavailableError(
                f"{self.identity.name} has no verified unembedding", got=unembedding.reason
            )
        hidden = resid.to(self.device, self._map.dtypes[Site("resid_post", 0)])
        with (
            alone(self.hf),
            torch.no_grad(),
            evaluation_mode(self.hf),
            self.interventions.suspended(),
        ):
            return unembedding.logits(self.hf, hidden).cpu()


def _refuse_failures(batch: ActivationBatch) -> ActivationBatch:
    if batch.failures:
        first = batch.failures[0]
        raise ExampleError(first.kind, first.message)
    return batch
