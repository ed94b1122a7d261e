"""Words by which a run is found again. They are no part of its spec and may change at any time."""

from __future__ import annotations

from collections.abc import Iterable
from pathlib import Path
from typing import Any, cast

from actscope.core.errors import BadInputError, DamagedRunError
from actscope.stores._io import disk_errors, publish
from actscope.stores._records import dump_record, load_record, load_run
from actscope.stores._remote import as_folder

__all__ = ["TAGS_FILE", "checked_tag", "read_tags", "tag_run"]

TAGS_FILE = "tags.json"
TAGS_FORMAT = "actscope-tags"
_VERSION = 1
_LONGEST = 100


def read_tags(folder: Path) -> tuple[str, ...]:
    """The tags of a run, in alphabetical order.

    Raises:
        DamagedRunError: their file is not as it was written.
    """
    path = folder / TAGS_FILE
    if not path.is_file():
        return ()
    try:
        found: Any = load_record(path, TAGS_FORMAT, _VERSION)["tags"]
    except KeyError as error:
        raise DamagedRunError(f"{path} lists no tags") from error
    if not isinstance(found, list) or not all(isinstance(t, str) for t in cast("list[Any]", found)):
        raise DamagedRunError(f"{path} lists something that is no tag", got=repr(found)[:80])
    return tuple(cast("list[str]", found))


def tag_run(
    path: str | Path, add: Iterable[str] = (), remove: Iterable[str] = ()
) -> tuple[str, ...]:
    """Add and remove tags of a run; of two calls at the same moment the later one counts.

    Args:
        path: The run's folder.
        add: Words of at most 100 characters, without line breaks.
        remove: Tags it no longer has; one it does not have is no error.

    Returns:
        All tags it has now.

    Raises:
        BadInputError: there is no run, or a word that cannot be a tag.
        DamagedRunError: ``run.json`` or the file of tags is not as it was written.
    """
    folder = as_folder(path)
    if not folder.is_dir():
        raise BadInputError(f"there is no run at {folder}", got="no such folder")
    load_run(folder)
    wanted = [checked_tag(tag) for tag in add]
    tags = sorted({*read_tags(folder), *wanted} - set(remove))
    record = dump_record({"format": TAGS_FORMAT, "version": _VERSION, "tags": tags})
    with disk_errors("writing tags", folder):
        publish(folder, "run", lambda file: file.write(record), lambda _: TAGS_FILE)
    return tuple(tags)


def checked_tag(tag: str) -> str:
    """A word as it becomes a tag.

    Raises:
        BadInputError: it cannot be one.
    """
    plain = tag.strip()
    if not plain or len(plain) > _LONGEST or not plain.isprintable():
        raise BadInputError(
            "this cannot be a tag", got=repr(tag)[:80], expected=f"1 to {_LONGEST} characters"
        )
    return plain
