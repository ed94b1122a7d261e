"""Import of per-layer ``.pt`` dumps: ``layer_0.pt``, ``layer_1.pt``, ... of one dataset.

Each file holds one tensor ``[n, d]`` (pooled) or ``[n, seq, d]``, or a list of ``[L_i, d]``
tensors, one an example. ``--option site=...`` says what the numbers are layers of, unless a file is
called after its site (``blocks.3.resid_post.pt``).
"""

from __future__ import annotations

import re
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any, ClassVar, cast

from actscope.core.activations import ActivationBatch
from actscope.core.arrays import Array
from actscope.core.errors import BadInputError, DamagedRunError
from actscope.core.sites import Site
from actscope.formats._format import Option, RunFormat
from actscope.formats._parts import SITE_OPTION, files_of
from actscope.formats._records import batch_of_examples, site_of
from actscope.formats.pt import load_pt, numpy_of

__all__ = ["FORMAT", "PtLayersFormat"]

_NUMBERED = re.compile(r"(?:.*_)?layer_?(\d{1,5})")


class PtLayersFormat(RunFormat):
    """One torch file a layer."""

    name: ClassVar[str] = "pt_layers"
    summary: ClassVar[str] = "one .pt a layer, a tensor or a list of tensors each"
    writes: ClassVar[bool] = False
    keeps_bfloat16: ClassVar[bool] = True
    lossless: ClassVar[bool] = False
    options: ClassVar[Mapping[str, Option]] = {"site": SITE_OPTION}

    def foreign(
        self, path: Path, options: Mapping[str, Any]
    ) -> Iterator[tuple[str, ActivationBatch]]:
        """The whole folder as one unit."""
        rows: dict[Site, list[Array]] = {}
        for file in files_of(path, (".pt", ".pth"), self.name):
            site = _site(file, str(options["site"]))
            if site in rows:
                raise BadInputError(f"two files hold {site}", got=file)
            rows[site] = _examples(file)
        yield path.stem, batch_of_examples(path.stem, rows)


def _site(file: Path, kind: str) -> Site:
    named = site_of(file.stem)
    if named is not None:
        return named
    match = _NUMBERED.fullmatch(file.stem)
    if match is None:
        raise BadInputError(
            f"{file.name} is called after no layer",
            expected="layer_3.pt, activations_layer_03.pt or blocks.3.resid_post.pt",
        )
    if not kind:
        raise BadInputError(
            f"{file.name} does not say what of layer {int(match[1])} it holds",
            next_step="--option site=resid_post, or another kind of site",
        )
    return Site(kind, int(match[1]))


def _examples(path: Path) -> list[Array]:
    """One array an example.

    Raises:
        DamagedRunError: the file holds neither a tensor nor a list of tensors.
    """
    import torch

    data = load_pt(path)
    items = cast("list[Any]", list(data) if isinstance(data, (list, tuple)) else [data])
    try:
        if not items or not all(isinstance(item, torch.Tensor) for item in items):
            raise ValueError(type(data).__name__)
        arrays = [numpy_of(item) for item in items]
        if len(arrays) == 1 and not isinstance(data, (list, tuple)):
            if arrays[0].ndim not in (2, 3):
                raise ValueError(f"shape {list(arrays[0].shape)}")
            arrays = list(arrays[0])
    except ValueError as error:
        raise DamagedRunError(
            f"{path} holds neither a tensor nor a list of tensors",
            got=str(error),
            expected="[n, d], [n, seq, d], or a list of [L, d]",
            next_step="save one tensor a layer",
        ) from error
    return arrays


FORMAT = PtLayersFormat()
