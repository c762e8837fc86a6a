"""The configuration: what loads, what does not, and what the reader is told about it."""

from __future__ import annotations

from collections.abc import Mapping
from datetime import timedelta
from itertools import pairwise
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st
from pydantic import BaseModel, ValidationError

from monitor.clock import format_duration, parse_duration, slide_step
from monitor.config import Config
from monitor.config_file import load_config, parse_config
from monitor.errors import ConfigError, MonitorError
from monitor.gap_names import METRIC_ALIASES, NAMED_GAPS, find_gap, find_metric
from monitor.paths import STAR, PathError, format_path, parse_path
from monitor.plan import describe, format_bytes, render
from monitor.tasks import build
from monitor.tasks.binary import BinaryOptions

BROKEN = Path(__file__).parent / "broken_configs"

FIRST = """\
models:
  compas:
    task: binary
    groups: [race, sex, [race, sex]]
    rules:
      - metric: equalized_odds
        groups: race
        tolerance: 0.1
        for: 3
        severity: critical
"""

# file without .yaml, line, path, words of the message, words of the fix
WRONG = [
    ("bad_path", 7, "sources[0].fields.decision", "more than one [*]", "keep one"),
    ("bare_duration", 2, "time.bucket", "60 has no unit", 'write "60s"'),
    ("bins_order", 7, "models.compas.attributes.age.bins", "45 comes after 45", "ascending order"),
    ("bucket_of_7m", 1, "time.bucket", "a day is not a whole number of 7m", "write 1m"),
    ("condition_on_a_number", 9, "sources[0].fields.prediction.at_least", "cannot have", "only the path"),
    ("conditional_gap", 6, "models.compas.rules[0].metric", "average over strata", "add strata"),
    ("duplicate_key", 6, "models.compas.min_support", "already given on line 5", "keep one of the two"),
    ("empty", 1, "models", "'models' is missing", "add models"),
    ("intersection_twice", 6, "models.compas.groups[1]", "names 'sex' twice", "each attribute once"),
    ("long_window", 5, "models.compas.windows[0]", "not a multiple of 1d", "write 3d or 4d"),
    ("missing_groups", 2, "models.compas.groups", "'groups' is missing", "add groups: attributes"),
    ("misspelt_key", 4, "models.compas.gruops", "is not a key", "did you mean 'groups'?"),
    ("model_name", 2, "models.compas score", "is not a name", "letters, digits"),
    ("named_gap_kind", 8, "models.compas.rules[0].kind", "is a difference, not a ratio", "take kind out"),
    (
        "named_gap_of_another_task",
        6,
        "models.asr.rules[0].metric",
        "needs true_positive_rate",
        "word_error_rate",
    ),
    ("never_fires", 9, "models.compas.rules[0].direction", "cannot fire", "take direction out"),
    ("not_a_mapping", 1, "", "must be a mapping, not a list", "key: value"),
    ("number_for_text", 5, "models.compas.min_support", "must be a whole number, not 'thirty'", "like 10"),
    ("outcome_ttl", 6, "models.compas.join.outcome_ttl", "cannot be 20000d", "34 years"),
    ("ratio_tolerance", 9, "models.compas.rules[0].tolerance", "at most 1, not 1.25", "write 0.8"),
    ("reference_keys", 9, "models.compas.rules[0].reference", "names sex", "one value for each"),
    (
        "reference_missing",
        6,
        "models.compas.rules[0].reference",
        "none is given",
        "reference: {race: <value>}",
    ),
    (
        "rule_groups",
        7,
        "models.compas.rules[0].groups",
        "not one of the model's groups",
        "use one of race, sex",
    ),
    ("rule_names", 7, "models.compas.rules[1].name", "two rules", "a name of its own"),
    ("syntax_error", 5, "", "this is not YAML", "check the indentation"),
    ("tab_indent", 3, "", "this is not YAML", "spaces, not with tabs"),
    ("unknown_field", 7, "sources[0].fields.decison", "neither a field", "did you mean 'decision'?"),
    ("unknown_metric", 7, "models.compas.metrics[1]", "not a metric", "did you mean 'true_positive_rate'?"),
    ("unknown_task", 3, "models.compas.task", "'binray' is not one", "did you mean 'binary'?"),
    ("window_multiple", 7, "models.compas.windows[1]", "not a multiple of 1m", "write 1m or 2m"),
    ("yes_is_text", 2, "time.assume_utc", "must be true or false, not 'yes'", "write true or false"),
]


@pytest.mark.parametrize(("name", "line", "where", "message", "fix"), WRONG, ids=[w[0] for w in WRONG])
def test_a_broken_config_is_reported_with_its_line_and_its_remedy(
    name: str, line: int, where: str, message: str, fix: str
) -> None:
    path = BROKEN / f"{name}.yaml"
    with pytest.raises(ConfigError) as caught:
        load_config(path)
    assert len(caught.value.problems) == 1, str(caught.value)
    problem = caught.value.problems[0]
    assert (problem.line, problem.origin) == (line, str(path))
    assert problem.where == where
    assert message in problem.message
    assert fix in problem.suggestion
    assert str(problem).startswith(f"{path}:{line}: ")
    assert "Fix: " in str(problem)


def test_every_broken_config_is_in_the_table() -> None:
    assert {p.stem for p in BROKEN.glob("*.yaml")} == {w[0] for w in WRONG}


def problems(text: str, environ: Mapping[str, str] | None = None) -> dict[str, str]:
    with pytest.raises(ConfigError) as caught:
        parse_config(text, environ or {})
    return {p.where: p.message for p in caught.value.problems}


def test_a_first_config_has_ten_lines_and_loads() -> None:
    assert len(FIRST.splitlines()) == 10
    config = parse_config(FIRST)
    model = config.models["compas"]
    rule = model.rules[0]
    assert (rule.metric, rule.groups, rule.for_buckets) == ("equalized_odds_difference", ("race",), 3)
    assert rule.spec.metrics == ("true_positive_rate", "false_positive_rate")
    assert rule.name == "equalized_odds_difference_between_race_1h_critical"
    assert model.attribute_names == ("race", "sex")
    assert model.groupings == (("race",), ("sex",), ("race", "sex"))
    assert model.windows == (timedelta(hours=1), timedelta(days=1), "all")
    assert len(model.gaps) == len(model.metric_names) * len(model.groupings) * 2
    assert [s.name for s in config.sources] == ["events"]
    assert config.sources[0].fields.task_field("decision").steps == ("decision",)


def test_all_problems_are_reported_at_once() -> None:
    text = """\
models:
  compas:
    task: binary
    groups: [race, [sex, sex]]
    windows: [1x, 90s]
    rules:
      - {metric: selection_rat, groups: race, tolerance: -1}
      - {metric: DPPL, groups: race, tolerance: 0.1, windw: 1h}
      - {metric: accuracy, tolerance: 0.1}
  other:
    task: binary
    grups: [age]
    rules: [{metric: acuracy, groups: age, tolerance: 0.1}]
sources:
  - fields: {decison: a}
time: {grace: 5}
tim: {}
"""
    assert set(problems(text)) == {
        "models.compas.groups[1]",
        "models.compas.windows[0]",
        "models.compas.windows[1]",
        "models.compas.rules[0].metric",
        "models.compas.rules[0].tolerance",
        "models.compas.rules[1].windw",
        "models.compas.rules[1].reference",
        "models.compas.rules[2].groups",
        "models.other.grups",
        "models.other.rules[0].metric",
        "sources[0].fields.decison",
        "time.grace",
        "tim",
    }


def test_problems_come_in_the_order_of_lines() -> None:
    with pytest.raises(MonitorError) as caught:
        parse_config("tim: {}\nmodels:\n  a: {task: binary, groups: [x], min_support: 0}\n")
    assert isinstance(caught.value, ConfigError)
    assert [p.line for p in caught.value.problems] == [1, 3]


def test_what_rests_on_a_broken_part_is_not_reported() -> None:
    text = FIRST.replace(
        "tolerance: 0.1", "tolerance: 0.1\n        comparison: betwen\n        direction: below"
    )
    assert set(problems(text)) == {"models.compas.rules[0].comparison"}
    assert set(problems(FIRST + "time: {bucket: 7m}\n")) == {"time.bucket"}


@pytest.mark.parametrize(
    ("text", "where", "message"),
    [
        ("models: &m\n  a: *m\n", "models.a", "aliases repeat"),
        ("models: !secret x\n", "models", "tag !secret"),
        ("[a]: 1\n" + FIRST, "", "a key is a list"),
        ("time:\n" + FIRST, "time", "must be a mapping, not nothing"),
        (FIRST + "---\na: 1\n", "", "this is not YAML"),
        (FIRST.replace("task: binary", "task: {}"), "models.compas.task", "has no type"),
        (FIRST.replace("task: binary", "task: score"), "models.compas.task.range", "'range' is missing"),
        (FIRST.replace("0.1", ".nan"), "models.compas.rules[0].tolerance", "finite"),
        (FIRST.replace("0.1", "true"), "models.compas.rules[0].tolerance", "must be a number, not true"),
        (FIRST.replace("groups: race", "groups: []"), "models.compas.rules[0].groups", "1 to 4"),
        (FIRST.replace("[race, sex, [race, sex]]", "[]"), "models.compas.groups", "at least 1 item"),
        (FIRST + "dead_letter: {path: 2024-01-01, x: 1}\n", "dead_letter.x", "not a key"),
        ("models: {}\n", "models", "at least 1 item"),
        (
            FIRST + "sources: [{fields: {time: {unit: unix_seconds}}}]\n",
            "sources[0].fields.time",
            "a path or a",
        ),
        (
            FIRST + "sources: [{fields: {decision: {path: a, equals: 1, at_least: 2}}}]\n",
            "sources[0].fields.decision",
            "one condition",
        ),
        (
            FIRST + "sources: [{fields: {outcome: {value: x}}}]\n",
            "sources[0].fields.outcome.value",
            "cannot have",
        ),
    ],
)
def test_odd_files_have_one_clear_problem(text: str, where: str, message: str) -> None:
    found = problems(text)
    assert list(found) == [where]
    assert message in found[where]


def test_a_file_that_cannot_be_read_is_a_problem(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match="cannot be read"):
        load_config(tmp_path / "none.yaml")
    (tmp_path / "latin.yaml").write_bytes(b"models: \xe9\n")
    with pytest.raises(ConfigError, match="not UTF-8"):
        load_config(tmp_path / "latin.yaml")


def test_anchors_and_merges_work() -> None:
    config = parse_config(
        "models:\n  a: &base\n    task: binary\n    groups: [race]\n    min_support: 5\n"
        "  b:\n    <<: *base\n    min_support: 7\n"
    )
    assert [m.min_support for m in config.models.values()] == [5, 7]


def test_a_rule_takes_the_min_support_of_its_model_unless_it_has_its_own() -> None:
    text = FIRST.replace("    rules:", "    min_support: 99\n    rules:")
    assert parse_config(text).models["compas"].rules[0].min_support == 99
    own = text.replace("for: 3", "min_support: 7")
    assert parse_config(own).models["compas"].rules[0].min_support == 7


def test_metrics_and_groups_become_canonical() -> None:
    text = FIRST.replace("equalized_odds", "tpr").replace("groups: race", "groups: [sex, race]")
    model = parse_config(text.replace("    rules:", "    metrics: [ppv, GE]\n    rules:")).models["compas"]
    assert model.metrics == ("precision", "generalized_entropy")
    assert (model.rules[0].metric, model.rules[0].groups) == ("true_positive_rate", ("race", "sex"))
    assert {g.metric for g in model.gaps} == {"precision", "generalized_entropy"}


def test_a_named_gap_brings_its_comparison_kind_and_sign() -> None:
    rule = "{metric: DPPL, groups: race, reference: {race: a}, tolerance: 0.1}"
    text = f"models: {{m: {{task: binary, groups: [race], rules: [{rule}]}}}}"
    spec = parse_config(text).models["m"].rules[0].spec
    assert (spec.name, spec.metrics, spec.comparison, spec.sign) == (
        "DPPL",
        ("selection_rate",),
        "reference",
        -1,
    )
    assert spec.reference == {"race": "a"}
    rest = parse_config(text.replace("reference: {race: a}", "comparison: rest")).models["m"].rules[0].spec
    assert (rest.comparison, rest.sign) == ("rest", -1)


def test_a_gap_without_groups_is_taken_over_every_grouping() -> None:
    text = "models: {m: {task: binary, groups: [a, [a, b]], gaps: [{metric: accuracy}]}}"
    assert [g.groups for g in parse_config(text).models["m"].gaps] == [("a",), ("a", "b")]
    text = text.replace("{metric: accuracy}", "{metric: SPD, reference: {b: x, a: y}}")
    assert [g.groups for g in parse_config(text).models["m"].gaps] == [("a", "b")]


def test_names_made_for_rules_are_unique() -> None:
    rule = "{metric: accuracy, groups: a, tolerance: 0.1}"
    text = f"models: {{m: {{task: binary, groups: [a], rules: [{rule}, {rule}]}}}}"
    first, second = parse_config(text).models["m"].rules
    assert second.name == f"{first.name}_2"


# --- environment -----------------------------------------------------------------------------------


def test_variables_override_the_file() -> None:
    config = parse_config(
        FIRST.replace("compas", "Compas-v1.2"),
        {
            "FAIRNESS_MONITOR__TIME__BUCKET": "5m",
            "FAIRNESS_MONITOR__MODELS__COMPAS_V1_2__MIN_SUPPORT": "7",
            "FAIRNESS_MONITOR__MODELS__COMPAS_V1_2__RULES__0__FOR": "2",
            "FAIRNESS_MONITOR__MODELS__COMPAS_V1_2__TASK__SCORE": "{range: [0, 1]}",
            "FAIRNESS_MONITOR__MODELS__COMPAS_V1_2__GROUPS__3": "site",
            "FAIRNESS_MONITOR__DEAD_LETTER__PATH": "12345",
            "FAIRNESS_MONITOR_OTHER": "not ours",
        },
    )
    model = config.models["Compas-v1.2"]
    assert config.time.bucket == timedelta(minutes=5)
    assert (model.min_support, model.rules[0].for_buckets) == (7, 2)
    assert "roc_auc" in model.metric_names
    assert model.groupings[3] == ("site",)
    assert config.dead_letter.path == "12345"


def test_a_variable_can_name_a_file_with_the_value(tmp_path: Path) -> None:
    secret = tmp_path / "secret"
    secret.write_text("/var/dead: letters\n\n")
    config = parse_config(FIRST, {"FAIRNESS_MONITOR__DEAD_LETTER__PATH_FILE": str(secret)})
    assert config.dead_letter.path == "/var/dead: letters\n"
    secret.write_text("12\n")
    config = parse_config(FIRST, {"FAIRNESS_MONITOR__PRIVACY__MIN_GROUP_SIZE_FILE": str(secret)})
    assert config.privacy.min_group_size == 12


def test_problems_of_variables_name_the_variable(tmp_path: Path) -> None:
    secret = tmp_path / "secret"
    secret.write_text("hunter2")
    environ = {
        "FAIRNESS_MONITOR__TIME__BUCKET": "7",
        "FAIRNESS_MONITOR__TIME__GRACE_FILE": str(secret),
        "FAIRNESS_MONITOR__TIME__MAX_FUTURE_FILE": str(tmp_path / "none"),
        "FAIRNESS_MONITOR__MODELS__COMPAS__GROUPS__9": "site",
        "FAIRNESS_MONITOR__TIEM__BUCKET": "5m",
        "FAIRNESS_MONITOR__LIMITS____X": "1",
        "FAIRNESS_MONITOR__MODELS__COMPAS__MIN_SUPPORT__X": "1",
        "FAIRNESS_MONITOR__PRIVACY__MIN_GROUP_SIZE": "1",
        "FAIRNESS_MONITOR__PRIVACY__MIN_GROUP_SIZE_FILE": str(secret),
        "FAIRNESS_MONITOR__MODELS__COMPAS__MAX_CELLS": "[1",
    }
    with pytest.raises(ConfigError) as caught:
        parse_config(FIRST, environ)
    assert {p.origin for p in caught.value.problems} == set(environ) - {
        "FAIRNESS_MONITOR__PRIVACY__MIN_GROUP_SIZE"
    }
    assert all(p.line is None and p.suggestion for p in caught.value.problems)
    assert "hunter2" not in str(caught.value)


# --- the tree --------------------------------------------------------------------------------------


def parts(value: Any) -> list[Any]:
    """Everything inside a configuration."""
    if isinstance(value, BaseModel):
        return [value, *(p for name in type(value).model_fields for p in parts(getattr(value, name)))]
    if isinstance(value, Mapping):
        return [value, *(p for v in value.values() for p in parts(v))]
    return [value, *(p for v in value for p in parts(v))] if isinstance(value, tuple | list) else [value]


TASKS = st.sampled_from(
    ["binary", "speech", "{type: score, range: [0, 1]}", "{type: regression, range: [0, 9]}"]
)
ATTRIBUTES = st.lists(st.sampled_from(["race", "sex", "age", "site"]), min_size=1, max_size=4, unique=True)


@given(task=TASKS, attributes=ATTRIBUTES, bucket=st.sampled_from(["1s", "30s", "1m", "15m"]))
def test_whatever_loads_is_frozen_and_survives_a_round_trip(
    task: str, attributes: list[str], bucket: str
) -> None:
    config = parse_config(
        f"models: {{m: {{task: {task}, groups: {attributes}, attributes: {{x: {{bins: [1]}}}}}}}}\n"
        f"time: {{bucket: {bucket}}}\n"
    )
    for part in parts(config):
        assert not isinstance(part, list | set | dict | bytearray)
        if isinstance(part, BaseModel):
            assert part.model_config.get("frozen")
            assert part.model_config.get("extra") == "forbid"
    with pytest.raises(ValidationError):
        setattr(config.models["m"], "min" + "_support", 1)
    hash(config)
    assert Config.model_validate_json(config.model_dump_json()) == config
    assert Config.model_validate(config.model_dump()) == config


def test_every_field_has_a_description() -> None:
    text = FIRST.replace("    rules:", "    weights: {bound: 2}\n    attributes: {age: {}}\n    rules:")
    for part in parts(parse_config(text)):
        if isinstance(part, BaseModel):
            for name, field in type(part).model_fields.items():
                assert field.description, f"{type(part).__name__}.{name}"
    assert Config.model_json_schema()["properties"]["time"]


def test_weights_reach_the_task() -> None:
    text = FIRST.replace("    rules:", "    weights: {bound: 100}\n    rules:")
    plain, weighted = (parse_config(t).models["compas"].build_task() for t in (FIRST, text))
    assert len(weighted.statistics) > len(plain.statistics)


# --- durations, paths, names -----------------------------------------------------------------------


@given(st.timedeltas(min_value=timedelta(0), max_value=timedelta(days=40_000)))
def test_durations_read_back(duration: timedelta) -> None:
    assert parse_duration(format_duration(duration)) == duration


@pytest.mark.parametrize(
    ("text", "seconds"),
    [("90s", 90), ("1m", 60), ("1h30m", 5400), ("30d", 2_592_000), ("500ms", 0.5), ("1w", 604_800)],
)
def test_durations(text: str, seconds: float) -> None:
    assert parse_duration(text).total_seconds() == seconds


@pytest.mark.parametrize("text", ["", "90", "1.5", "1.5h", "-1m", "1m1h", "1m1m", "5 m", "m", "9" * 30 + "d"])
def test_what_is_not_a_duration_says_what_to_write(text: str) -> None:
    with pytest.raises(ValueError, match="; write "):
        parse_duration(text)


def test_negative_durations_have_no_text() -> None:
    with pytest.raises(ValueError, match="negative"):
        format_duration(timedelta(seconds=-1))


def test_windows_slide_by_larger_steps_the_longer_they_are() -> None:
    steps = [slide_step(parse_duration(w), timedelta(minutes=1)) for w in ("1m", "2h", "3h", "2d", "3d")]
    assert steps == [timedelta(minutes=1)] * 2 + [timedelta(hours=1)] * 2 + [timedelta(days=1)]
    assert all(a <= b for a, b in pairwise(steps))


NAMES = st.text(st.characters(blacklist_categories=["Cs"]), max_size=8)


@given(
    st.lists(st.one_of(NAMES, st.integers(0, 10**8)), min_size=1, max_size=5),
    st.integers(0, 5),
    st.booleans(),
)
def test_paths_read_back(steps: list[str | int], at: int, star: bool) -> None:
    path = (*steps[:at], STAR, *steps[at:]) if star else tuple(steps)
    assert parse_path(format_path(path)) == path


@pytest.mark.parametrize(
    ("text", "steps"),
    [
        ("payload.user.sex", ("payload", "user", "sex")),
        ('a["key.with.dots"]', ("a", "key.with.dots")),
        (r'["a\"b\\"]', ('a"b\\',)),
        ("a[0].b", ("a", 0, "b")),
        ("rows[*].x[1]", ("rows", STAR, "x", 1)),
        ("[0][*]", (0, STAR)),
        ("first name.last name", ("first name", "last name")),
    ],
)
def test_paths(text: str, steps: tuple[Any, ...]) -> None:
    assert parse_path(text) == steps


@pytest.mark.parametrize(
    "text",
    [
        "",
        ".",
        "a.",
        ".a",
        "a..b",
        "$.a",
        "a.*",
        "*",
        "a[",
        "a[-1]",
        "a[x]",
        'a["b]',
        "a[0]b",
        "a b .c",
        "a'b",
        "a]",
        "a[*][*]",
        "a*",
        'a"b"',
        "a.[0]",
    ],
)
def test_what_is_not_a_path_says_what_to_write(text: str) -> None:
    with pytest.raises(PathError) as caught:
        parse_path(text)
    assert caught.value.message
    assert caught.value.fix


def test_named_gaps_rest_on_metrics_of_the_binary_task() -> None:
    metrics = {n: m.aliases for n, m in build(BinaryOptions()).metrics.items()}
    for gap in NAMED_GAPS.values():
        assert all(m in metrics for m in gap.metrics), gap.name
        assert gap.definition
        assert gap.source
        for name in (gap.name, *gap.aliases):
            assert find_gap(name) is gap
            assert find_metric(name, metrics) is None, f"{name} is a metric as well"
    assert set(METRIC_ALIASES.values()) <= set(metrics)
    names = [n for g in NAMED_GAPS.values() for n in (g.name, *g.aliases)]
    assert len(names) == len(set(names))


# --- the plan --------------------------------------------------------------------------------------


def test_the_plan_derives_its_figures_from_the_configuration() -> None:
    text = """\
models:
  m:
    task: binary
    groups: [a, [a, b]]
    attributes: {a: {bins: [1, 2]}, b: {max_values: 3}}
    metrics: [accuracy]
    windows: [1h, 1d, all]
    rules: [{metric: accuracy, groups: a, tolerance: 0.1, comparison: rest, window: 2h}]
time: {grace: 1m, max_future: 2m}
"""
    model = describe(parse_config(text)).models[0]
    statistics = len(parse_config(text).models["m"].build_task().statistics)
    assert [a.values for a in model.attributes] == [4, 5]
    assert (model.cells, model.cells_bound) == (20, "the product of attribute values")
    assert [g.groups for g in model.groupings] == [4, 20]
    assert (model.open_buckets, model.closed_steps) == (4, 120 + 25)
    assert model.memory_bytes == 20 * 8 * ((4 + 4) * statistics + 145 * (statistics + 1))
    assert model.series == 25 * (5 + 4 * 3) + 3 + 4 * 3 * 4 + (4 + 5) + 4
    capped = text.replace("    task: binary", "    task: binary\n    max_cells: 7")
    assert describe(parse_config(capped)).models[0].cells_bound == "max_cells"
    assert describe(parse_config(capped)).models[0].cells == 7


def test_the_plan_as_text() -> None:
    config = parse_config(FIRST)
    text = render(describe(config))
    flat = " ".join(text.split())
    assert "critical when the equalized_odds_difference between groups of race is above 0.1 over 1h" in flat
    assert "3 times in a row, 1m apart" in flat
    assert all(len(line) <= 110 for line in text.splitlines())
    assert text == render(describe(config))


def test_bytes() -> None:
    assert [format_bytes(n) for n in (0, 1023, 1024, 2**50)] == ["0 B", "1023 B", "1.0 KiB", "1024.0 TiB"]
