"""Gemma 2 caps its logits."""

from actscope.families._facts import Family

FAMILY = Family(logit_softcap="final_logit_softcapping")
