"""What every study promises, as a test suite for the studies of this package and of others.

class TestMyStudy(StudyContract):
    @pytest.fixture
    def study(self):
        return STUDY
"""

# ruff: noqa: D102 - the name of a test says what it promises
from __future__ import annotations

import re
from pathlib import Path

import pytest

from actscope.core.protocols import Study

__all__ = ["StudyContract"]


class StudyContract:
    """Promises of ``Study``; override the fixture ``study``."""

    @pytest.fixture
    def study(self) -> Study:
        raise AssertionError("override the fixture `study`")

    def test_it_reports_resumes_and_changes_nothing_that_was_captured(
        self, study: Study, tmp_path: Path
    ) -> None:
        report = study.run(tmp_path)
        assert report.is_file() and tmp_path in report.parents
        before = _captured(tmp_path)
        assert before, "a study keeps what it captured in runs under its folder"
        again = study.run(tmp_path)
        assert again == report
        assert _captured(tmp_path) == before

    def test_its_report_stands_alone(self, study: Study, tmp_path: Path) -> None:
        page = study.run(tmp_path).read_text(encoding="utf-8")
        assert re.search(r"<title>[^<]+</title>", page)
        fetched = re.findall(r"""(?:src|href)\s*=\s*["'](?!#|data:)([^"']+)""", page)
        assert fetched == [], "a report needs no network"


def _captured(folder: Path) -> dict[Path, tuple[int, int]]:
    """Every file of every run: its size and the moment it was written."""
    runs = (run for name in ("run.json", "run_config.json") for run in folder.rglob(name))
    files = (path for run in runs for path in run.parent.rglob("*"))
    return {p: (p.stat().st_size, p.stat().st_mtime_ns) for p in files if p.is_file()}
