"""One pass over a dataset: how many examples, which content, no id twice."""

from __future__ import annotations

import hashlib
from array import array
from collections.abc import Callable

import numpy as np

from actscope.core.errors import SourceError
from actscope.core.provenance import canonical_json
from actscope.core.text import Example

__all__ = ["Scan"]


class Scan:
    """Takes in the examples one by one; holds eight bytes of each.

    The fingerprint is that of the examples, not of the bytes they are written in: the same
    examples in another format, or in another folder, have the same one.

    Args:
        name: What to call the dataset in an error, such as its path.
    """

    def __init__(self, name: str = "") -> None:
        self._prefix = f"{name}: " if name else ""
        self._digest = hashlib.sha256()
        self._ids = array("Q")

    def __len__(self) -> int:
        return len(self._ids)

    def add(self, example: Example, where: str) -> None:
        """Take in the next example.

        Raises:
            SourceError: its metadata is not JSON.
        """
        self._digest.update(_line(example, where))
        short = hashlib.blake2b(example.id.encode("utf-8", "surrogatepass"), digest_size=8)
        self._ids.append(int.from_bytes(short.digest(), "little"))

    def finish(self, id_of: Callable[[int], str]) -> str:
        """The fingerprint of everything taken in.

        Args:
            id_of: The id of the example of an index; asked for only where two may be equal.

        Raises:
            SourceError: two examples have one id; both rows are named.
        """
        numbers = np.frombuffer(self._ids, dtype=np.uint64)
        order = np.argsort(numbers, kind="stable")
        again = np.flatnonzero(numbers[order][1:] == numbers[order][:-1])
        for second, first in sorted((int(order[i + 1]), int(order[i])) for i in again):
            if id_of(first) == id_of(second):
                raise SourceError(
                    f"{self._prefix}rows {first} and {second} have the same id",
                    got=repr(id_of(first)),
                    next_step="make the ids unique, or name another field with id_field= "
                    "(--id-field); a row without id is called by its index",
                )
        return self._digest.hexdigest()


def _line(example: Example, where: str) -> bytes:
    messages, token_ids = example.messages, example.token_ids
    content = [
        example.id,
        example.text,
        None if token_ids is None else list(token_ids),
        None if messages is None else [[m.role, m.content] for m in messages],
        dict(example.metadata),
    ]
    try:
        return (canonical_json(content) + "\n").encode("utf-8", "surrogatepass")
    except (TypeError, ValueError) as error:
        raise SourceError(
            f"{where}: the metadata is not JSON",
            got=error,
            expected="texts, finite numbers, booleans, lists and objects",
        ) from None
