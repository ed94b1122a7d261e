"""A user's own function."""

from __future__ import annotations

import functools
import hashlib
import inspect
import textwrap
from collections.abc import Callable, Mapping
from types import CodeType
from typing import TYPE_CHECKING, Any, ClassVar, cast

import numpy as np
import numpy.typing as npt

from actscope.core.errors import BadInputError
from actscope.strategies._base import PlainStrategy

if TYPE_CHECKING:
    import torch

__all__ = ["STRATEGY", "CustomStrategy"]

_PLAIN = (bool, int, float, complex, str, bytes, type(None))


class CustomStrategy(PlainStrategy):
    """A function from the kept rows of one example to one vector.

    What the function raises comes out as it is. It has no part in a spec beyond its name and a
    hash: of its source, its defaults and the plain values and arrays it closes over. What it reads
    from global variables is not noticed.

    Args:
        function: Gets float32 numpy ``[L_i, d]`` without padding, returns ``[d']``; d' must be the
            same for every example.

    Raises:
        BadInputError: it is not callable.
    """

    name: ClassVar[str] = "custom"

    def __init__(self, function: Callable[[npt.NDArray[np.float32]], npt.ArrayLike]) -> None:
        if not callable(function):
            raise BadInputError("a custom strategy needs a function", got=type(function).__name__)
        self.function = function

    @property
    def params(self) -> Mapping[str, Any]:
        """The function's name and a hash of its code, so that a changed function is noticed."""
        digest = hashlib.sha256()
        for part in _parts(self.function, ()):
            digest.update(len(part).to_bytes(8, "little") + part)
        return {"function": _name(self.function), "code": digest.hexdigest()[:16]}

    def pool(self, hidden: torch.Tensor, mask: torch.Tensor) -> torch.Tensor:
        """``[n, pos, d]`` and ``[n, pos]`` -> ``[n, d']`` float32.

        Raises:
            BadInputError: the function did not return one vector, of one size for all examples.
        """
        import torch

        kept = hidden[mask].float().cpu().numpy()  # examples one after the other; a copy
        ends = np.cumsum(mask.sum(1).cpu().numpy())
        rows: list[npt.NDArray[np.float32]] = []
        for tokens in np.split(kept, ends[:-1]):
            row = self._vector(self.function(tokens))
            if rows and row.shape != rows[0].shape:
                raise self._wrong(f"{len(row)} numbers", f"{len(rows[0])}, as for the one before")
            rows.append(row)
        return torch.from_numpy(np.stack(rows)).to(hidden.device)

    def _vector(self, value: object) -> npt.NDArray[np.float32]:
        """What the function returned, as a vector."""
        try:
            row = np.asarray(cast("npt.ArrayLike", value))
        except (TypeError, ValueError):  # rows of different lengths
            raise self._wrong(type(value).__name__, "one vector") from None
        if row.ndim != 1 or not row.size:
            raise self._wrong(f"shape {list(row.shape)}", "one vector, shape [d]")
        if row.dtype.kind not in "fiub" and row.dtype.name != "bfloat16":
            raise self._wrong(f"dtype {row.dtype}", "real numbers")
        return row.astype(np.float32)

    def _wrong(self, got: str, expected: str) -> BadInputError:
        return BadInputError(
            f"the custom strategy {_name(self.function)} must return one vector of the same size "
            "for every example",
            got=got,
            expected=expected,
            next_step="reduce the token axis: for [L, d] return [d], as h.mean(axis=0) does",
        )


def _name(function: Any) -> str:
    """Module and qualified name of a function, a class, or an object's class."""
    while isinstance(function, functools.partial):
        function = cast("Any", function).func
    named = function if hasattr(function, "__qualname__") else type(function)
    home = getattr(named, "__module__", None)
    return f"{home}.{named.__qualname__}" if home else str(named.__qualname__)


def _parts(value: Any, seen: tuple[int, ...]) -> list[bytes]:
    """The bytes that tell a function, or a value it holds, from another."""
    if isinstance(value, _PLAIN):
        return [repr(value).encode("utf-8", "surrogatepass")]
    array = _array(value)
    if array is not None:
        return [str((array.dtype, array.shape)).encode(), array.tobytes()]
    if id(value) in seen:  # a function that closes over itself
        return [b"..."]
    seen = (*seen, id(value))
    held: list[Any]
    if isinstance(value, (list, tuple)):
        text, held = type(value).__name__, list(cast("list[Any]", value))
    elif isinstance(value, Mapping):
        text, held = "mapping", list(cast("Mapping[Any, Any]", value).items())
    elif isinstance(value, functools.partial):
        partial = cast("functools.partial[Any]", value)
        text, held = "partial", [partial.func, partial.args, partial.keywords]
    elif inspect.isfunction(value):
        text, held = _code(value), _held_by(value)
    elif inspect.ismethod(value):
        text, held = "method", [value.__func__, value.__self__]
    elif isinstance(value, type) or inspect.isbuiltin(value):
        text, held = _name(value), []
    else:
        text, held = _code(type(value)) if callable(value) else _name(value), _plain_state(value)
    return [text.encode("utf-8", "surrogatepass"), *(p for v in held for p in _parts(v, seen))]


def _array(value: Any) -> npt.NDArray[Any] | None:
    """A numpy array, or a torch tensor as one."""
    if isinstance(value, np.ndarray):
        return None if value.dtype.kind == "O" else value
    if callable(getattr(value, "detach", None)) and hasattr(value, "is_floating_point"):
        return np.asarray(value.detach().cpu().double().numpy())
    return None


def _plain_state(value: Any) -> list[Any]:
    """Attributes that are numbers, texts or arrays; not what hangs on them, such as a model."""
    attributes = sorted(getattr(value, "__dict__", {}).items()) if callable(value) else []
    return [
        (name, item)
        for name, item in attributes
        if isinstance(item, _PLAIN) or _array(item) is not None
    ]


def _held_by(function: Any) -> list[Any]:
    cells = [cell.cell_contents for cell in function.__closure__ or () if _is_filled(cell)]
    return [function.__defaults__, function.__kwdefaults__, cells]


def _is_filled(cell: Any) -> bool:
    try:
        return bool([cell.cell_contents])
    except ValueError:
        return False


def _code(thing: Any) -> str:
    """The source of a function or class; the bytecode where there is no source of its own.

    A lambda's source is the whole line it stands on, so its bytecode is taken.
    """
    if getattr(thing, "__name__", "") != "<lambda>":
        try:
            return textwrap.dedent(inspect.getsource(thing)).strip()
        except (OSError, TypeError):
            pass
    code = getattr(thing, "__code__", None)
    return _bytecode(code) if isinstance(code, CodeType) else _name(thing)


def _bytecode(code: CodeType) -> str:
    consts = [_bytecode(c) if isinstance(c, CodeType) else repr(c) for c in code.co_consts]
    return repr((code.co_code.hex(), consts, code.co_names, code.co_varnames))


STRATEGY = CustomStrategy
