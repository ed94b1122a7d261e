"""A path in a file system of fsspec: what stores ask of ``pathlib.Path``, asked of a server.

Here, in ``_servers`` and ``_remote_writes`` alone fsspec is known; it is imported when it is used.
"""

from __future__ import annotations

import fnmatch
import io
import time
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from datetime import datetime
from pathlib import PurePosixPath
from typing import Any, BinaryIO, cast

from actscope.core.errors import BadInputError
from actscope.stores._servers import asking, file_system_class

__all__ = ["RemotePath", "RemoteStat", "read_range"]

_BLOCK = 8 << 20

_LISTS_ANEW = ("sftp", "ssh")
"""File systems that keep no listings and do not know the option that forbids keeping them."""

_CHANGED = ("LastModified", "mtime", "last_modified", "updated", "created")


def read_range(path: RemotePath, start: int, stop: int) -> bytes:
    """Some bytes of a file, fewer where it ends earlier.

    Raises:
        FileNotFoundError: there is no such file.
        StorageError: the server cannot be reached, or refuses.
    """
    if stop <= start:
        return b""
    with asking(path):
        try:
            return bytes(path.fs.cat_file(path.inner, start=start, end=stop))
        except FileNotFoundError:
            raise
        except Exception:
            if path.stat().st_size <= start:  # some servers refuse ranges beyond the end
                return b""
            raise


@dataclass(frozen=True)
class RemoteStat:
    """Size and age of a file.

    Attributes:
        st_size: Bytes.
        st_mtime: Seconds since 1970; now, where the server does not say.
    """

    st_size: int
    st_mtime: float

    @property
    def st_mtime_ns(self) -> int:
        """The same in nanoseconds."""
        return int(self.st_mtime * 1e9)


class RemotePath:
    """A place in a file system of fsspec, with the methods of ``pathlib.Path`` that runs need.

    Unlike fsspec's own ``exists``, ``isdir`` and ``isfile``, a server that cannot be reached is an
    error here, never "no such file". Listings are never kept. What a listing, or ``is_file``, has
    said of a file is kept by that path object, because files of runs are never changed.

    Args:
        protocol: Such as ``s3``.
        place: What follows ``://``.
        options: Of the file system.
        found: What the server said of the file, if it was asked.
    """

    __slots__ = ("_found", "_options", "_place", "_protocol")

    def __init__(
        self,
        protocol: str,
        place: PurePosixPath,
        options: Mapping[str, Any],
        found: Mapping[str, Any] | None = None,
    ) -> None:
        self._protocol = protocol
        self._place = place
        self._options = dict(options)
        self._found = found

    @classmethod
    def of(cls, protocol: str, rest: str, options: Mapping[str, Any]) -> RemotePath:
        """The path of an address that was cut at ``://``.

        Raises:
            BadInputError: it names no folder, a package is missing, or nobody knows the protocol.
        """
        rest = rest.lstrip("/") if protocol == "memory" else rest
        parts = rest.removeprefix("/").rstrip("/").split("/")
        chain = "::" in protocol or "::" in rest
        if chain or any(part in ("", ".", "..") for part in parts):
            raise BadInputError(
                "the address names no folder",
                got=f"{protocol}://{rest}",
                expected="PROTOCOL://BUCKET/FOLDER, without empty parts, . or .. and no chain (::)",
            )
        file_system_class(protocol)
        return cls(protocol, PurePosixPath(rest), options)

    # -- names ------------------------------------------------------------------------------

    def __str__(self) -> str:
        return f"{self._protocol}://{self._place}"

    def __repr__(self) -> str:
        return f"RemotePath({str(self)!r})"

    def __eq__(self, other: object) -> bool:
        return isinstance(other, RemotePath) and self._key() == other._key()

    def __hash__(self) -> int:
        return hash((self._protocol, self._place))

    def __lt__(self, other: RemotePath) -> bool:
        return (self._protocol, self._place) < (other._protocol, other._place)

    def __reduce__(self) -> tuple[Any, ...]:
        return RemotePath, (self._protocol, self._place, self._options)

    def __truediv__(self, name: str) -> RemotePath:
        return self.joinpath(name)

    def _key(self) -> tuple[object, ...]:
        return self._protocol, self._place, self._options

    def _at(self, place: PurePosixPath, found: Mapping[str, Any] | None = None) -> RemotePath:
        return RemotePath(self._protocol, place, self._options, found)

    def joinpath(self, *names: str) -> RemotePath:
        """A place below this one."""
        return self._at(self._place.joinpath(*names))

    def with_name(self, name: str) -> RemotePath:
        """A place beside this one."""
        return self._at(self._place.with_name(name))

    def with_options(self, options: Mapping[str, Any]) -> RemotePath:
        """The same place, with more options of the file system."""
        return RemotePath(self._protocol, self._place, {**self._options, **options}, self._found)

    def relative_to(self, other: RemotePath) -> PurePosixPath:
        """The way from a place above this one."""
        return self._place.relative_to(other._place)

    def resolve(self) -> RemotePath:
        """Itself: there are no links."""
        return self

    def absolute(self) -> RemotePath:
        """Itself: addresses are absolute."""
        return self

    @property
    def name(self) -> str:
        """The last part; empty for a bucket itself."""
        return self._place.name if self.parent is not self else ""

    @property
    def stem(self) -> str:
        """The name without its suffix."""
        return self._place.stem

    @property
    def suffix(self) -> str:
        """The end of the name, with its dot."""
        return self._place.suffix

    @property
    def parent(self) -> RemotePath:
        """The folder it lies in; a bucket itself lies nowhere."""
        above = self._place.parent
        return self if str(above) in (".", "/") else self._at(above)

    # -- questions --------------------------------------------------------------------------

    @property
    def fs(self) -> Any:
        """The file system, which fsspec keeps for this process."""
        made = file_system_class(self._protocol)
        anew = {} if self._protocol in _LISTS_ANEW else {"use_listings_cache": False}
        with asking(self):
            return made(**{**made._get_kwargs_from_urls(str(self)), **anew, **self._options})

    @property
    def protocol(self) -> str:
        """Such as ``s3``."""
        return self._protocol

    @property
    def inner(self) -> str:
        """How the file system calls it."""
        return str(file_system_class(self._protocol)._strip_protocol(str(self)))

    def _look(self) -> Mapping[str, Any] | None:
        """What the server says of it; None where there is nothing."""
        try:
            with asking(self):
                return cast("Mapping[str, Any]", self.fs.info(self.inner))
        except FileNotFoundError:
            return None

    def exists(self) -> bool:
        """Whether there is a file, or are files below it."""
        return self._look() is not None

    def is_dir(self) -> bool:
        """Whether there are files below it."""
        found = self._found or self._look()
        return found is not None and found["type"] == "directory"

    def is_file(self) -> bool:
        """Whether it is a file."""
        found = self._found or self._look()
        if found is not None and found["type"] == "file":
            self._found = found
            return True
        return False

    def is_symlink(self) -> bool:
        """Links are not followed, and object stores have none."""
        return bool(self._found and self._found.get("islink"))

    def stat(self) -> RemoteStat:
        """Its size and age.

        Raises:
            FileNotFoundError: there is nothing.
        """
        found = self._found or self._look()
        if found is None:
            raise FileNotFoundError(str(self))
        return RemoteStat(int(found["size"] or 0), _changed(found))

    def lstat(self) -> RemoteStat:
        """The same as ``stat``."""
        return self.stat()

    def iterdir(self) -> Iterator[RemotePath]:
        """What lies in it; nothing where there is no such folder: object stores have none."""
        try:
            with asking(self):
                listed = self.fs.ls(self.inner, detail=True)
        except FileNotFoundError:
            return
        own = self.inner.rstrip("/")
        for found in listed:
            inner = str(found["name"]).rstrip("/")
            if inner != own:  # some stores keep an empty file for a folder
                yield self._at(self._place / inner.rpartition("/")[2], found)

    def glob(self, pattern: str) -> Iterator[RemotePath]:
        """What lies in it, by a pattern of the name alone."""
        return (p for p in self.iterdir() if fnmatch.fnmatchcase(p.name, pattern))

    def rglob(self, pattern: str) -> Iterator[RemotePath]:
        """All files below it, by a pattern of the name alone."""
        with asking(self):
            listed: dict[str, Any] = self.fs.find(self.inner, detail=True)
        start = self.inner.rstrip("/") + "/"
        for inner, found in listed.items():
            below = inner.removeprefix(start)
            if below != inner and fnmatch.fnmatchcase(below.rpartition("/")[2], pattern):
                yield self._at(self._place / below, found)

    # -- bytes ------------------------------------------------------------------------------

    def open(self, mode: str = "rb") -> BinaryIO:
        """The file, for reading.

        Raises:
            FileNotFoundError: there is no such file.
            ValueError: another mode; files of runs are published, never opened for writing.
        """
        if mode != "rb":
            raise ValueError(f"remote files open for reading alone, not {mode!r}")
        return cast("BinaryIO", io.BufferedReader(_Ranges(self, self.stat().st_size), _BLOCK))

    def read_bytes(self) -> bytes:
        """The whole file."""
        with asking(self):
            return bytes(self.fs.cat_file(self.inner))

    def write_bytes(self, data: bytes) -> int:
        """Replace the file, or make it."""
        with asking(self):
            self.fs.pipe_file(self.inner, data)
        self._found = None
        return len(data)

    def mkdir(self) -> None:
        """Nothing: a folder is there as soon as a file lies in it."""

    def unlink(self, missing_ok: bool = False) -> None:
        """Delete the file."""
        self._found = None
        try:
            with asking(self):
                self.fs.rm_file(self.inner)
        except FileNotFoundError:
            if not missing_ok:
                raise


class _Ranges(io.RawIOBase):
    """A remote file as a stream: every read is a request of its own, none is shared."""

    def __init__(self, path: RemotePath, size: int) -> None:
        super().__init__()
        self._path = path
        self._size = size
        self._at = 0

    def readable(self) -> bool:
        return True

    def seekable(self) -> bool:
        return True

    def seek(self, offset: int, whence: int = io.SEEK_SET) -> int:
        base = {io.SEEK_SET: 0, io.SEEK_CUR: self._at, io.SEEK_END: self._size}[whence]
        self._at = max(0, base + offset)
        return self._at

    def tell(self) -> int:
        return self._at

    def readinto(self, target: Any, /) -> int:
        view = memoryview(target).cast("B")
        stop = min(self._size, self._at + len(view))
        if stop <= self._at:
            return 0
        data = read_range(self._path, self._at, stop)
        view[: len(data)] = data
        self._at += len(data)
        return len(data)


def _changed(found: Mapping[str, Any]) -> float:
    """When a file was made or changed, of whatever kind the server's answer is."""
    for key in _CHANGED:
        value = found.get(key)
        if isinstance(value, datetime):
            return value.timestamp()
        if isinstance(value, (int, float)):
            return float(value)
        if isinstance(value, str) and value:
            return datetime.fromisoformat(value).timestamp()
    return time.time()
