"""A guess at the task of the model, and at the columns that hold the task's fields."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from math import floor, log10

from monitor.inspection.columns import Column, nearly_all
from monitor.inspection.words import (
    DECISION,
    ESTIMATE,
    HORIZON,
    HYPOTHESIS,
    ID,
    OUTCOME,
    REFERENCE,
    SCORE,
    SENSITIVE,
    WORD_COUNTS,
    YES,
)

Options = Mapping[str, str | float]

_RANGE_NOTE = "the range is a guess: events outside are rejected"
_YES_NOTE = "1 if yes was right"


@dataclass(frozen=True, slots=True)
class Use:
    """A column as a field of the event: the options of its path, and a note for the reader."""

    column: Column
    options: Options = field(default_factory=dict)
    note: str = ""


@dataclass(slots=True)
class Guess:
    """What the proposal says; ``task`` as it is written there.

    ``certainty`` ranks ways of taking records apart.
    """

    certainty: int = 0
    task: str = "binary"
    task_note: str = "no field of a task was recognised: name its fields below"
    uses: dict[str, Use] = field(default_factory=dict)
    ids: list[Column] = field(default_factory=list)
    attributes: dict[str, Column] = field(default_factory=dict)
    bins: dict[str, list[float]] = field(default_factory=dict)

    @property
    def used(self) -> list[Column]:
        """The columns of the task's fields, the times and the id."""
        return [*(u.column for u in self.uses.values()), *self.ids]


def guess_task(columns: Sequence[Column]) -> Guess:
    """Guess from the columns of one way of taking records apart: the surest task that they allow."""
    counts = {c.name: c for c in columns if c.name in WORD_COUNTS and c.only("integer")}
    if len(counts) == len(WORD_COUNTS):
        return Guess(5, "{type: speech, input: counts}", "", {name: Use(c) for name, c in counts.items()})
    hypothesis = _best(columns, _is_prose, HYPOTHESIS)
    reference = _best(columns, _is_prose, REFERENCE, hypothesis)
    if hypothesis and reference:
        return Guess(5, "speech", "", {"hypothesis": Use(hypothesis), "reference": Use(reference)})
    decision = _best(columns, _is_flag, DECISION)
    outcome = _best(columns, lambda c: _is_flag(c) and not DECISION & set(c.words), OUTCOME)
    score = _best(columns, _is_number, SCORE) or _best(columns, _is_number, DECISION)
    estimate = _best(columns, _is_number, ESTIMATE)
    actual = _best(columns, _is_number, OUTCOME, estimate)
    if estimate and actual and not (decision or outcome):
        task = f"{{type: regression, range: {_range([*estimate.numbers, *actual.numbers])}}}"
        return Guess(4, task, _RANGE_NOTE, {"prediction": Use(estimate), "outcome": Use(actual)})
    if decision or (outcome and score):
        return _binary(decision, outcome, score)
    if outcome:
        return Guess(2, "binary", "no decision was recognised", {"outcome": _flag(outcome, _YES_NOTE)})
    numbers = [c for c in columns if _is_number(c) and not {*ID, *SENSITIVE} & set(c.words)]
    value = score or estimate or (numbers[0] if len(numbers) == 1 else None)
    if value is None:
        return Guess()
    return Guess(1, f"{{type: score, range: {_range(value.numbers)}}}", _RANGE_NOTE, {"value": Use(value)})


def _binary(decision: Column | None, outcome: Column | None, score: Column | None) -> Guess:
    guess = Guess(3 + (decision is not None) + (outcome is not None), "binary", "")
    if decision:
        guess.uses["decision"] = _flag(decision, "1 is yes, selected, positive")
    elif score:
        guess.uses["decision"] = _thresholded(score)
    if score and min(score.numbers) >= 0 and max(score.numbers) <= 1:
        guess.task = "{type: binary, score: {range: [0, 1]}}"
        guess.uses["score"] = Use(score)
    if outcome:
        guess.uses["outcome"] = _flag(outcome, _YES_NOTE)
    return guess


def _best(
    columns: Iterable[Column], fits: Callable[[Column], bool], hints: Iterable[str], *without: Column | None
) -> Column | None:
    """Find the column that fits with the first of the hints; ties: a horizon, a short name."""
    ranks = {word: i if isinstance(hints, Sequence) else 0 for i, word in enumerate(hints)}
    return min(
        (c for c in columns if c not in without and fits(c) and ranks.keys() & set(c.words)),
        key=lambda c: (min(ranks.get(w, 99) for w in c.words), not HORIZON & set(c.words), len(c.words)),
        default=None,
    )


def _is_flag(column: Column) -> bool:
    return _flag_options(column) is not None


def _is_prose(column: Column) -> bool:
    with_spaces = sum(" " in str(v).strip() for v in column.values)
    return column.only("text") and 2 * with_spaces >= len(column.values)


def _is_number(column: Column) -> bool:
    return column.only("integer", "number") and not _is_flag(column) and not column.time_unit


def _flag(column: Column, note: str) -> Use:
    return Use(column, _flag_options(column) or {}, note)


def _flag_options(column: Column) -> Options | None:
    """Options that read the column as a flag, or None when it is none."""
    if nearly_all(sum(column.distinct[v] for v in ("true", "false", 0, 1)), len(column.values)):
        if column.only("boolean", "integer"):
            return {}
        return {"at_least": 1} if column.only("integer", "number") else None
    yes = [v for v in column.distinct if isinstance(v, str) and v.strip().lower() in YES]
    return {"equals": yes[0]} if len(column.distinct) == 2 and len(yes) == 1 else None


def _thresholded(score: Column) -> Use:
    """Read a decision from a score that reaches the middle of its range."""
    low, high = min(score.numbers), max(score.numbers)
    if high <= 1:
        low, high = _span(score.numbers)
    middle = (low + high) // 2 if score.only("integer") else (low + high) / 2
    note = f"the middle of {low:.15g} to {high:.15g}: set your threshold"
    return Use(score, {"at_least": middle}, note)


def _range(numbers: Sequence[float]) -> str:
    low, high = _span(numbers)
    return f"[{low:.15g}, {high:.15g}]"


def _span(numbers: Sequence[float]) -> tuple[float, float]:
    """Find a round range that holds the numbers; beyond 100 with room for twice as much."""
    low, high = min(numbers), max(numbers)
    size = max(-low, high)
    end: float = next((n for n in (1, 10, 100) if size <= n), 0)
    if not end:
        unit = 10.0 ** floor(log10(2 * size))
        end = next(n * unit for n in (1, 2, 5, 10) if n * unit >= 2 * size)
    return (0 if low >= 0 else -end), end
