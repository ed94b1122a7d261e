"""The page docs/coverage.md, from the results of the benchmark."""

from __future__ import annotations

from typing import Any

SIGNS = {"verified": "✓", "not applicable": "·", "unavailable": "–", "WRONG": "**WRONG**", "unjudged": "?"}  # fmt: skip


def page(results: dict[str, Any], environment: dict[str, Any], names: list[str]) -> str:
    return ""
