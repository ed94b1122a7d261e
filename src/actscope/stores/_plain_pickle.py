"""Pickles of plain containers, written and read without Python's pickle machine.

A pickle is a program. The reader here knows the few instructions that build None, numbers, texts,
bytes, lists, tuples and dictionaries, and the one pattern in which numpy writes an array of
numbers. It has no instruction that looks a name up or calls anything, so whatever a file says,
nothing of it runs. Bytes are not copied: they stay in the file's own pages.

Format: https://github.com/python/cpython/blob/main/Lib/pickletools.py (protocols 2 to 5).
"""

from __future__ import annotations

import re
import struct
from collections.abc import Callable, Iterator, Mapping
from typing import Any, BinaryIO, cast

import numpy as np
import xxhash

from actscope.core.arrays import Array, dtype_name
from actscope.stores._formats import FileSums, as_bytes

__all__ = ["PlainPickleError", "read_plain_pickle", "walk_arrays", "write_plain_pickle"]

_CHUNK = 8 << 20
_LARGEST_TEXT = 256 << 20
_MOST_VALUES = 1 << 20
_MARK = object()


class PlainPickleError(ValueError):
    """The file asks for more than plain containers, or is cut short."""


# -- writing -------------------------------------------------------------------------------


def write_plain_pickle(
    file: BinaryIO, tensors: Mapping[str, Array], header: Mapping[str, str]
) -> FileSums:
    """Stream ``{"header": {...}, "tensors": {name: {"dtype", "shape", "data"}}}``.

    ``pickle.load`` gives dictionaries, lists, texts, numbers and bytes, and needs no class.
    """
    whole = xxhash.xxh3_128()
    sums: dict[str, str] = {}

    def put(data: bytes | memoryview) -> None:
        file.write(data)
        whole.update(data)

    put(b"\x80\x04}(" + _text("header") + b"}(")
    for key, value in sorted(header.items()):
        put(_text(key) + _text(value))
    put(b"u" + _text("tensors") + b"}(")
    for name in sorted(tensors):
        array = tensors[name]
        data = as_bytes(array)
        shape = b"](" + b"".join(_int(n) for n in array.shape) + b"e"
        put(_text(name) + b"}(" + _text("dtype") + _text(dtype_name(array.dtype)))
        put(_text("shape") + shape + _text("data") + b"\x8e" + struct.pack("<Q", len(data)))
        for at in range(0, len(data), _CHUNK):
            put(data[at : at + _CHUNK])
        put(b"u")
        sums[name] = xxhash.xxh3_128_hexdigest(data)
    put(b"uu.")
    return FileSums(whole.hexdigest(), sums)


def _text(value: str) -> bytes:
    raw = value.encode("utf-8", "surrogatepass")
    return b"X" + struct.pack("<I", len(raw)) + raw


def _int(value: int) -> bytes:
    return b"\x8a\x08" + struct.pack("<q", value)


# -- reading -------------------------------------------------------------------------------


class _Name:
    """A name numpy's arrays mention; it stands for itself and is never looked up."""

    def __init__(self, name: str) -> None:
        self.name = name


class _Dtype:
    """What ``numpy.dtype`` was called with."""

    def __init__(self, code: str) -> None:
        if not re.fullmatch(r"[<>|=]?(?:b1|[iu][1248]|f[248])", code):
            raise PlainPickleError(f"an array of {code!r}, which are no plain numbers")
        self.code = code

    def numpy(self) -> np.dtype[Any]:
        return np.dtype(self.code)


class _Blank:
    """An array whose content the next instructions give."""

    def __init__(self) -> None:
        self.array: Array | None = None


_NAMES = {
    f"{module}{rest}": kind
    for kind, rest in (
        ("reconstruct", "multiarray _reconstruct"),
        ("scalar", "multiarray scalar"),
        ("frombuffer", "numeric _frombuffer"),
    )
    for module in ("numpy.core.", "numpy._core.")
} | {"numpy ndarray": "ndarray", "numpy dtype": "dtype"}


def _array(data: Any, dtype: Any, shape: Any, order: str) -> Array:
    """An array over bytes of the file: exactly as many as its shape says."""
    if not isinstance(dtype, _Dtype) or not isinstance(data, memoryview):
        raise PlainPickleError("an array that is not described by a dtype and bytes")
    sizes = cast("tuple[Any, ...]", shape)
    if not isinstance(shape, tuple) or not all(type(n) is int and n >= 0 for n in sizes):
        raise PlainPickleError("an array without a shape")
    size = dtype.numpy().itemsize
    for n in sizes:
        size *= n
    if size != len(data):
        raise PlainPickleError(f"an array of {len(data)} bytes whose shape needs {size}")
    flat = np.frombuffer(data, dtype.numpy())
    return flat.reshape(sizes, order="F" if order == "F" else "C")


class _Reader:
    """The stack machine: one method an instruction, and no method that calls."""

    def __init__(self, data: memoryview) -> None:
        self._data = data
        self._at = 0
        self._stack: list[Any] = []
        self.memo: dict[int, Any] = {}

    def run(self) -> Any:
        while True:
            code = self.take(1)[0]
            if code == ord("."):
                return self._pop()
            step = _STEPS.get(code)
            if step is None:
                raise PlainPickleError(
                    f"instruction {bytes([code])!r} at byte {self._at - 1}, which plain containers "
                    "do not need"
                )
            step(self)

    # -- reading bytes

    def take(self, n: int) -> memoryview:
        if n > len(self._data) - self._at:
            raise PlainPickleError(f"it ends at byte {len(self._data)}, in the middle of a value")
        self._at += n
        return self._data[self._at - n : self._at]

    def number(self, code: str) -> int:
        return int(struct.unpack(code, self.take(struct.calcsize(code)))[0])

    def string(self, n: int) -> str:
        if n > _LARGEST_TEXT:
            raise PlainPickleError(f"a text of {n} bytes")
        return bytes(self.take(n)).decode("utf-8", "surrogatepass")

    def line(self) -> str:
        start = self._at
        while self.take(1)[0] != 10:
            if self._at - start > 256:
                raise PlainPickleError("a name of more than 256 bytes")
        return bytes(self._data[start : self._at - 1]).decode("ascii", "replace")

    # -- the stack

    def _pop(self) -> Any:
        if not self._stack or self._stack[-1] is _MARK:
            raise PlainPickleError("it takes a value that is not there")
        return self._stack.pop()

    def _top(self, kind: type) -> Any:
        if not self._stack or not isinstance(self._stack[-1], kind):
            raise PlainPickleError(f"it changes something that is no {kind.__name__}")
        return self._stack[-1]

    def to_mark(self) -> list[Any]:
        items: list[Any] = []
        while self._stack:
            item = self._stack.pop()
            if item is _MARK:
                return items[::-1]
            items.append(item)
        raise PlainPickleError("it has no beginning of a list")

    # -- instructions

    def protocol(self) -> None:
        if not 2 <= self.take(1)[0] <= 5:
            raise PlainPickleError("a protocol that is not one of 2 to 5")

    def push(self, value: Any) -> None:
        self._stack.append(value)

    def long(self) -> None:
        raw = bytes(self.take(self.take(1)[0]))
        self._stack.append(int.from_bytes(raw, "little", signed=True))

    def decimal(self) -> None:
        self._stack.append(struct.unpack(">d", self.take(8))[0])

    def text(self, code: str) -> None:
        self._stack.append(self.string(self.number(code)))

    def raw(self, code: str) -> None:
        self._stack.append(self.take(self.number(code)))

    def make_tuple(self, n: int) -> None:
        self._stack.append(tuple([self._pop() for _ in range(n)][::-1]))

    def append(self) -> None:
        item = self._pop()
        self._top(list).append(item)

    def extend(self) -> None:
        items = self.to_mark()
        self._top(list).extend(items)

    def put_item(self) -> None:
        value, key = self._pop(), self._pop()
        self._put(key, value)

    def put_items(self) -> None:
        items = self.to_mark()
        if len(items) % 2:
            raise PlainPickleError("a key without a value")
        for at in range(0, len(items), 2):
            self._put(items[at], items[at + 1])

    def _put(self, key: Any, value: Any) -> None:
        if not isinstance(key, (str, int, float, bool, type(None))):
            raise PlainPickleError("a key that is neither a text nor a number")
        self._top(dict)[key] = value

    def remember(self, place: int) -> None:
        if not self._stack:
            raise PlainPickleError("it takes a value that is not there")
        self.memo[place] = self._stack[-1]

    def recall(self, place: int) -> None:
        if place not in self.memo:
            raise PlainPickleError("it refers to a value that is not there")
        self._stack.append(self.memo[place])

    def name(self, module: Any, name: Any) -> None:
        known = isinstance(module, str) and isinstance(name, str)
        kind = _NAMES.get(f"{module} {name}") if known else None
        if kind is None:
            raise PlainPickleError(
                f"it names {str(module)[:80]}.{str(name)[:80]}; only numbers, texts, bytes, lists, "
                "tuples, dictionaries and plain numpy arrays are read"
            )
        self._stack.append(_Name(kind))

    def stack_name(self) -> None:
        name, module = self._pop(), self._pop()
        self.name(module, name)

    def call(self) -> None:
        """The four calls numpy's arrays are made of, each of them done here."""
        args, named = self._pop(), self._pop()
        if not isinstance(named, _Name) or not isinstance(args, tuple):
            raise PlainPickleError("a call of something that is no array")
        given = cast("tuple[Any, ...]", args)
        if named.name == "dtype" and given and isinstance(given[0], str):
            self._stack.append(_Dtype(given[0]))
        elif named.name == "reconstruct":
            self._stack.append(_Blank())
        elif named.name == "scalar" and len(given) == 2:
            self._stack.append(_array(given[1], given[0], (), "C")[()])
        elif named.name == "frombuffer" and len(given) == 4:
            self._stack.append(_array(given[0], given[1], given[2], str(given[3])))
        else:
            raise PlainPickleError(f"numpy's {named.name} with other arguments than numpy writes")

    def fill(self) -> None:
        """``BUILD``: the byte order of a dtype, or the content of an array."""
        state = self._pop()
        target = self._pop()
        given = cast("tuple[Any, ...]", state if isinstance(state, tuple) else ())
        if isinstance(target, _Dtype) and len(given) >= 3 and given[1] in ("<", ">", "|", "="):
            if any(given[i] is not None for i in range(2, min(5, len(given)))):
                raise PlainPickleError("an array of records")
            self._stack.append(_Dtype(given[1] + target.code.lstrip("<>|=")))
        elif isinstance(target, _Blank) and len(given) == 5:
            target.array = _array(given[4], given[2], given[1], "F" if given[3] else "C")
            self._stack.append(target)
        else:
            raise PlainPickleError("it fills something that is no array")


def _steps() -> dict[int, Callable[[_Reader], None]]:
    r = _Reader
    steps: dict[bytes, Callable[[_Reader], Any]] = {
        b"\x80": r.protocol,
        b"\x95": lambda m: m.number("<Q"),
        b"(": lambda m: m.push(_MARK),
        b"N": lambda m: m.push(None),
        b"\x88": lambda m: m.push(True),
        b"\x89": lambda m: m.push(False),
        b"J": lambda m: m.push(m.number("<i")),
        b"K": lambda m: m.push(m.number("<B")),
        b"M": lambda m: m.push(m.number("<H")),
        b"\x8a": r.long,
        b"G": r.decimal,
        b"\x8c": lambda m: m.text("<B"),
        b"X": lambda m: m.text("<I"),
        b"\x8d": lambda m: m.text("<Q"),
        b"C": lambda m: m.raw("<B"),
        b"B": lambda m: m.raw("<I"),
        b"\x8e": lambda m: m.raw("<Q"),
        b"\x96": lambda m: m.raw("<Q"),
        b"}": lambda m: m.push({}),
        b"]": lambda m: m.push([]),
        b")": lambda m: m.push(()),
        b"\x85": lambda m: m.make_tuple(1),
        b"\x86": lambda m: m.make_tuple(2),
        b"\x87": lambda m: m.make_tuple(3),
        b"t": lambda m: m.push(tuple(m.to_mark())),
        b"a": r.append,
        b"e": r.extend,
        b"s": r.put_item,
        b"u": r.put_items,
        b"q": lambda m: m.remember(m.number("<B")),
        b"r": lambda m: m.remember(m.number("<I")),
        b"\x94": lambda m: m.remember(len(m.memo)),
        b"h": lambda m: m.recall(m.number("<B")),
        b"j": lambda m: m.recall(m.number("<I")),
        b"c": lambda m: m.name(m.line(), m.line()),
        b"\x93": r.stack_name,
        b"R": r.call,
        b"b": r.fill,
    }
    return {code[0]: step for code, step in steps.items()}


_STEPS = _steps()


def read_plain_pickle(data: memoryview) -> Any:
    """What a pickle holds; bytes come as views of ``data``, arrays lie over it, read-only.

    Raises:
        PlainPickleError: it asks for more than plain containers, or is cut short.
    """
    try:
        return _plain(_Reader(data).run())
    except (struct.error, UnicodeDecodeError, OverflowError) as error:
        raise PlainPickleError(str(error)) from error


def _plain(value: Any) -> Any:
    """The value with arrays in place of the blanks, on the levels where data lie."""
    if isinstance(value, _Blank):
        if value.array is None:
            raise PlainPickleError("an array without content")
        return value.array
    if isinstance(value, (_Name, _Dtype)):
        raise PlainPickleError("a name where data should be")
    return value


def walk_arrays(value: Any, depth: int = 3) -> Iterator[tuple[str, Array]]:
    """(name, array) of every array in nested dictionaries, names joined by dots.

    Raises:
        PlainPickleError: there are more values than a file of activations has: dictionaries that
            hold the same one a thousand times each make a small file endless.
    """
    left = [("", value, depth)]
    seen = 0
    while left:
        name, item, below = left.pop()
        seen += 1
        if seen > _MOST_VALUES:
            raise PlainPickleError(f"more than {_MOST_VALUES:,} values in its dictionaries")
        item = _plain(item)
        if isinstance(item, np.ndarray):
            yield name, cast("Array", item)
        elif isinstance(item, dict) and below:
            inside = cast("dict[Any, Any]", item)
            named = ((f"{name}.{key}" if name else str(key), v) for key, v in inside.items())
            left += [(key, v, below - 1) for key, v in named][::-1]
