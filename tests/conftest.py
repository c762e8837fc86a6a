"""What holds for all tests."""

from __future__ import annotations

import os
from collections.abc import Generator
from typing import Any

import pytest


@pytest.hookimpl(wrapper=True)
def pytest_runtest_makereport(item: pytest.Item, call: pytest.CallInfo[None]) -> Generator[None, Any, Any]:
    """In CI nothing is skipped: what a test needs and does not find is an error there."""
    report = yield
    if report.skipped and os.environ.get("FAIRNESS_MONITOR_CI"):
        report.outcome = "failed"
        report.longrepr = f"{item.nodeid} was skipped, and FAIRNESS_MONITOR_CI is set: {call.excinfo}"
    return report
