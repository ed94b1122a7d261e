"""A folder of text files."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator
from pathlib import Path

from actscope.core.errors import SourceError
from actscope.core.text import Example
from actscope.sources._files import read_text, refuse_changed, state_of
from actscope.sources._scan import Scan

__all__ = ["SOURCE", "FolderSource"]


class FolderSource:
    """One example a ``.txt`` file, in the order of their ids; subfolders included.

    The id is the path within the folder without ``.txt`` (``letters/07_reply``). The line end that
    closes a file is not part of its text. Hidden files and folders are left out.

    Args:
        path: A folder.

    Raises:
        SourceError: there is no such folder, it holds other files only, or a file is not UTF-8.
    """

    def __init__(self, path: str | Path) -> None:
        self._root = Path(path).expanduser()
        if not str(path) or not self._root.is_dir():
            raise SourceError(f"there is no folder {str(path)!r}", next_step="check the path")
        self._files = sorted(
            (name.removesuffix(".txt"), file)
            for name, file in _files(self._root)
            if file.suffix == ".txt"
        )
        self._states = [state_of(file) for _, file in self._files]
        if not self._files:
            _refuse_other_files(self._root)
        scan = Scan()
        for example in self.examples():
            scan.add(example, example.id)
        self._fingerprint = scan.finish(lambda i: self._files[i][0])

    def __len__(self) -> int:
        return len(self._files)

    def examples(self, start: int = 0, stop: int | None = None) -> Iterator[Example]:
        """The examples of a range, read from their files.

        Raises:
            SourceError: a file has changed since the folder was opened.
        """
        for index in range(*slice(start, stop).indices(len(self))):
            name, file = self._files[index]
            refuse_changed(file, self._states[index])
            yield Example(name, text=read_text(file).removesuffix("\n"))

    def fingerprint(self) -> str:
        """Hex digest of every id and text, in order."""
        return self._fingerprint


def _files(root: Path) -> Iterator[tuple[str, Path]]:
    """(path within the folder, file) of every file that is not hidden."""
    for path in root.rglob("*"):
        inside = path.relative_to(root)
        if path.is_file() and not any(part.startswith(".") for part in inside.parts):
            yield inside.as_posix(), path


def _refuse_other_files(root: Path) -> None:
    kinds = Counter(file.suffix or "(no suffix)" for _, file in _files(root))
    if kinds:
        found = ", ".join(f"{n} {kind}" for kind, n in sorted(kinds.items())[:6])
        raise SourceError(
            f"the folder {root} holds no .txt file", got=found, next_step="name one of its files"
        )


SOURCE = FolderSource
