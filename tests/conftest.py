import os
from collections.abc import Generator

import pytest
from hypothesis import settings

# Tests run offline; the Hub's library reads this when it is imported.
os.environ["HF_HUB_OFFLINE"] = "1"

# A deadline for each example would make property tests fail on a busy machine.
settings.register_profile("mstr", deadline=None)
settings.load_profile("mstr")


@pytest.hookimpl(wrapper=True)
def pytest_runtest_makereport() -> Generator[None, pytest.TestReport, pytest.TestReport]:
    return _fail_if_tool_is_missing((yield))


@pytest.hookimpl(wrapper=True)
def pytest_make_collect_report() -> Generator[None, pytest.CollectReport, pytest.CollectReport]:
    return _fail_if_tool_is_missing((yield))


def _fail_if_tool_is_missing(report):
    """Fails what was skipped with a reason "missing: ..." where all tools must be there, as in CI."""
    if os.environ.get("MSTR_REQUIRE_TOOLS") and report.skipped and isinstance(report.longrepr, tuple):
        reason = report.longrepr[2].removeprefix("Skipped: ")
        if reason.startswith("missing:"):
            report.outcome = "failed"
            report.longrepr = f"{reason} (MSTR_REQUIRE_TOOLS is set: install it)"
    return report
