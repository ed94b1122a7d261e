"""The backend contract over every backend, on a decoder, a parallel decoder and an encoder."""

from __future__ import annotations

from typing import Any

import pytest

from actscope.backends import BACKENDS
from actscope.testing.backend_contract import BackendContract
from actscope.testing.tiny_models import tiny_model

_LOADED: dict[tuple[str, str], Any] = {}


def load(backend: str, family: str, folder: Any) -> Any:
    key = (backend, family)
    if key not in _LOADED:
        tiny_model(family).save_pretrained(folder)
        _LOADED[key] = BACKENDS.get(backend)().load_model(str(folder), "cpu")
    return _LOADED[key]


class TestBackends(BackendContract):
    @pytest.fixture(params=["llama", "gpt_neox", "bert"])
    def family(self, request: pytest.FixtureRequest) -> str:
        return request.param

    @pytest.fixture(params=BACKENDS.names())
    def model(self, request: pytest.FixtureRequest, family: str, tmp_path: Any) -> Any:
        return load(request.param, family, tmp_path / family)
