from pathlib import Path

import pytest

pytest_plugins = ["pytester"]

SUITE = {
    "test_marked": """
        import pytest
        @pytest.mark.skipif(True, reason="missing: tesseract")
        def test(): pass
    """,
    "test_called": "import pytest\ndef test(): pytest.skip('missing: aspell')",
    "test_module": "import pytest\npytest.skip('missing: fonts', allow_module_level=True)",
    "test_other": "import pytest\ndef test(): pytest.skip('needs a GPU')",
}


@pytest.mark.parametrize(
    ("required", "outcomes"), [("", {"skipped": 4}), ("1", {"failed": 1, "errors": 2, "skipped": 1})]
)
def test_missing_tools_fail_where_they_are_required(pytester, monkeypatch, required, outcomes):
    monkeypatch.setenv("MSTR_REQUIRE_TOOLS", required)
    pytester.makeconftest(Path(__file__).with_name("conftest.py").read_text(encoding="utf-8"))
    pytester.makepyfile(**SUITE)
    result = pytester.runpytest_inprocess("--continue-on-collection-errors")
    assert result.parseoutcomes() == outcomes
    if required:
        result.stdout.fnmatch_lines(["missing: tesseract (MSTR_REQUIRE_TOOLS is set: install it)"])
