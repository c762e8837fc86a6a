"""The dashboard can be read, and dashboard and rules ask only for series that exist."""

from __future__ import annotations

import itertools
import re
from collections.abc import Iterator, Mapping
from typing import Any

import pytest

from monitor import exposition
from tests import dashboard_queries
from tests.dashboard_queries import load_dashboard, load_rules, panels, queries, substitute

DASHBOARD = load_dashboard()
PANELS = list(panels(DASHBOARD))
RULES = load_rules()
RECORDED = {r["record"]: r["expr"] for r in RULES if "record" in r}
ALERTS = {r["alert"]: r for r in RULES if "alert" in r}
RUNBOOK = dashboard_queries.ROOT / "dashboards" / "README.md"

TARGET = {"job", "instance", "pod"}
PROCESS = {"process_resident_memory_bytes": (), "process_cpu_seconds_total": (), "up": ()}
OF_PROMETHEUS = {"ALERTS": ("alertname", "alertstate")}

# Okabe and Ito's colours, told apart with every common kind of colour blindness.
COLORS = {"#E69F00", "#56B4E9", "#009E73", "#F0E442", "#0072B2", "#D55E00", "#CC79A7", "#999999"}
COLORS |= {"text", "transparent"}
UNITS = {"none", "short", "percentunit", "s", "bytes", "cps", "reqps", "dateTimeFromNow"}

_TEXT = re.compile(r'"(?:[^"\\]|\\.)*"')
_SELECTOR = re.compile(r"(?P<name>[a-zA-Z_:][\w:]*)? *\{(?P<labels>[^{}]*)\}")
_MATCHER = re.compile(r"(\w+) *(?:=~|!~|!=|=)")
_LABEL_LIST = re.compile(r"\b(?:by|without|on|ignoring|group_left|group_right) *\(([^()]*)\)")
_NAME = re.compile(r"\b(?:fairness_\w+|process_\w+|ALERTS|up|\w+:\w+:\w+)\b(?! *\()")


def by_title(panel: Mapping[str, Any]) -> str:
    return str(panel["title"])


def asked() -> Iterator[tuple[str, str]]:
    """Every query of dashboard and rules, with where it is."""
    for title, query in queries(DASHBOARD):
        yield f"dashboard: {title}", query
    for rule in RULES:
        yield f"rules: {rule.get('alert') or rule['record']}", rule["expr"]


@pytest.mark.parametrize(("where", "query"), list(asked()))
def test_names_only_series_that_exist(where: str, query: str) -> None:
    known = {*exposition.SERIES, *PROCESS, *OF_PROMETHEUS, *RECORDED}
    named = set(_NAME.findall(_LABEL_LIST.sub("", re.sub(r"\{[^{}]*\}", "", _TEXT.sub('""', query)))))
    for matched in re.findall(r'__name__=~"([^"]*)"', query):
        named |= set(matched.split("|"))
    assert named
    assert named <= known


def labels_of(name: str) -> set[str]:
    if name in RECORDED:
        return {label for n in _NAME.findall(_TEXT.sub('""', RECORDED[name])) for label in labels_of(n)}
    series = {**exposition.SERIES, **PROCESS, **OF_PROMETHEUS}
    return {*series[name], *TARGET}


@pytest.mark.parametrize(("where", "query"), list(asked()))
def test_asks_only_for_labels_that_exist(where: str, query: str) -> None:
    bare = _TEXT.sub('""', query)
    everything: set[str] = set()
    for name in _NAME.findall(_LABEL_LIST.sub("", re.sub(r"\{[^{}]*\}", "", bare))):
        everything |= labels_of(name)
    for names in re.findall(r'__name__=~"([^"]*)"', query):
        everything |= set.union(*(labels_of(n) for n in names.split("|")), {"__name__"})
    for selector in _SELECTOR.finditer(bare):
        own = labels_of(selector["name"]) if selector["name"] else everything
        assert set(_MATCHER.findall(selector["labels"])) <= own, selector[0]
    for listed in _LABEL_LIST.findall(bare):
        assert {label.strip() for label in listed.split(",") if label.strip()} <= everything, listed


@pytest.mark.parametrize("panel", PANELS, ids=by_title)
def test_legends_name_labels_of_the_series(panel: Mapping[str, Any]) -> None:
    for target in panel["targets"]:
        everything = {
            label
            for n in _NAME.findall(_LABEL_LIST.sub("", _TEXT.sub('""', target["expr"])))
            if n in {*exposition.SERIES, *PROCESS, *RECORDED}
            for label in labels_of(n)
        }
        assert set(re.findall(r"\{\{(\w+)\}\}", target.get("legendFormat", ""))) <= everything


@pytest.mark.parametrize("series", sorted(exposition.SERIES))
def test_every_series_is_on_the_dashboard(series: str) -> None:
    counters = {"fairness_group_numerator_total", "fairness_group_denominator_total"}
    counters |= {"fairness_group_outcomes_total"}
    # These are shown as ratios that recording rules make of them.
    shown = [q for _, q in queries(DASHBOARD)] if series not in counters else list(RECORDED.values())
    assert any(re.search(rf"\b{series}\b", q) for q in shown)


@pytest.mark.parametrize(("where", "query"), list(asked()))
def test_queries_are_balanced(where: str, query: str) -> None:
    pairs = {")": "(", "]": "[", "}": "{"}
    opened: list[str] = []
    for character in _TEXT.sub("", query):
        if character in pairs.values():
            opened.append(character)
        elif character in pairs:
            assert opened, query
            assert opened.pop() == pairs[character], query
    assert not opened
    assert "$" not in _TEXT.sub("", query) or where.startswith("rules")


@pytest.mark.parametrize("panel", PANELS, ids=by_title)
def test_a_panel_says_what_it_shows(panel: Mapping[str, Any]) -> None:
    assert panel["title"]
    assert panel["description"].endswith((".", "!"))
    assert panel["fieldConfig"]["defaults"]["unit"] in UNITS
    assert panel["targets"]


@pytest.mark.parametrize("panel", PANELS, ids=by_title)
def test_a_panel_asks_the_chosen_data_source(panel: Mapping[str, Any]) -> None:
    for place in (panel, *panel["targets"]):
        assert place["datasource"] == {"type": "prometheus", "uid": "${datasource}"}
    letters = [target["refId"] for target in panel["targets"]]
    assert len(set(letters)) == len(letters)


@pytest.mark.parametrize("panel", PANELS, ids=by_title)
def test_a_panel_looks_at_the_chosen_monitors(panel: Mapping[str, Any]) -> None:
    for target in panel["targets"]:
        for selector in re.findall(r"\{[^{}]*\}", target["expr"]):
            assert 'job=~"$job"' in selector
        if "instance" not in target["expr"]:
            # Recording rules for groups have summed the instances.
            assert any(name in target["expr"] for name in RECORDED)


@pytest.mark.parametrize("panel", PANELS, ids=by_title)
def test_rates_fit_the_zoom(panel: Mapping[str, Any]) -> None:
    for target in panel["targets"]:
        assert set(re.findall(r"\[([^\]]*)\]", target["expr"])) <= {"$__rate_interval"}


@pytest.mark.parametrize("panel", PANELS, ids=by_title)
def test_colours_are_told_apart_by_the_colour_blind(panel: Mapping[str, Any]) -> None:
    def colors(node: Any) -> Iterator[str]:
        if isinstance(node, dict):
            for key, value in node.items():
                scheme = key == "mode" and str(value).startswith(("palette", "continuous"))
                if scheme or (key in ("color", "fixedColor") and isinstance(value, str)):
                    yield value
                else:
                    yield from colors(value)
        elif isinstance(node, list):
            for value in node:
                yield from colors(value)

    assert set(colors(panel["fieldConfig"])) <= COLORS | {"continuous-BlYlRd"}


def test_panels_do_not_overlap_and_fill_their_rows() -> None:
    taken: dict[tuple[int, int], str] = {}
    for panel in DASHBOARD["panels"]:
        at = panel["gridPos"]
        assert at["x"] >= 0
        assert at["x"] + at["w"] <= 24
        for x, y in itertools.product(range(at["x"], at["x"] + at["w"]), range(at["y"], at["y"] + at["h"])):
            assert (x, y) not in taken, f"{panel['title']} lies on {taken[x, y]}"
            taken[x, y] = panel["title"]
    assert len(taken) == 24 * (1 + max(y for _, y in taken)), "there are holes"


def test_titles_and_ids_are_unique() -> None:
    everything = DASHBOARD["panels"]
    for key in ("id", "title"):
        values = [panel[key] for panel in everything]
        assert len(set(values)) == len(values)


def test_the_dashboard_can_be_provisioned() -> None:
    assert DASHBOARD["uid"] == "fairness-monitor"
    assert DASHBOARD["id"] is None
    assert DASHBOARD["editable"] is False
    assert DASHBOARD["schemaVersion"] == 42
    rows = [panel["title"] for panel in DASHBOARD["panels"] if panel["type"] == "row"]
    assert rows == ["Gaps", "Groups", "Health"]


def test_variables() -> None:
    variables = {v["name"]: v for v in DASHBOARD["templating"]["list"]}
    assert list(variables) == ["datasource", "job", "instance", "model", "window", "metric", "grouping"]
    for name, variable in variables.items():
        assert variable["label"]
        assert variable["description"]
        if name != "datasource":
            assert variable["datasource"]["uid"] == "${datasource}"
            assert variable["refresh"] == 2, "values follow the time range"
            assert variable["allValue"] == ".+"
    used = set(re.findall(r"\$(\w+)", str(DASHBOARD["panels"])))
    assert used <= {*variables, "__rate_interval"}


def test_annotations() -> None:
    alerts = [a["expr"] for a in DASHBOARD["annotations"]["list"]]
    assert any("fairness_alert_firing" in a for a in alerts)
    assert any("ALERTS{" in a and 'alertstate="firing"' in a for a in alerts)


def test_variables_are_filled_in() -> None:
    filled = substitute('x{job=~"$job", model=~"${model}"}[$__rate_interval]', {"model": "loans"})
    assert filled == 'x{job=~".+", model=~"loans"}[1m]'


@pytest.mark.parametrize("name", sorted(ALERTS))
def test_alerts_say_what_to_do(name: str) -> None:
    alert = ALERTS[name]
    assert re.fullmatch(r"Fairness([A-Z][a-z]+)+", name)
    severity = alert["labels"]["severity"]
    assert severity in ("critical", "warning", "info") or name == "FairnessGapBreached"
    notes = alert["annotations"]
    assert notes["summary"].endswith(".")
    assert notes["description"].endswith(".")
    assert notes["runbook_url"] == f"https://fairness-monitor.example/runbook#{name.lower()}"
    assert f"\n### {name}\n" in RUNBOOK.read_text()
    for title in re.findall(r'"([^"]+)"', notes["description"]):
        assert title in {panel["title"] for panel in PANELS}


def test_recording_rules_are_named_by_level_metric_and_operations() -> None:
    for name in RECORDED:
        assert re.fullmatch(r"[a-z_]+:fairness_[a-z_]+:[a-z0-9_]+", name)
