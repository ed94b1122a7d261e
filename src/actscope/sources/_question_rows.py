"""Rows of questions as various collections write them, turned into rows of our own.

Ours is ``{id, question, correct, distractors: [three]}``. MMLU (Hendrycks et al., 2021) writes
``{question, choices: [four], answer: 2}``; a TriviaQA row (Joshi et al., 2017) has ``{question_id,
question, answer: {value}}``, to which somebody added ``distractors``.
"""

from __future__ import annotations

import hashlib
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any, cast

from actscope.core.errors import SourceError
from actscope.sources._files import existing_file, parse_json, read_text
from actscope.sources.parquet import parquet_rows

__all__ = ["QUESTION_SHAPES", "rows_of"]

QUESTION_SHAPES = (
    '{"id": "...", "question": "...", "correct": "...", "distractors": ["...", "...", "..."]}',
    '{"question": "...", "choices": ["...", "...", "...", "..."], "answer": 0}',
    '{"question": "...", "answer": "...", "distractors": ["...", "...", "..."]}',
)
HUB = "hf:"
_LETTERS = "ABCD"
_ID_FIELDS = ("id", "question_id", "qid")


def rows_of(path: str | Path) -> Iterator[tuple[str, dict[str, Any]]]:
    """Where each row stands, and the row with our own field names.

    Raises:
        SourceError: the file or dataset cannot be read, or a row is of no known shape.
    """
    for number, (where, value) in enumerate(_values(path)):
        if not isinstance(value, Mapping):
            raise SourceError(
                f"{where} is not an object", got=f"{value!r:.60}", expected=QUESTION_SHAPES[0]
            )
        row = dict(cast("Mapping[str, Any]", value))
        yield where, _ours(row, where, number)


def _values(path: str | Path) -> Iterator[tuple[str, Any]]:
    if str(path).startswith(HUB):
        file = _from_hub(str(path).removeprefix(HUB))
        yield from ((f"{path}, row {i}", row) for i, row in enumerate(parquet_rows(file)))
        return
    file = existing_file(path)
    if file.suffix.lower() == ".parquet":
        yield from ((f"{file}, row {i}", row) for i, row in enumerate(parquet_rows(file)))
    elif file.suffix.lower() == ".json":
        whole = parse_json(read_text(file), str(file))
        if not isinstance(whole, list):
            raise SourceError(
                f"{file} is not a list of questions",
                got=type(whole).__name__,
                expected="[" + QUESTION_SHAPES[0] + ", ...]",
            )
        yield from ((f"{file}, row {i}", row) for i, row in enumerate(cast("list[Any]", whole)))
    else:
        for number, line in enumerate(read_text(file).split("\n"), start=1):
            if line.strip():
                where = f"{file}, line {number}"
                yield where, parse_json(line, where)


def _from_hub(name: str) -> Path:
    """The Parquet file that the hub keeps of every dataset it can read."""
    from huggingface_hub import HfApi, hf_hub_download

    repo, _, rest = name.partition(":")
    config, _, split = rest.partition(":")
    place = {"repo_type": "dataset", "revision": "refs/convert/parquet"}
    api: Any = HfApi()
    try:
        files: list[str] = [f for f in api.list_repo_files(repo, **place) if f.endswith(".parquet")]
    except Exception as error:  # every kind of network failure, and no such dataset
        raise SourceError(
            f"the dataset {repo!r} cannot be listed on the hub",
            got=(str(error).strip() or type(error).__name__).splitlines()[0],
            next_step="check the name and the network, or download the file and give its path",
        ) from error
    kept = [f for f in files if f.startswith(f"{config}/" if config else "") and f"{split}/" in f]
    if len(kept) != 1:
        shown = ", ".join(sorted({f.rpartition("/")[0].replace("/", ":") for f in files})[:12])
        raise SourceError(
            f"the dataset {repo!r} has {len(kept)} files of the questions asked for",
            got=name,
            expected=f"{HUB}{repo}:CONFIG:SPLIT, one of {shown or 'none: it has no Parquet files'}",
        )
    download: Any = hf_hub_download
    return Path(download(repo, kept[0], **place))


def _ours(row: dict[str, Any], where: str, number: int) -> dict[str, Any]:
    named = next((f for f in _ID_FIELDS if row.get(f) is not None), None)
    if "correct" not in row and "choices" in row:
        row = _from_choices(row, where)
    elif "correct" not in row and "answer" in row:
        answer: Any = row.pop("answer")
        value = cast("Mapping[str, Any]", answer) if isinstance(answer, Mapping) else None
        row["correct"] = value.get("value") if value is not None else answer
        wrong: Any = row.get("distractors")
        identity = str(row[named]) if named else f"{number:06d}"
        if isinstance(wrong, list) and len(cast("list[Any]", wrong)) > len(_LETTERS) - 1:
            row["distractors"] = _three(cast("list[Any]", wrong), identity)
    elif "correct" in row:
        return row  # one of ours: its id is its own business
    row["id"] = str(row.pop(named)) if named else f"{number:06d}"
    return row


def _from_choices(row: dict[str, Any], where: str) -> dict[str, Any]:
    choices, answer = row.pop("choices"), row.pop("answer", None)
    if isinstance(choices, Mapping):  # {"text": [...], "label": [...]}
        labels = list(cast("Sequence[Any]", choices.get("label", _LETTERS)))
        choices = cast("Any", choices.get("text"))
        answer = row.pop("answerKey", answer)
        answer = labels.index(answer) if answer in labels else answer
    listed = list(cast("Sequence[Any]", choices)) if isinstance(choices, (list, tuple)) else []
    if isinstance(answer, str) and answer.strip().upper() in set(_LETTERS):
        answer = _LETTERS.index(answer.strip().upper())
    if isinstance(answer, str) and answer.strip().isdigit():
        answer = int(answer)
    if isinstance(answer, bool) or not isinstance(answer, int) or not 0 <= answer < len(listed):
        raise SourceError(
            f"{where}: the answer is none of the choices",
            got=f"{answer!r} of {len(listed)} choices",
            expected=QUESTION_SHAPES[1],
        )
    wrong = [choice for place, choice in enumerate(listed) if place != answer]
    return {**row, "correct": listed[answer], "distractors": wrong}


def _three(wrong: list[Any], identity: str) -> list[Any]:
    """Three of more distractors, by the question's id alone; in the order of the file."""

    def rank(place: int) -> bytes:
        return hashlib.sha256(f"distractor\0{identity}\0{place}".encode()).digest()

    return [wrong[i] for i in sorted(sorted(range(len(wrong)), key=rank)[: len(_LETTERS) - 1])]
