"""promtool accepts what we ship for Prometheus, and the rules do what their tests say."""

from __future__ import annotations

import json
import shutil
import subprocess
from pathlib import Path
from typing import Any

import pytest
from ruamel.yaml import YAML

from tests.dashboard_queries import RULES, load_dashboard, load_rules, queries

HERE = RULES.parent


@pytest.fixture(scope="module")
def promtool() -> str:
    return shutil.which("promtool") or pytest.skip(
        "promtool is missing: run tests/integration/install, or install the package prometheus"
    )


def run(*command: str | Path) -> None:
    done = subprocess.run(command, capture_output=True, text=True, timeout=120, cwd=HERE)
    assert done.returncode == 0, done.stdout + done.stderr


def rule_tests() -> list[dict[str, Any]]:
    tests: list[dict[str, Any]] = YAML(typ="safe").load(HERE / "rules_test.yml")["tests"]
    return tests


def test_rules_pass_the_linter(promtool: str) -> None:
    run(promtool, "check", "rules", "--lint=all", "--lint-fatal", RULES)


def test_the_configuration_is_valid(promtool: str) -> None:
    run(promtool, "check", "config", "--lint=all", "--lint-fatal", HERE / "prometheus.yml")


def test_rules_do_what_their_tests_say(promtool: str) -> None:
    run(promtool, "test", "rules", HERE / "rules_test.yml")


@pytest.mark.parametrize("rule", [r for r in load_rules() if "alert" in r], ids=lambda r: r["alert"])
def test_every_alert_is_tested_both_ways(rule: dict[str, Any]) -> None:
    expected = [
        bool(check["exp_alerts"])
        for test in rule_tests()
        for check in test.get("alert_rule_test", [])
        if check["alertname"] == rule["alert"]
    ]
    assert set(expected) == {True, False}


@pytest.mark.parametrize("rule", [r for r in load_rules() if "record" in r], ids=lambda r: r["record"])
def test_every_recording_rule_is_tested(rule: dict[str, Any]) -> None:
    checks = [check for test in rule_tests() for check in test.get("promql_expr_test", [])]
    assert any(rule["record"] in check["expr"] and check["exp_samples"] for check in checks)


def test_queries_of_the_dashboard_are_promql(promtool: str, tmp_path: Path) -> None:
    rules = [
        {"record": f"dashboard:query:{i}", "expr": query, "labels": {"title": title}}
        for i, (title, query) in enumerate(queries(load_dashboard()))
    ]
    file = tmp_path / "queries.yml"
    file.write_text(json.dumps({"groups": [{"name": "dashboard", "rules": rules}]}))  # JSON is YAML
    run(promtool, "check", "rules", file)
