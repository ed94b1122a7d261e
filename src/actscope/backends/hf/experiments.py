"""What can be done to a model beyond reading it: interventions, and what follows from them."""

from __future__ import annotations

from dataclasses import replace
from functools import cached_property
from typing import TYPE_CHECKING, cast

from actscope.backends.hf.intervening import Applied, Interventions
from actscope.backends.hf.resolve import ModelMap, Tap
from actscope.core.protocols import Intervention
from actscope.core.sites import Site
from actscope.core.spec import ModelIdentity

if TYPE_CHECKING:
    from actscope.backends.hf.model import HFModel

__all__ = ["Experiments"]


class Experiments:
    """The part of ``HFModel`` that changes what runs."""

    _map: ModelMap
    _identity: ModelIdentity

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
        return Interventions(cast("HFModel", self), self._map, self._tap)

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
