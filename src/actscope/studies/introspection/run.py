"""The whole chain: collect from a base model and its adapter, compare, analyse, report."""

from __future__ import annotations

import time
from collections.abc import Callable
from typing import TYPE_CHECKING

from actscope.capture.progress import Progress
from actscope.studies.introspection.analyze import analyze
from actscope.studies.introspection.collect import Collected, collect
from actscope.studies.introspection.data import open_collection
from actscope.studies.introspection.params import CollectParams, IntrospectionParams
from actscope.studies.introspection.result import IntrospectionResult

if TYPE_CHECKING:
    from actscope.backends.hf import HFModel

__all__ = ["run_introspection"]


def run_introspection(
    model: HFModel,
    params: IntrospectionParams,
    *,
    progress: Progress | None = None,
    step: Callable[[str], None] = lambda name: None,
) -> IntrospectionResult:
    """Do what is missing, and write the report anew.

    Args:
        model: The base model; its adapter is loaded where it is not.
        params: What to do.
        progress: Told how far a collection is.
        step: Told what is being done.

    Raises:
        RunMismatchError: the folder holds another model's collection.
        ModelLoadError: there is no such adapter.
    """
    adapters: dict[str, str | None] = {"base": None}
    if params.adapter is not None:
        if params.adapter not in model.adapters:
            model.load_adapter(params.adapter, name=params.adapter)
        adapters["finetuned"] = params.adapter
    seconds: dict[str, float] = {}
    done: dict[str, Collected] = {}
    for name, adapter in adapters.items():
        step(f"collect {name}")
        with model.adapter(adapter):
            wanted = CollectParams(
                params.out / name, params.dataset, params.num_questions, params.offset
            )
            done[name] = collect(model, wanted, progress)
        seconds[f"collect {name}"] = done[name].seconds
    began = time.perf_counter()
    opened = {name: open_collection(params.out / name)[0] for name in done}
    with model.adapter(None):
        found = analyze(
            opened["base"],
            model,
            params.out / "analysis",
            params.analysis,
            other=opened.get("finetuned"),
            step=step,
        )
    seconds["analyze"] = time.perf_counter() - began
    return IntrospectionResult(done, found, seconds)
