"""The study contract over every study."""

import pytest

from actscope.studies import STUDIES
from actscope.testing.study_contract import StudyContract


class TestStudies(StudyContract):
    @pytest.fixture(params=STUDIES.names())
    def study(self, request):
        return STUDIES.get(request.param)
