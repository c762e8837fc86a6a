"""The commands as a user runs them, in a process of their own."""

from __future__ import annotations

import json
import os
import re
import subprocess
import sys
from pathlib import Path

import pytest

from monitor import __version__
from monitor.config_file import parse_config

ROOT = Path(__file__).parents[2]
CONFIG = """
models:
  triage:
    task: binary
    groups: [sex]
    windows: [all]
    min_support: 2
    rules:
      - {metric: fpr, groups: sex, tolerance: 0.3, window: all}
privacy: {min_group_size: 1}
"""


def run(*words: str, stdin: str = "", **environment: str) -> subprocess.CompletedProcess[str]:
    code = "from monitor.cli import main; main()"
    return subprocess.run(
        [sys.executable, "-W", "error", "-c", code, *words],
        input=stdin,
        capture_output=True,
        text=True,
        cwd=ROOT,
        timeout=120,
        env={**os.environ, "COLUMNS": "100", "NO_COLOR": "1", **environment},
        check=False,
    )


def events(start: int = 0) -> str:
    lines = []
    for i in range(start, start + 40):
        sex = "female" if i % 2 else "male"
        decision = i % 4 == 1  # every second of the women, none of the men
        record = {"id": f"p{i}", "time": "2024-01-01T00:00:00Z", "attributes": {"sex": sex}}
        lines.append(json.dumps({**record, "decision": decision, "outcome": False}))
    return "\n".join(lines) + "\n"


@pytest.fixture
def config(tmp_path: Path) -> str:
    path = tmp_path / "monitor.yaml"
    path.write_text(CONFIG)
    return str(path)


def test_replay_prints_one_json_document(config: str) -> None:
    done = run("replay", config, "-", "--format", "json", stdin=events() + "{broken\n")
    assert done.returncode == 0, done.stderr
    document = json.loads(done.stdout)
    assert document["events"] == {
        "read": 41,
        "accepted": 40,
        "rejected": 1,
        "joined": 40,
        "unmatched_predictions": 0,
        "unmatched_outcomes": 0,
        "duplicates": 0,
    }
    assert document["rejects"] == {"invalid_json": 1}
    women = next(
        g
        for g in document["groups"]
        if g["group"] == {"sex": "female"} and g["metric"] == "false_positive_rate"
    )
    assert (women["value"], women["numerator"], women["denominator"]) == (0.5, 10, 20)
    gap = next(
        g for g in document["gaps"] if g["metric"] == "false_positive_rate" and g["kind"] == "difference"
    )
    assert gap["value"] == 0.5
    assert gap["groups"] == [{"sex": "female"}, {"sex": "male"}]
    assert [a["state"] for a in document["alerts"]] == ["firing"]
    assert "firing" in done.stderr


def test_replay_prints_a_table_a_person_can_read(config: str, tmp_path: Path) -> None:
    (tmp_path / "events.jsonl").write_text(events())
    done = run("replay", config, str(tmp_path / "events.jsonl"))
    assert done.returncode == 0, done.stderr
    assert "female" in done.stdout
    assert "0.5000" in done.stdout
    assert "accepted 40" in done.stdout
    assert max(map(len, done.stdout.splitlines())) <= 100


def test_dead_letters_are_kept(config: str, tmp_path: Path) -> None:
    letters = tmp_path / "dead.jsonl"
    bad = '{"id": "x", "time": "2024-01-01T00:00:00Z", "decision": "yes", "attributes": {}}'
    done = run("replay", config, "-", "--dead-letters", str(letters), stdin=events() + bad + "\n")
    assert done.returncode == 0, done.stderr
    (letter,) = map(json.loads, letters.read_text().splitlines())
    assert letter["payload"] == bad
    assert (letter["partition"], letter["position"], letter["reason"]) == ("stdin", 41, "wrong_type")
    assert "decision" in letter["message"]


def test_sources_are_named_on_the_command_line(tmp_path: Path) -> None:
    config = tmp_path / "two.yaml"
    config.write_text(
        CONFIG
        + "sources:\n  - {name: scores, fields: {id: key}}\n  - {name: truth, fields: {outcome: truth}}\n"
    )
    scores, truth = tmp_path / "scores.jsonl", tmp_path / "truth.jsonl"
    scores.write_text('{"key": "a", "time": "2024-01-01", "decision": true, "attributes": {"sex": "male"}}\n')
    truth.write_text('{"id": "a", "time": "2024-01-02", "truth": 0}\n')
    done = run("replay", str(config), f"scores={scores}", f"truth={truth}", "--format", "json")
    assert done.returncode == 0, done.stderr
    assert json.loads(done.stdout)["events"]["joined"] == 1
    done = run("replay", str(config), str(scores))
    assert done.returncode == 2
    assert "scores=" in done.stderr


def test_problems_are_sentences_and_exit_code_2(config: str, tmp_path: Path) -> None:
    broken = tmp_path / "broken.yaml"
    broken.write_text(CONFIG.replace("groups: [sex]", "gruops: [sex]").replace("fpr", "fqr"))
    done = run("check-config", str(broken))
    assert done.returncode == 2
    assert "broken.yaml:5: " in done.stderr
    assert "did you mean 'groups'?" in done.stderr
    assert "fqr" in done.stderr
    assert "Traceback" not in done.stderr
    done = run("replay", config, str(tmp_path / "nothing.jsonl"))
    assert done.returncode == 2
    assert "nothing.jsonl" in done.stderr
    done = run("replay", config)
    assert done.returncode == 2
    assert "name an input" in done.stderr


def test_environment_overrides(config: str) -> None:
    done = run("check-config", config, FAIRNESS_MONITOR__TIME__BUCKET="7m")
    assert done.returncode == 2
    assert "FAIRNESS_MONITOR__TIME__BUCKET" in done.stderr


def test_check_config_prints_what_would_run(config: str) -> None:
    done = run("check-config", config)
    assert done.returncode == 0, done.stderr
    for word in ("triage", "binary", "sex", "memory", "series", "false_positive_rate"):
        assert word in done.stdout


def test_schema_prints_json_schema(config: str) -> None:
    for words in (("schema",), ("schema", config)):
        done = run(*words)
        assert done.returncode == 0, done.stderr
        for kinds in json.loads(done.stdout).values():
            assert kinds["prediction"]["type"] == "object"


def test_bench_prints_ratios() -> None:
    done = run("bench", "--events", "10000", "--rounds", "1", "--format", "json")
    assert done.returncode == 0, done.stderr
    assert set(json.loads(done.stdout)["ratios"]) == {"joined events", "split events"}


def test_version() -> None:
    assert run("--version").stdout.strip() == f"fairness-monitor {__version__}"


def readme_blocks(language: str) -> list[str]:
    return re.findall(rf"```{language}\n(.*?)```", (ROOT / "README.md").read_text(), re.DOTALL)


def test_configurations_of_the_readme_load() -> None:
    blocks = readme_blocks("yaml")
    assert blocks
    model = "models: {m: {task: binary, groups: [sex, age], attributes: {age: {bins: [30]}}}}\n"
    secret = {"FAIRNESS_MONITOR__ALERTS__WEBHOOKS__ON_CALL__SECRETS": "whsec_" + "QUFB" * 8}
    for block in blocks:
        whole = block if re.search("^models:", block, re.MULTILINE) else model + block
        parse_config(whole, secret if "webhooks" in block else {})


def test_events_of_the_readme_are_accepted(config: str) -> None:
    (block,) = readme_blocks("json")
    done = run("replay", config, "-", "--format", "json", stdin=block)
    assert json.loads(done.stdout)["events"]["accepted"] == len(block.splitlines())


def test_examples_load() -> None:
    for path in (ROOT / "deploy" / "examples").glob("*.yaml"):
        assert run("check-config", str(path)).returncode == 0
