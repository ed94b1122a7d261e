"""Folders that do not lie on the local disk: addresses of fsspec, such as ``s3://bucket/runs``.

Here and in ``_remote_writes`` alone fsspec is known; it is imported when an address is used.
"""

from __future__ import annotations

import fnmatch
import io
import re
import time
from collections.abc import Generator, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from datetime import datetime
from pathlib import Path, PurePosixPath
from typing import Any, BinaryIO, TypeGuard, cast

from actscope.core.errors import ActscopeError, BadInputError, StorageError, UnknownNameError

__all__ = ["RemotePath", "as_folder", "asking", "is_remote", "local_folder", "read_range"]

_ADDRESS = re.compile(r"([A-Za-z][A-Za-z0-9+.:-]*)://(.*)", re.DOTALL)
_SQUEEZED = re.compile(r"[A-Za-z][A-Za-z0-9+.-]+:")
_LOCAL = ("file", "local")
_BLOCK = 8 << 20

_PACKAGES = {
    "s3": "s3fs",
    "s3a": "s3fs",
    "gs": "gcsfs",
    "gcs": "gcsfs",
    "abfs": "adlfs",
    "abfss": "adlfs",
    "az": "adlfs",
    "adl": "adlfs",
    "http": "aiohttp",
    "https": "aiohttp",
    "sftp": "paramiko",
    "ssh": "paramiko",
}
"""Which package reads a protocol, where it is not named like it."""

_LISTS_ANEW = ("sftp", "ssh")
"""File systems that keep no listings and do not know the option that forbids keeping them."""

_REFUSALS = {
    "NoCredentialsError",
    "PartialCredentialsError",
    "ProfileNotFound",
    "DefaultCredentialsError",
    "ClientAuthenticationError",
    "CredentialUnavailableError",
}
"""Names of what the services' libraries raise where nobody told them who asks."""

_CHANGED = ("LastModified", "mtime", "last_modified", "updated", "created")


def as_folder(place: str | Path, **options: Any) -> Path:
    """The path of a folder: a local one, or what fsspec calls an address.

    ``file:///folder`` is the local folder. An address of another protocol becomes an object with
    the methods of ``Path`` that runs need; nothing is asked of the server yet.

    Args:
        place: A path, or an address: ``s3://bucket/runs``, ``gs://bucket/runs``,
            ``memory://any/runs``. A path of universal_pathlib is taken with its options.
        options: What fsspec's file system of that protocol takes besides, such as
            ``endpoint_url`` and ``key`` for ``s3``. Never stored and never printed.

    Raises:
        BadInputError: a package is missing, the protocol is unknown, or the address names no
            folder.
    """
    if is_remote(place):
        return cast("Path", place.with_options(options))
    if getattr(place, "protocol", ""):  # universal_pathlib
        options = {**getattr(place, "storage_options", {}), **options}
        place = str(place)
    found = _ADDRESS.fullmatch(place) if isinstance(place, str) else None
    if found is not None and found[1] not in _LOCAL:
        return cast("Path", RemotePath.of(found[1], found[2], options))
    if options:
        raise BadInputError(
            f"{place} is a local folder, which takes no options", got=", ".join(options)
        )
    return _local(found[2], str(place)) if found is not None else _unsqueezed(Path(place))


def is_remote(path: object) -> TypeGuard[RemotePath]:
    """Whether a path is one of fsspec, and not of the operating system."""
    return isinstance(path, RemotePath)


def local_folder(place: str | Path) -> Path:
    """A path where only a local one will do.

    Raises:
        BadInputError: it is an address.
    """
    folder = as_folder(place)
    if is_remote(folder):
        raise BadInputError(
            f"{folder} is no local path",
            expected="a file or folder on this machine",
            next_step="use a local one, and copy between them: "
            "python -c \"import fsspec; fsspec.filesystem('s3').get('BUCKET/RUN', 'RUN', "
            'recursive=True)"',
        )
    return folder


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


@contextmanager
def asking(path: RemotePath) -> Generator[None]:
    """Turn what a server or its library raises into an error that says what to do.

    That there is no such file, or one already, is an answer and passes.

    Raises:
        StorageError: the server cannot be reached, or refuses.
    """
    try:
        yield
    except (FileNotFoundError, FileExistsError, ActscopeError):
        raise
    except Exception as error:
        said = f"{type(error).__name__}: {error}"
        if isinstance(error, PermissionError) or type(error).__name__ in _REFUSALS:
            raise StorageError(
                f"{path} refuses whoever asks",
                got=said,
                next_step="set the service's credentials as its own tools take them (environment, "
                "configuration file), or give them: as_folder(address, key=..., secret=...)",
            ) from error
        raise StorageError(
            f"{path} cannot be reached",
            got=said,
            next_step="check the address and the network, then do the same again: "
            "committed units are safe",
        ) from error


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
        _class_of(protocol)
        return cls(protocol, PurePosixPath(rest), options)

    # -- names ------------------------------------------------------------------------------

    def __str__(self) -> str:
        return f"{self._protocol}://{self._place}"

    def __repr__(self) -> str:
        return f"RemotePath({str(self)!r})"

    def __eq__(self, other: object) -> bool:
        return is_remote(other) and self._key() == other._key()

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
        made = _class_of(self._protocol)
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
        return str(_class_of(self._protocol)._strip_protocol(str(self)))

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


def _class_of(protocol: str) -> Any:
    """The class of a file system.

    Raises:
        BadInputError: fsspec or the protocol's package is not installed, or nobody knows it.
    """
    try:
        from fsspec.registry import available_protocols, get_filesystem_class
    except ImportError as error:
        raise BadInputError(
            f"{protocol}:// addresses need fsspec",
            got=str(error),
            next_step="pip install 'actscope[remote]'",
        ) from error
    try:
        return get_filesystem_class(protocol)
    except ImportError as error:
        package = _PACKAGES.get(protocol)
        raise BadInputError(
            f"{protocol}:// addresses need a package that is not installed",
            got=str(error),
            next_step=f"pip install {package}" if package else "install what it names",
        ) from error
    except ValueError as error:
        raise UnknownNameError("protocol", protocol, sorted(available_protocols())) from error


def _local(rest: str, address: str) -> Path:
    from urllib.request import url2pathname

    host, _, path = rest.partition("/")
    if host not in ("", "localhost") or not path:
        raise BadInputError(
            "the address of a local folder has three slashes",
            got=address,
            expected="file:///the/folder",
        )
    return Path(url2pathname(f"/{path}"))


def _unsqueezed(path: Path) -> Path:
    """A local path, unless it was an address before ``Path`` took a slash from it."""
    first = path.parts[0] if path.parts else ""
    if _SQUEEZED.fullmatch(first) and not Path(first).exists():
        raise BadInputError(
            f"{path} is an address without its second slash, which pathlib.Path takes away",
            expected="a local folder, or, where addresses are taken, the address as text: "
            f"{first}//{'/'.join(path.parts[1:])}",
        )
    return path


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
