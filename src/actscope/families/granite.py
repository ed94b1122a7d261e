"""Granite scales both contributions and divides its logits."""

from actscope.families._facts import Family

FAMILY = Family(residual_scale="residual_multiplier", logit_divisor="logits_scaling")
