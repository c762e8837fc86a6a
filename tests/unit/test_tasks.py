"""What every task promises beyond the numbers: options, tables, records."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
from pydantic import TypeAdapter, ValidationError

from monitor.tasks import TASKS, TaskConfig, build
from monitor.tasks.base import COMMON_METRICS, Metric, Statistic, Task, common_statistics, metrics_table

CONFIG: TypeAdapter[Any] = TypeAdapter(TaskConfig)
CONFIGURED: dict[str, dict[str, Any]] = {
    "binary": {"type": "binary"},
    "binary with scores": {"type": "binary", "score": {"range": [0, 1], "bins": 10}},
    "regression": {"type": "regression", "range": [0, 10]},
    "regression with tolerance": {"type": "regression", "range": [-1.5, 10], "tolerance": 1},
    "speech": {"type": "speech"},
    "speech without characters": {"type": "speech", "characters": False},
    "speech counts": {"type": "speech", "input": "counts"},
    "score": {"type": "score", "range": [0, 1]},
    "score of outcomes": {"type": "score", "range": [0, 1], "tail": {"below": 0.2}, "when": "outcome"},
}
WEIGHTS = [None, 2.5]
N = 256


def made(name: str, weight_bound: float | None) -> Task:
    return build(CONFIG.validate_python(CONFIGURED[name]), weight_bound=weight_bound)


def events(task: Task, weight_bound: float | None) -> tuple[np.ndarray, np.ndarray]:
    """Records of N seeded events that match the fields of the task."""
    rng = np.random.default_rng(1)
    columns: dict[str, dict[str, Any]] = {"prediction": {}, "outcome": {}}
    texts = [" ".join(rng.choice(["a", "b", "c"], 4)) for _ in range(N)]
    for f in task.fields:
        columns[f.block][f.name] = {
            "flag": rng.integers(0, 2, N).astype(np.int8),
            "number": np.where(rng.random(N) < 0.2, f.high, rng.uniform(f.low, f.high, N)),
            "count": rng.integers(0, 9, N),
            "text": texts,
        }[f.kind]
    weights = None if weight_bound is None else rng.uniform(0.1, weight_bound, N)
    if columns["prediction"] or weights is not None:
        predictions = task.prediction_records(columns["prediction"], weights)
    else:
        predictions = np.zeros(N, task.prediction_dtype)
    if not columns["outcome"]:
        return predictions, np.zeros(N, task.outcome_dtype)
    outcomes = task.outcome_records(columns["outcome"])
    return predictions, task.compare_texts(outcomes, texts[::-1], texts) if task.texts else outcomes


@pytest.mark.parametrize("weight_bound", WEIGHTS)
@pytest.mark.parametrize("name", CONFIGURED)
class TestEveryTask:
    def test_common_statistics_and_metrics_come_first(self, name: str, weight_bound: float | None) -> None:
        task = made(name, weight_bound)
        assert task.statistics[:4] == common_statistics(2592000.0)
        assert set(task.metrics) > {metric.name for metric in COMMON_METRICS}
        assert TASKS[task.name] is type(task)

    def test_the_table_of_metrics_is_complete(self, name: str, weight_bound: float | None) -> None:
        task = made(name, weight_bound)
        counts = {s.name for s in task.statistics if s.scale == 1 and not s.name.endswith("_weight")}
        for key, metric in task.metrics.items():
            assert key == metric.name
            assert metric.definition
            assert metric.undefined
            assert metric.unit
            assert set(metric.support) <= counts, "support is counted, never weighted"

    def test_every_statistic_is_fed_by_events(self, name: str, weight_bound: float | None) -> None:
        task = made(name, weight_bound)
        predictions, outcomes = events(task, weight_bound)
        scatters = [*task.prediction_sums(predictions), *task.outcome_sums(predictions, outcomes)]
        fed = {int(i) for s in scatters for i in np.unique(s.statistic)}
        assert fed <= set(range(4, len(task.statistics)))
        missing = [s.name for i, s in enumerate(task.statistics) if i >= 4 and i not in fed]
        assert missing == []

    def test_sums_do_not_depend_on_batches(self, name: str, weight_bound: float | None) -> None:
        task = made(name, weight_bound)
        predictions, outcomes = events(task, weight_bound)

        def table(parts: list[slice]) -> list[int]:
            sums = np.zeros(len(task.statistics), np.int64)
            for part in parts:
                p, o = predictions[part], outcomes[part]
                for scatter in (*task.prediction_sums(p), *task.outcome_sums(p, o)):
                    np.add.at(sums, np.broadcast_to(scatter.statistic, p.shape), scatter.value)
            return sums.tolist()

        assert table([slice(None)]) == table([slice(i, i + 1) for i in range(N)])
        assert table([slice(0, 0)]) == [0] * len(task.statistics)

    def test_records_are_compact(self, name: str, weight_bound: float | None) -> None:
        task = made(name, weight_bound)
        assert ("weight" in (task.prediction_dtype.names or ())) == (weight_bound is not None)
        assert task.prediction_dtype.itemsize <= 12
        for dtype in (task.prediction_dtype, task.outcome_dtype):
            assert all(dtype[field].kind == "i" for field in dtype.names or ())

    def test_weights_are_given_exactly_when_bounded(self, name: str, weight_bound: float | None) -> None:
        task = made(name, weight_bound)
        given = np.ones(1) if weight_bound is None else None
        with pytest.raises(ValueError, match=r"weight|no column"):
            task.prediction_records({}, given)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"type": "binry"}, "binary"),
        ({"range": [0, 1]}, "type"),
        ({"type": "binary", "bins": 3}, "Extra inputs"),
        ({"type": "binary", "score": {"range": [0, 1], "bins": 1}}, "greater than or equal to 2"),
        ({"type": "regression"}, "Field required"),
        ({"type": "regression", "range": [1, 1]}, "low < high"),
        ({"type": "regression", "range": ["0", 1]}, "valid number"),
        ({"type": "regression", "range": [0, float("inf")]}, "finite"),
        ({"type": "regression", "range": [0, 1], "tolerance": 0}, "greater than 0"),
        ({"type": "score", "range": [0, 1], "tail": {}}, "one of the two"),
        ({"type": "score", "range": [0, 1], "tail": {"above": 0.1, "below": 0.2}}, "one of the two"),
        ({"type": "score", "range": [0, 1], "tail": {"above": 7}}, "outside the range"),
        ({"type": "speech", "input": "audio"}, "texts"),
        ({"type": "speech", "normalise": {"replace": [["(", ""]]}}, "not a valid replacement"),
        ({"type": "speech", "normalise": {"replace": [["a", r"\1"]]}}, "not a valid replacement"),
    ],
)
def test_bad_options_say_what_is_wrong(options: dict[str, Any], message: str) -> None:
    with pytest.raises(ValidationError, match=message):
        CONFIG.validate_python(options)


@pytest.mark.parametrize("name", CONFIGURED)
def test_options_survive_json(name: str) -> None:
    options = CONFIG.validate_python(CONFIGURED[name])
    assert CONFIG.validate_json(options.model_dump_json()) == options
    with pytest.raises(ValidationError):
        options.type = "other"


def test_plain_binary_is_one_scatter() -> None:
    task = made("binary", None)
    predictions, outcomes = events(task, None)
    (scatter,) = task.outcome_sums(predictions, outcomes)
    assert isinstance(scatter.value, int)
    assert scatter.value == 1


def test_missing_scores_count_nowhere() -> None:
    task = made("binary with scores", None)
    columns = {"decision": np.array([1, 0], np.int8), "score": np.array([np.nan, 0.5])}
    predictions = task.prediction_records(columns, None)
    outcomes = task.outcome_records({"outcome": np.array([1, 1], np.int8)})
    sums = np.zeros(len(task.statistics), np.int64)
    for scatter in (*task.prediction_sums(predictions), *task.outcome_sums(predictions, outcomes)):
        np.add.at(sums, np.broadcast_to(scatter.statistic, (2,)), scatter.value)
    found = dict(zip((s.name for s in task.statistics), sums.tolist(), strict=True))
    assert (found["tp"], found["fn"], found["scored"], found["scored_positives"]) == (1, 1, 1, 1)
    assert sum(found[f"positives_{k}"] for k in range(10)) == 1


def test_digests_tell_texts_apart() -> None:
    task = made("speech", None)
    records = task.prediction_records({"hypothesis": ["a", "b", "a", "\ud800", None]}, None)
    digests = records["digest"].tolist()
    assert digests[0] == digests[2] != digests[1]
    assert min(digests[:4]) > 0
    assert digests[4] == 0


def test_tasks_without_texts_do_not_compare_them() -> None:
    for name in ("binary", "speech counts"):
        task = made(name, None)
        assert not task.texts
        with pytest.raises(TypeError, match="no texts"):
            task.compare_texts(np.zeros(1, task.outcome_dtype), ["a"], ["a"])


def test_weight_bound_must_be_positive() -> None:
    for bound in (0.0, -1.0, float("nan"), float("inf")):
        with pytest.raises(ValueError, match="positive and finite"):
            made("binary", bound)


def metric(name: str, aliases: tuple[str, ...] = (), **form: int) -> Metric:
    return Metric(name, "x", "neutral", "never", {"a": 1}, form, {"a": 1}, aliases=aliases)


@pytest.mark.parametrize(
    ("metrics", "message"),
    [
        ([metric("m", a=1), metric("m", a=1)], "two metrics are called m"),
        ([metric("m", ("k",), a=1), metric("n", ("k",), a=1)], "two metrics are called k"),
        ([metric("m", c=1)], "unknown statistics: c"),
        ([metric("m", a=1, b=1)], "different scales"),
    ],
)
def test_a_table_that_breaks_a_promise_is_refused(metrics: list[Metric], message: str) -> None:
    statistics = [Statistic("a", "outcome", "x"), Statistic("b", "outcome", "x", 0.5)]
    with pytest.raises(ValueError, match=message):
        metrics_table(statistics, metrics)
    with pytest.raises(ValueError, match="same name"):
        metrics_table([statistics[0], statistics[0]], [])
