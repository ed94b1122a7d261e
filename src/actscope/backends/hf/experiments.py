"""What can be done to a model beyond reading it: interventions, and what follows from them."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import replace
from functools import cached_property
from typing import TYPE_CHECKING, Any, cast

from actscope.analysis.attribution import Attribution
from actscope.backends.hf.attribution import Ends, attribute_logit
from actscope.backends.hf.gradients import Gradients, LogitDifference, Loss, gradients_of
from actscope.backends.hf.intervening import Applied, Interventions
from actscope.backends.hf.resolve import ModelMap, Tap
from actscope.backends.hf.tokens import single_token
from actscope.core.activations import Batch
from actscope.core.errors import BadInputError, SiteUnavailableError
from actscope.core.protocols import Intervention
from actscope.core.sites import Site
from actscope.core.spec import ModelIdentity
from actscope.core.text import as_examples

if TYPE_CHECKING:
    from actscope.backends.hf.model import HFModel

__all__ = ["Experiments"]


class Experiments:
    """The part of ``HFModel`` that changes what runs."""

    _map: ModelMap
    _identity: ModelIdentity
    _vocab_size: int
    tokenizer: Any

    def _tap(self, site: Site) -> Tap:
        raise NotImplementedError  # HFModel's own

    @property
    def identity(self) -> ModelIdentity:
        """What it is called on record, with everything that is done to it at the moment."""
        done = self.interventions.describe()
        return replace(self._identity, interventions=done) if done else self._identity

    @cached_property
    def interventions(self) -> Interventions:
        """What is done to the model at the moment."""
        return Interventions(cast("HFModel", self), lambda: self._map, self._tap)

    def intervene(self, *interventions: Intervention) -> Applied:
        """Change activations while a ``with`` block runs.

        ``with model.intervene(Add(direction, layer=12, strength=4.0)) as applied:`` changes every
        forward pass inside: captures, generation (prefill and every new token), dataset runs and
        calls of ``model.hf``. Several are applied in order; contexts may be nested.

        Args:
            interventions: ``Add``, ``Ablate``, ``Clamp``, ``Patch``, or your own.

        Returns:
            A context. ``applied.effects`` says what was changed where; ``applied.check()`` raises
            where an intervention never fired.

        Raises:
            BadInputError: a layer or token that is not there, another width.
            SiteUnavailableError: a site that this model has not or that cannot be changed.
        """
        return self.interventions.apply(interventions)

    def gradients(
        self,
        inputs: object,
        loss: Loss,
        sites: str | Sequence[str | Site] = "resid_post",
        layers: str | int | Iterable[int] | None = "all",
        *,
        chat: bool = False,
    ) -> Gradients:
        """Differentiate a scalar of the logits with respect to activations.

        The inputs run as one batch, because only the loss knows how examples combine. Low
        precision makes noisy gradients: prefer a model in float32.

        Args:
            inputs: As for ``capture``.
            loss: ``loss(logits, batch)`` with logits ``[n, pos, d_vocab]`` -> a torch scalar;
                ``model.logit_difference(a, b)`` is one.
            sites: As for ``capture``; those that can be changed.
            layers: As for ``capture``.
            chat: As for ``capture``.

        Returns:
            ``gradients["resid_post", 3]``: a list of ``[L_i, d_model]``; row i belongs to token i.

        Raises:
            ExampleError: an example has no tokens or too many.
            BadInputError: nothing to run, or the loss is no finite scalar of the logits.
            SiteUnavailableError: a site that is not verified or cannot be changed.
        """
        model = cast("HFModel", self)
        found = model.expand(sites, layers)
        if not isinstance(inputs, Batch):
            rows = [model.encode(example, chat=chat) for example in as_examples(inputs)]
            inputs = Batch(tuple(model.checked(row) for row in rows))
        return gradients_of(model, inputs, found, loss)

    def logit_difference(self, token: int | str, versus: int | str) -> LogitDifference:
        """A loss: the logit of one token minus another's at each example's last token, summed.

        Args:
            token: A token id, or a text that is one token.
            versus: Likewise.

        Raises:
            BadInputError: no such token, or a text of several.
        """
        return LogitDifference(self.token_id(token), self.token_id(versus))

    def logit_attribution(
        self,
        prompt: object,
        token: int | str,
        versus: int | str | None = None,
        *,
        position: int = -1,
        chat: bool = False,
    ) -> Attribution:
        """Attribute a logit, or a difference of two, to the parts of the residual stream.

        The parts are ``embed`` (all that enters the first block, position embeddings included) and
        ``attn_out.L`` and ``mlp_out.L`` of every block, through the final norm with its scale held
        fixed. Where a model soft-caps its logits, the logit before the cap is attributed, and the
        result's ``note`` says so.

        Args:
            prompt: One text, example or list of token ids.
            token: A token id, or a text that is one token.
            versus: The one whose logit counts down; None attributes a single logit.
            position: The token whose prediction is explained; negative ones from the end.
            chat: As for ``capture``.

        Raises:
            BadInputError: no such token or position, or not one prompt.
            SiteUnavailableError: a part is not verified, or the unembedding is not linear.
        """
        model = cast("HFModel", self)
        unembedding, norm = self._map.unembedding, self._map.norm
        if unembedding.transform is None or norm is None:
            raise SiteUnavailableError(
                f"{model.identity.name} has no verified final norm and unembedding",
                got=unembedding.reason or "the head reads the last block's output",
            )
        ids = isinstance(prompt, Sequence) and all(isinstance(i, int) for i in prompt)
        examples = as_examples([prompt] if ids else prompt)
        if len(examples) != 1:
            raise BadInputError("one prompt at a time", got=f"{len(examples)} prompts")
        tokens = (self.token_id(token), None if versus is None else self.token_id(versus))
        parts = (model.hf.get_submodule(norm.path), model.hf.get_submodule(unembedding.head))
        row = model.checked(model.encode(examples[0], chat=chat))
        return attribute_logit(model, Ends(*parts, unembedding), row, position, tokens)

    def token_id(self, token: int | str) -> int:
        """The id of a token given by its id or its text.

        Raises:
            BadInputError: no such token, or a text of several.
        """
        return single_token(self.tokenizer, token, self._vocab_size)
