"""What the shipped dashboard and rules ask Prometheus, as queries that can be run."""

from __future__ import annotations

import json
import re
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

from ruamel.yaml import YAML

ROOT = Path(__file__).parents[1]
DASHBOARD = ROOT / "dashboards" / "fairness.json"
RULES = ROOT / "deploy" / "prometheus" / "rules.yml"

_BUILT_IN = {"__rate_interval": "1m", "__interval": "15s", "__range": "1h"}
_VARIABLE = re.compile(r"\$(?:\{(?P<braced>\w+)(?::\w+)?\}|(?P<plain>\w+))")
_LABEL_VALUES = re.compile(r"label_values\((?P<selector>.+), *(?P<label>\w+)\)")


def load_dashboard() -> dict[str, Any]:
    """The dashboard as it is provisioned."""
    dashboard: dict[str, Any] = json.loads(DASHBOARD.read_text())
    return dashboard


def load_rules() -> list[dict[str, Any]]:
    """The rules of all groups, recording rules and alerts."""
    groups = YAML(typ="safe").load(RULES)["groups"]
    return [rule for group in groups for rule in group["rules"]]


def panels(dashboard: Mapping[str, Any]) -> Iterator[dict[str, Any]]:
    """The panels that show something; those of collapsed rows too."""
    for panel in dashboard["panels"]:
        if panel["type"] == "row":
            yield from panel.get("panels", [])
        else:
            yield panel


def substitute(query: str, values: Mapping[str, str] | None = None) -> str:
    """A query with its variables filled in; a variable without a value chooses everything.

    >>> substitute('rate(x_total{model=~"${model:regex}"}[$__rate_interval])', {"model": "loans"})
    'rate(x_total{model=~"loans"}[1m])'
    """
    known = {**_BUILT_IN, **(values or {})}
    return _VARIABLE.sub(lambda m: known.get(m["braced"] or m["plain"], ".+"), query)


def queries(
    dashboard: Mapping[str, Any], values: Mapping[str, str] | None = None
) -> Iterator[tuple[str, str]]:
    """Title of the panel and PromQL of each of its queries, with variables filled in.

    Annotations follow as ``annotation NAME``, variables as ``variable NAME``: the last as the series
    whose label they list.
    """
    for panel in panels(dashboard):
        for target in panel["targets"]:
            yield panel["title"], substitute(target["expr"], values)
    for annotation in dashboard["annotations"]["list"]:
        yield f"annotation {annotation['name']}", substitute(annotation["expr"], values)
    for variable in dashboard["templating"]["list"]:
        if variable["type"] == "query":
            asked = _LABEL_VALUES.fullmatch(variable["query"]["query"])
            assert asked, f"variable {variable['name']} does not ask for values of a label"
            query = f"count by ({asked['label']}) ({asked['selector']})"
            yield f"variable {variable['name']}", substitute(query, values)
