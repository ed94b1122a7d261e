"""Changes to a running model's activations. One file per intervention."""

from __future__ import annotations

from actscope.core.protocols import Intervention
from actscope.core.registry import Registry
from actscope.interventions._base import SiteIntervention, tokens_in_words
from actscope.interventions.ablate import Ablate
from actscope.interventions.add import Add
from actscope.interventions.clamp import Clamp
from actscope.interventions.patch import Patch

__all__ = [
    "INTERVENTIONS",
    "Ablate",
    "Add",
    "Clamp",
    "Patch",
    "SiteIntervention",
    "tokens_in_words",
]

INTERVENTIONS: Registry[type[Intervention]] = Registry(
    "actscope.interventions", "INTERVENTION", "intervention"
)
