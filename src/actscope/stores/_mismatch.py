"""What a run on disk does not mix with: another spec, another plan, other content of a unit."""

from __future__ import annotations

from pathlib import Path

from actscope.core.errors import DuplicateUnitError, OutputFolderError, RunMismatchError
from actscope.core.spec import spec_differences
from actscope.stores._records import CommitRecord, RunRecord, load_commit

__all__ = ["refuse_another", "refuse_other_content"]


def refuse_another(path: Path, stored: RunRecord, asked: RunRecord) -> None:
    """Refuse a run of another store, spec or plan.

    Raises:
        RunMismatchError: with what differs.
    """
    if stored.store != asked.store:
        raise OutputFolderError(
            f"{path} holds a run of another store",
            got=stored.store,
            expected=asked.store,
            next_step="choose another output folder, or open it with its own store",
        )
    if (stored.spec is None) != (asked.spec is None):
        row = ("spec", stored.spec and "a spec", asked.spec and "a spec")
        raise RunMismatchError(str(path), [row])
    differences = spec_differences(stored.spec or {}, asked.spec or {})
    if differences:
        raise RunMismatchError(str(path), differences)
    if asked.plan is None or asked.plan == stored.plan:
        return
    theirs = {} if stored.plan is None else stored.plan.to_json()
    raise RunMismatchError(
        str(path),
        spec_differences(theirs, asked.plan.to_json(), "plan."),
        next_step="leave the plan out to go on with the stored one, or choose another folder",
    )


def refuse_other_content(folder: Path, name: str, commit: CommitRecord) -> None:
    """Refuse a unit that is committed with other values.

    Raises:
        DuplicateUnitError: with the tensors that differ.
    """
    stored = load_commit(folder, name)
    if stored.same_content(commit):
        return
    keys = sorted({*stored.tensors, *commit.tensors})
    differ = [k for k in keys if not _same_tensor(stored, commit, k)]
    raise DuplicateUnitError(
        f"unit {commit.unit!r} of {folder} is committed with other content",
        got=f"other values in {', '.join(differ[:5])}" + (" ..." if len(differ) > 5 else ""),
        next_step="the committed unit stays; write to another run if the new content is wanted",
    )


def _same_tensor(a: CommitRecord, b: CommitRecord, name: str) -> bool:
    one, two = a.tensors.get(name), b.tensors.get(name)
    return one is not None and two is not None and one.same_bytes(two)
