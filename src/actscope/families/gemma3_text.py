"""Gemma 3 may cap its logits."""

from actscope.families._facts import Family

FAMILY = Family(logit_softcap="final_logit_softcapping")
