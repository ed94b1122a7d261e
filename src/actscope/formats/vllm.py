"""Import of vLLM's hidden states: one safetensors file a request (``extract_hidden_states``).

A file holds ``hidden_states`` ``[tokens, layers, d]`` (``[layers, tokens, d]`` in early versions)
and ``token_ids`` ``[tokens]``; it does not say which layers, so ``--option layer_ids=...`` repeats
what ``eagle_aux_hidden_state_layer_ids`` was. An id L is what enters layer L: ``resid_post`` of
L - 1. It is never normed, so the number of layers gives the last block's output.

Layout: https://docs.vllm.ai/en/latest/features/speculative_decoding/extract_hidden_states/
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any, ClassVar

from actscope.core.activations import ActivationBatch
from actscope.core.arrays import Array
from actscope.core.errors import BadInputError, DamagedRunError
from actscope.core.sites import Site
from actscope.formats._format import Option, RunFormat
from actscope.formats._parts import files_of
from actscope.formats._records import batch_of_examples
from actscope.stores import SafetensorsFile

__all__ = ["FORMAT", "VllmFormat"]


def _ids(words: str) -> tuple[int, ...]:
    found = tuple(int(word) for word in words.split(","))
    if min(found) < 0 or len(set(found)) < len(found):
        raise ValueError(words)
    return found


class VllmFormat(RunFormat):
    """vLLM's files of hidden states."""

    name: ClassVar[str] = "vllm"
    summary: ClassVar[str] = "vLLM's hidden states, one .safetensors a request"
    writes: ClassVar[bool] = False
    keeps_bfloat16: ClassVar[bool] = True
    lossless: ClassVar[bool] = False
    options: ClassVar[Mapping[str, Option]] = {
        "layer_ids": Option((), _ids, "vLLM's own layer ids in order: 2,18,29")
    }

    def foreign(
        self, path: Path, options: Mapping[str, Any]
    ) -> Iterator[tuple[str, ActivationBatch]]:
        """One unit and one example a request, called after its file."""
        ids: tuple[int, ...] = options["layer_ids"]
        if not ids:
            raise BadInputError(
                "the files do not say which layers they hold",
                next_step="--option layer_ids=2,18,29 repeats eagle_aux_hidden_state_layer_ids",
            )
        files = files_of(path, (".safetensors",), self.name)
        tokens_first = _tokens_first(files, len(ids))
        for number, file in enumerate(files):
            hidden, tokens = _load(file)
            if hidden.ndim != 3 or hidden.shape[1 if tokens_first else 0] != len(ids):
                raise _other_shape(file, hidden.shape, len(ids))
            rows = {
                _site(layer): [hidden[:, i] if tokens_first else hidden[i]]
                for i, layer in enumerate(ids)
            }
            if hidden.shape[0 if tokens_first else 1] != len(tokens):
                raise _other_shape(file, hidden.shape, len(ids))
            yield (
                file.name,
                batch_of_examples(
                    file.stem, rows, token_ids=[tokens], ids=[file.stem], first=number
                ),
            )


def _site(layer_id: int) -> Site:
    """What enters layer L leaves layer L - 1, and what enters the first is its own."""
    return Site("resid_post", layer_id - 1) if layer_id else Site("resid_pre", 0)


def _load(path: Path) -> tuple[Array, Array]:
    file = SafetensorsFile(path)
    try:
        return file.read("hidden_states"), file.read("token_ids").reshape(-1)
    except DamagedRunError as error:
        raise DamagedRunError(
            f"{path} is no file of vLLM's hidden states",
            got=", ".join(file.names())[:300],
            expected="hidden_states and token_ids",
            next_step="--from safetensors reads tensors that are called after sites",
        ) from error


def _other_shape(path: Path, shape: Sequence[int], layers: int) -> BadInputError:
    return BadInputError(
        f"{path} holds hidden states of another shape",
        got=list(shape),
        expected=f"[tokens, {layers}, d], a token a token id",
        next_step="--option layer_ids must name as many layers as the files hold",
    )


def _tokens_first(files: Sequence[Path], layers: int) -> bool:
    """Whether tokens are the first axis, from the first file where the two axes differ.

    Raises:
        BadInputError: no file tells.
    """
    for path in files:
        hidden, tokens = _load(path)
        if hidden.ndim != 3 or sorted(hidden.shape[:2]) != sorted((layers, len(tokens))):
            raise _other_shape(path, hidden.shape, layers)
        if layers != len(tokens):
            return hidden.shape[0] == len(tokens)
    raise BadInputError(
        "every file has as many tokens as layers, so nothing tells which axis is which",
        next_step="import them together with a file of another length",
    )


FORMAT = VllmFormat()
