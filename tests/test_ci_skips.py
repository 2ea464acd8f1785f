from pathlib import Path

import pytest

SKIPS = """
    import pytest

    def test_skips():
        pytest.skip("not today")

    @pytest.mark.skip
    def test_is_skipped():
        pass

    @pytest.mark.gpu
    @pytest.mark.skip
    def test_without_gpu():
        pass
"""


@pytest.fixture
def suite(pytester: pytest.Pytester) -> pytest.Pytester:
    pytester.makeconftest((Path(__file__).parent / "conftest.py").read_text())
    pytester.makeini("[pytest]\nmarkers = gpu: needs a GPU")
    pytester.makepyfile(SKIPS)
    return pytester


@pytest.mark.parametrize(("ci", "expected"), [("true", {"failed": 1, "errors": 1, "skipped": 1}), ("", {"skipped": 3})])
def test_a_skip_fails_in_ci_unless_it_is_for_want_of_a_gpu(suite, monkeypatch, ci, expected):
    monkeypatch.setenv("CI", ci)
    suite.runpytest_inprocess().assert_outcomes(**expected)
