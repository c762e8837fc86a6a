"""Gaps that have a name of their own in the field, and what each name stands for.

Toolkits disagree about signs. Here a gap to another group is *group - reference* (group / reference),
and ``sign = -1`` marks a name whose home defines it as reference - group; its value is multiplied by
the sign, so that each name gives the number its home gives. SageMaker Clarify calls the reference
group *facet a* and the other one *facet d*.
"""

from __future__ import annotations

from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Literal

from monitor.errors import Findings, did_you_mean

Comparison = Literal["between", "overall", "rest", "reference"]
Kind = Literal["difference", "ratio"]
Direction = Literal["above", "below", "both"]

FAIRLEARN = "fairlearn"
CLARIFY = "Amazon SageMaker Clarify (smclarify)"
TRUSTYAI = "TrustyAI"
CHOULDECHOVA = "Chouldechova (2017), Fair prediction with disparate impact"


@dataclass(frozen=True, slots=True)
class NamedGap:
    """A gap with a name of its own.

    ``metrics`` are the metrics it compares; of several, the worst gap counts (the largest difference,
    the ratio furthest from 1). A ``conditional`` gap is an average over strata and cannot be taken from the
    metrics of two groups.
    """

    name: str
    aliases: tuple[str, ...]
    metrics: tuple[str, ...]
    comparison: Comparison
    kind: Kind
    sign: int
    definition: str
    source: str
    conditional: bool = False


@dataclass(frozen=True, slots=True)
class GapSpec:
    """A gap with everything settled: which metrics, between which groups, compared how.

    ``groups`` are the attributes whose values make the groups; ``reference`` gives their values for
    the reference group. ``name`` is a metric or a named gap; see :class:`NamedGap` for ``sign``.
    ``strata`` are the attributes that a conditional gap is averaged over.
    """

    name: str
    metrics: tuple[str, ...]
    groups: tuple[str, ...]
    comparison: Comparison
    kind: Kind
    reference: Mapping[str, str] | None = None
    sign: int = 1
    strata: tuple[str, ...] = ()


def _between(stem: str, metrics: tuple[str, ...], source: str, what: str, *aliases: str) -> list[NamedGap]:
    worst = "the larger of the differences" if len(metrics) > 1 else "largest - smallest"
    least = "the smaller of the ratios" if len(metrics) > 1 else "smallest / largest"
    return [
        NamedGap(
            f"{stem}_{kind}",
            tuple(f"{alias}_{kind}" for alias in aliases),
            metrics,
            "between",
            kind,
            1,
            f"{how} {what} of any two groups; {equal} when they are equal, no sign",
            source,
        )
        for kind, how, equal in (("difference", worst, 0), ("ratio", least, 1))
        for kind in (_kind(kind),)
    ]


def _kind(text: str) -> Kind:
    return "ratio" if text == "ratio" else "difference"


def _clarify(
    name: str, metric: str, sign: int, definition: str, *aliases: str, kind: Kind = "difference"
) -> NamedGap:
    return NamedGap(name, aliases, (metric,), "reference", kind, sign, definition, CLARIFY)


_POSITIVE_A = "positive when the reference group a has the higher rate (reference - group)"
_POSITIVE_D = "positive when group d has the higher rate (group - reference)"

_ALL = (
    *_between(
        "demographic_parity",
        ("selection_rate",),
        FAIRLEARN,
        "selection rate",
        "statistical_parity",
    ),
    *_between(
        "equal_opportunity",
        ("true_positive_rate",),
        FAIRLEARN,
        "true positive rate",
        "true_positive_rate_parity",
    ),
    *_between(
        "equalized_odds",
        ("true_positive_rate", "false_positive_rate"),
        FAIRLEARN,
        "in true positive rate and in false positive rate (agg='worst_case')",
        "equalised_odds",
    ),
    *_between(
        "predictive_parity",
        ("precision",),
        CHOULDECHOVA,
        "precision",
        "outcome_test",
    ),
    _clarify(
        "DPPL",
        "selection_rate",
        -1,
        f"difference in positive proportions in predicted labels, n̂a(1)/na - n̂d(1)/nd: {_POSITIVE_A}",
    ),
    _clarify(
        "DI",
        "selection_rate",
        1,
        "disparate impact, (n̂d(1)/nd) / (n̂a(1)/na): below 1 when group d is selected less often",
        "disparate_impact",
        kind="ratio",
    ),
    _clarify(
        "DCAcc",
        "conditional_acceptance",
        -1,
        "difference in conditional acceptance, na(1)/n̂a(1) - nd(1)/n̂d(1), observed over predicted "
        f"positives: {_POSITIVE_A}",
        "DCA",
    ),
    _clarify(
        "DCR",
        "conditional_rejection",
        1,
        "difference in conditional rejection, nd(0)/n̂d(0) - na(0)/n̂a(0), observed over predicted "
        f"negatives: {_POSITIVE_D}",
    ),
    _clarify(
        "RD",
        "true_positive_rate",
        -1,
        f"recall difference, TPa/(TPa + FNa) - TPd/(TPd + FNd): {_POSITIVE_A}",
    ),
    _clarify(
        "DAR",
        "precision",
        -1,
        f"difference in acceptance rates, TPa/n̂a(1) - TPd/n̂d(1): {_POSITIVE_A}",
    ),
    _clarify(
        "SD",
        "true_negative_rate",
        1,
        f"specificity difference, TNd/(TNd + FPd) - TNa/(TNa + FPa): {_POSITIVE_D}",
    ),
    _clarify(
        "DRR",
        "negative_predictive_value",
        1,
        f"difference in rejection rates, TNd/n̂d(0) - TNa/n̂a(0): {_POSITIVE_D}",
    ),
    _clarify("AD", "accuracy", -1, f"accuracy difference, ACCa - ACCd: {_POSITIVE_A}"),
    _clarify(
        "TE",
        "treatment_equality",
        1,
        f"treatment equality, FNd/FPd - FNa/FPa: {_POSITIVE_D}",
    ),
    NamedGap(
        "CDDPL",
        (),
        ("selection_rate",),
        "rest",
        "difference",
        1,
        "conditional demographic disparity in predicted labels: mean over strata, weighted by their size, of "
        "(share of group d among the rejected - its share among the selected); positive when group d is "
        "rejected more often than selected",
        CLARIFY,
        conditional=True,
    ),
    NamedGap(
        "SPD",
        (),
        ("selection_rate",),
        "reference",
        "difference",
        1,
        f"statistical parity difference, P(ŷ=1 | group) - P(ŷ=1 | reference): {_POSITIVE_D}",
        TRUSTYAI,
    ),
    NamedGap(
        "DIR",
        ("disparate_impact_ratio",),
        ("selection_rate",),
        "reference",
        "ratio",
        1,
        "disparate impact ratio, P(ŷ=1 | group) / P(ŷ=1 | reference): below 1 when selected less often",
        TRUSTYAI,
    ),
)

NAMED_GAPS: dict[str, NamedGap] = {gap.name: gap for gap in _ALL}
"""Every named gap by its name. All of them are gaps of the task ``binary``."""

METRIC_ALIASES = {"GE": "generalized_entropy"}
"""Names that Clarify lists among its gaps but which are metrics: one value for all events together."""

_BY_ANY_NAME = {name: gap for gap in _ALL for name in (gap.name, *gap.aliases)}


def find_metric(name: str, metrics: Mapping[str, Sequence[str]]) -> str | None:
    """Canonical name of a metric, or None; ``metrics`` maps each canonical name to its aliases."""
    if name in metrics:
        return name
    for canonical, aliases in metrics.items():
        if name in aliases:
            return canonical
    alias = METRIC_ALIASES.get(name)
    return alias if alias in metrics else None


def find_gap(name: str, kind: Kind | None = None) -> NamedGap | None:
    """Named gap of this name or alias, or None.

    A stem such as ``equalized_odds`` means its difference, or its ratio when ``kind`` says so.

    >>> find_gap("equalized_odds", "ratio").name
    'equalized_odds_ratio'
    """
    return _BY_ANY_NAME.get(name) or _BY_ANY_NAME.get(f"{name}_{kind or 'difference'}")


def gap_spec(
    name: str,
    groups: tuple[str, ...],
    comparison: Comparison,
    kind: Kind,
    reference: Mapping[str, str] | None,
    strata: tuple[str, ...] = (),
) -> GapSpec:
    """Make the gap of a canonical metric, or of a named gap with the metrics and the sign it stands for."""
    gap = NAMED_GAPS.get(name)
    metrics, sign = (gap.metrics, gap.sign) if gap else ((name,), 1)
    return GapSpec(name, metrics, groups, comparison, kind, reference, sign, strata)


@dataclass(frozen=True, slots=True)
class Choices:
    """What a gap can be about: metrics with their aliases, groupings; None where they are not known.

    ``attributes`` are those of the cells, which strata can be made of.
    """

    metrics: Mapping[str, Sequence[str]] | None
    groupings: tuple[tuple[str, ...], ...] | None
    attributes: tuple[str, ...] = ()

    def names(self) -> list[str]:
        """Every name that can stand for a metric or gap."""
        metrics = self.metrics or {}
        gaps = (g for g in _ALL if all(m in metrics for m in g.metrics))
        return [*metrics, *(a for aliases in metrics.values() for a in aliases), *(g.name for g in gaps)]


def settle(
    wanted: GapSpec, choices: Choices, findings: Findings, at: int, chosen: Collection[str] = ()
) -> GapSpec:
    """Resolve the names of a gap and check that its parts fit together.

    Parameters
    ----------
    wanted
        The gap as written: ``name`` may be an alias, ``groups`` in any order.
    choices
        What there is to choose from.
    findings
        Receives what is wrong, below position ``at``.
    chosen
        Which of ``comparison`` and ``kind`` were written; the others follow a named gap.

    Returns
    -------
    GapSpec
        The gap with canonical names; as written where something is wrong.
    """
    spec = _settle_name(wanted, choices, findings, at, chosen)
    if choices.groupings is not None:
        same = [g for g in choices.groupings if set(g) == set(spec.groups)]
        if same:
            spec = replace(spec, groups=same[0])
        else:
            offered = ", ".join(_written(g) for g in choices.groupings)
            findings.add(
                (at, "groups"),
                f"{_written(spec.groups)} is not one of the model's groups",
                f"use one of {offered}, or add it to the model's groups",
                "../groups",
            )
    if spec.comparison == "reference":
        if spec.reference is None:
            values = ", ".join(f"{a}: <value>" for a in spec.groups)
            findings.add(
                (at, "reference"),
                f"{spec.name} compares with a reference group, and none is given",
                f"add reference: {{{values}}}",
                "./comparison",
            )
        elif set(spec.reference) != set(spec.groups):
            findings.add(
                (at, "reference"),
                f"the reference group names {_written(tuple(spec.reference))}, the gap is between groups of "
                f"{_written(spec.groups)}",
                "give one value for each attribute of groups",
                "./groups",
            )
    if spec.comparison != "reference" and spec.reference is not None:
        findings.add(
            (at, "reference"),
            f"a reference group is given, but the comparison is {spec.comparison!r}",
            "write comparison: reference, or take the reference group out",
            "./comparison",
            "./metric",
        )
    _check_strata(spec, choices, findings, at)
    return spec


def _check_strata(spec: GapSpec, choices: Choices, findings: Findings, at: int) -> None:
    gap = NAMED_GAPS.get(spec.name)
    if spec.strata and not (gap and gap.conditional):
        message = f"{spec.name} is not an average over strata"
        findings.add((at, "strata"), message, "take strata out, or use CDDPL", "./metric")
    for attribute in spec.strata:
        if attribute in spec.groups:
            findings.add((at, "strata"), f"{attribute!r} makes the groups already", "use another attribute")
        elif choices.groupings is not None and attribute not in choices.attributes:
            message = f"{attribute!r} is not an attribute of the model"
            fix = did_you_mean(attribute, choices.attributes)
            findings.add(
                (at, "strata"), message, f"{fix.rstrip('?')}, or add it under attributes", "../attributes"
            )


def _settle_name(
    wanted: GapSpec, choices: Choices, findings: Findings, at: int, chosen: Collection[str]
) -> GapSpec:
    if choices.metrics is None:
        return wanted
    metric = find_metric(wanted.name, choices.metrics)
    if metric is not None:
        return replace(wanted, name=metric, metrics=(metric,))
    gap = find_gap(wanted.name, wanted.kind if "kind" in chosen else None)
    missing = [m for m in gap.metrics if m not in choices.metrics] if gap else []
    if gap is None or missing:
        message = f"{wanted.name!r} is neither a metric of this task nor a named gap"
        if gap:
            message = f"{gap.name} needs {', '.join(missing)}, which this task does not have"
        findings.add((at, "metric"), message, did_you_mean(wanted.name, choices.names()), "../task")
        return wanted
    if gap.conditional and not wanted.strata:
        findings.add(
            (at, "metric"),
            f"{gap.name} is an average over strata, and none are given",
            "add strata: with an attribute, or use DPPL for the whole population",
        )
    if "kind" in chosen and wanted.kind != gap.kind:
        findings.add(
            (at, "kind"),
            f"{gap.name} is a {gap.kind}, not a {wanted.kind}",
            f"take kind out, or write {gap.kind}",
        )
    comparison = wanted.comparison if "comparison" in chosen else gap.comparison
    if gap.comparison == "reference" and comparison not in ("reference", "rest"):
        findings.add(
            (at, "comparison"),
            f"{gap.name} compares with a reference group, not {comparison!r}",
            "write comparison: reference, or comparison: rest to compare with everyone else",
        )
    return replace(
        wanted, name=gap.name, metrics=gap.metrics, kind=gap.kind, comparison=comparison, sign=gap.sign
    )


def _written(groups: tuple[str, ...]) -> str:
    return groups[0] if len(groups) == 1 else f"[{', '.join(groups)}]"


def check_threshold(
    spec: GapSpec, tolerance: float, direction: Direction, findings: Findings, at: int
) -> None:
    """Note a tolerance that makes no sense for the gap, and a direction in which it cannot move."""
    if spec.kind == "ratio" and not 0 < tolerance <= 1:
        message = f"the tolerance of a ratio is above 0 and at most 1, not {tolerance:g}"
        findings.add((at, "tolerance"), message, "write 0.8 for the four-fifths rule", "./kind", "./metric")
    never = "above" if spec.kind == "ratio" else "below"
    if spec.comparison == "between" and direction == never:
        message = f"a {spec.kind} between groups is never {never} its tolerance, so the rule cannot fire"
        findings.add((at, "direction"), message, "take direction out", "./kind", "./comparison", "./metric")


def gap_title(spec: GapSpec, *details: str) -> str:
    """Name for a rule made of its parts, such as ``selection_rate_difference_between_sex_1h_warning``."""
    kind = [] if spec.name.endswith(f"_{spec.kind}") else [spec.kind]
    against = ["between"] if spec.comparison == "between" else ["to", spec.comparison]
    if spec.reference:
        against = ["to", *(spec.reference[a] for a in spec.groups if a in spec.reference)]
    return "_".join([spec.name, *kind, *against, *spec.groups, *details])


def unique_names(given: Sequence[str], made: Sequence[str], findings: Findings) -> list[str]:
    """Take the given names, and where there is none the made one, numbered where it is taken."""
    names: list[str] = []
    for i, (name, own) in enumerate(zip(given, made, strict=True)):
        if name and name in names:
            findings.add((i, "name"), f"two rules are called {name!r}", "give each rule a name of its own")
        taken, number = {*names, *given}, 2
        candidate = name or own
        while not name and candidate in taken:
            candidate, number = f"{own}_{number}", number + 1
        names.append(candidate)
    return names
