"""Cohere 2 multiplies its logits."""

from actscope.families._facts import Family

FAMILY = Family(logit_scale="logit_scale")
