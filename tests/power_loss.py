"""A disk whose power can fail at any moment: it keeps what was flushed, and forgets the rest.

It stands below our I/O layer, at the calls to the operating system, and knows nothing of the
layer. A file's bytes are kept as of its last ``fsync``, a folder's names as of the folder's last
``fsync``. Everything else may be there, or not, or in part: ``survivors`` makes the worst case,
where all of it is gone, or a random one, where each name and each file decides for itself.
"""

from __future__ import annotations

import os
import random
import stat
from collections.abc import Callable
from pathlib import Path
from typing import Any

Names = dict[str, tuple[int, bool]]
"""Name -> (inode, whether it is a folder)."""


class PowerlessDisk:
    """Watches a folder, from now until ``stop``.

    Args:
        root: The folder; what is in it now counts as flushed.
        moment: Called after every operation that changes or flushes names or bytes.
    """

    OPERATIONS = ("fsync", "link", "replace", "rename", "unlink", "mkdir")

    def __init__(self, root: Path, moment: Callable[[], None] = lambda: None) -> None:
        self.root = root
        self.moment = moment
        self.operations = 0
        self._bytes: dict[int, bytes] = {}
        self._names: dict[str, Names] = {}
        self._busy = False
        self._before = {name: getattr(os, name) for name in self.OPERATIONS}
        for folder in [root, *(p for p in root.rglob("*") if p.is_dir())]:
            self._names[str(folder)] = _names_in(folder)
        for file in (p for p in root.rglob("*") if p.is_file()):
            self._bytes[file.stat().st_ino] = file.read_bytes()
        for name in self.OPERATIONS:
            setattr(os, name, self._watched(name))

    def stop(self) -> None:
        """Let the operations be what they were."""
        for name, operation in self._before.items():
            setattr(os, name, operation)

    def _watched(self, name: str) -> Callable[..., Any]:
        def operation(*arguments: Any, **options: Any) -> Any:
            result = self._before[name](*arguments, **options)
            if not self._busy:
                self._busy = True
                try:
                    self.operations += 1
                    if name == "fsync":
                        self._flushed(arguments[0])
                    self.moment()
                finally:
                    self._busy = False
            return result

        return operation

    def _flushed(self, handle: int) -> None:
        path = str(Path(f"/proc/self/fd/{handle}").readlink())
        status = os.fstat(handle)
        if stat.S_ISDIR(status.st_mode):
            self._names[path] = _names_in(Path(path))
        else:
            self._bytes[status.st_ino] = Path(f"/proc/self/fd/{handle}").read_bytes()

    def survivors(self, target: Path, chance: random.Random | None = None) -> Path:
        """Write what a power cut would leave, now, to another folder."""
        self._survive(self.root, target, chance)
        return target

    def _survive(self, folder: Path, target: Path, chance: random.Random | None) -> None:
        target.mkdir(parents=True)
        now = _names_in(folder)
        for name, (inode, is_folder) in self._surviving(folder, now, chance).items():
            if is_folder:
                self._survive(folder / name, target / name, chance)
            else:
                known = name in now and now[name][0] == inode
                current = (folder / name).read_bytes() if known else None
                (target / name).write_bytes(self._content(inode, current, chance))

    def _surviving(self, folder: Path, now: Names, chance: random.Random | None) -> Names:
        flushed = self._names.get(str(folder), {})
        if chance is None:
            return flushed
        kept: Names = {}
        for name in sorted({*flushed, *now}):
            side = flushed if flushed.get(name) == now.get(name) else chance.choice([flushed, now])
            if name in side:
                kept[name] = side[name]
        return kept

    def _content(self, inode: int, current: bytes | None, chance: random.Random | None) -> bytes:
        flushed = self._bytes.get(inode, b"")
        if chance is None or current is None or current == flushed:
            return flushed
        torn = current[: chance.randrange(len(current) + 1)]
        return chance.choice([flushed, current, torn, torn.ljust(len(current), b"\0")])


def _names_in(folder: Path) -> Names:
    return {e.name: (e.inode(), e.is_dir(follow_symlinks=False)) for e in os.scandir(folder)}
