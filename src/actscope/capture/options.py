"""How a dataset is captured, beyond which sites of which model."""

from __future__ import annotations

from dataclasses import dataclass

from actscope.core.coding import CODEC_NAMES
from actscope.core.errors import UnknownNameError
from actscope.core.protocols import GenerationParams
from actscope.core.whole_numbers import whole_number

__all__ = ["AUTO", "ON_TOO_LONG", "SHARE_PREFIX", "STORAGE_DTYPES", "CaptureOptions"]

ON_TOO_LONG = ("error", "skip", "truncate-left", "truncate-right")
AUTO = "auto"
SHARE_PREFIX = ("off", "auto")
STORAGE_DTYPES = ("native", "float32", "float16", "bfloat16")


@dataclass(frozen=True)
class CaptureOptions:
    """Options of a run.

    Attributes:
        batch_tokens: Padded tokens in one forward pass, where no batch size is given. ``auto``
            tries what is fastest here when a run is begun; the run keeps what was found.
        unit_size: Examples in a unit of work; None chooses by length and bytes.
        offset: First example of the range.
        limit: Number of examples of the range; None takes the rest.
        on_too_long: ``error`` stops before the first unit is captured; ``skip`` records a failure;
            ``truncate-left`` and ``truncate-right`` drop tokens on that side and note it.
            Special tokens at the ends of the prompt (BOS, template marks) stay.
        max_length: Longest prompt in tokens; None means the model's context.
        chat: Whether plain text becomes one user turn of the chat template.
        generation: Continue each prompt and capture the answer too.
        keep_text: Whether text and token ids are stored. Without it, metadata keeps its numbers
            and booleans only.
        storage_dtype: ``native`` (what was computed), ``float32``, ``float16`` or ``bfloat16``
            (where the storage has it; one row an example stays float32).
        codec: ``int8`` keeps activations in about 8 bits a value (MXINT8), ``zstd`` compresses them
            without loss; None keeps them as they are.
        share_prefix: ``auto`` computes what texts of a unit have in common at their beginning once,
            where the model was found to give the values of a plain pass; ``off`` never does.
        queue_bytes: How much may wait for the disk before the model waits too.

    Raises:
        BadInputError: a number is no whole number, or too small.
        UnknownNameError: a name that is not in its list.
    """

    batch_tokens: int | str = AUTO
    unit_size: int | None = None
    offset: int = 0
    limit: int | None = None
    on_too_long: str = "error"
    max_length: int | None = None
    chat: bool = False
    generation: GenerationParams | None = None
    keep_text: bool = True
    storage_dtype: str = "native"
    codec: str | None = None
    share_prefix: str = "off"
    queue_bytes: int = 128 << 20

    def __post_init__(self) -> None:
        if self.on_too_long not in ON_TOO_LONG:
            raise UnknownNameError("policy for long prompts", self.on_too_long, ON_TOO_LONG)
        if self.storage_dtype not in STORAGE_DTYPES:
            raise UnknownNameError("storage dtype", self.storage_dtype, STORAGE_DTYPES)
        if self.codec is not None and self.codec not in CODEC_NAMES:
            raise UnknownNameError("codec", self.codec, CODEC_NAMES)
        if self.share_prefix not in SHARE_PREFIX:
            raise UnknownNameError("share_prefix", self.share_prefix, SHARE_PREFIX)
        if self.batch_tokens != AUTO:
            self._read("batch_tokens", 1, f"{AUTO!r}")
        self._read("queue_bytes", 1)
        self._read("offset", 0)
        for name, least in (("unit_size", 1), ("max_length", 1), ("limit", 0)):
            if getattr(self, name) is not None:
                self._read(name, least, "None")

    def _read(self, name: str, least: int, instead: str = "") -> None:
        value = whole_number(name, getattr(self, name), least, instead=instead)
        object.__setattr__(self, name, value)
