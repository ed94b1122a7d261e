"""Which file systems fsspec knows, and what is said where one cannot be used."""

from __future__ import annotations

from collections.abc import Generator
from contextlib import contextmanager
from typing import Any

from actscope.core.errors import ActscopeError, BadInputError, StorageError, UnknownNameError

__all__ = ["asking", "file_system_class"]

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

_REFUSALS = {
    "NoCredentialsError",
    "PartialCredentialsError",
    "ProfileNotFound",
    "DefaultCredentialsError",
    "ClientAuthenticationError",
    "CredentialUnavailableError",
}
"""Names of what the services' libraries raise where nobody told them who asks."""


@contextmanager
def asking(path: object) -> Generator[None]:
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


def file_system_class(protocol: str) -> Any:
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
