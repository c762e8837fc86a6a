"""The event contract: schemas, and what the strict models accept."""

from __future__ import annotations

from typing import Any

import pytest

from monitor.events import Contract, validate, validate_attributes
from monitor.names import Reason
from monitor.records import Rejected
from monitor.tasks import build
from monitor.tasks.base import Task
from monitor.tasks.binary import BinaryOptions, BinaryScoreOptions
from monitor.tasks.regression import RegressionOptions
from monitor.tasks.score import ScoreOptions
from monitor.tasks.speech import SpeechOptions

TIME = "2024-05-01T12:00:00Z"
COUNTS = {"substitutions": 1, "deletions": 0, "insertions": 0, "words": 9}
SAMPLES: dict[str, tuple[Task, dict[str, Any], dict[str, Any]]] = {
    "binary": (build(BinaryOptions()), {"decision": 1}, {"outcome": False}),
    "binary with a score": (
        build(BinaryOptions(score=BinaryScoreOptions(range=(0, 1)))),
        {"decision": True, "score": 0.5},
        {"outcome": 0},
    ),
    "regression": (build(RegressionOptions(range=(0, 9))), {"prediction": 1}, {"outcome": 8.5}),
    "speech texts": (build(SpeechOptions()), {"hypothesis": ""}, {"reference": "a word"}),
    "speech counts": (build(SpeechOptions(input="counts")), {"attributes": {"accent": None}}, COUNTS),
    "score of predictions": (build(ScoreOptions(range=(0, 1))), {"value": 0.5}, {}),
    "score of outcomes": (
        build(ScoreOptions(range=(0, 1), when="outcome")), {"attributes": {}}, {"value": 1}
    ),
}  # fmt: skip
COMMON = {
    "id": "a",
    "time": TIME,
    "model": "m",
    "model_version": "v1",
    "attributes": {"sex": "f", "age": 31, "score": 0.5, "new": True, "ward": None},
}
each_task = pytest.mark.parametrize(("task", "predicted", "known"), SAMPLES.values(), ids=SAMPLES)


def events_of(
    task: Task, predicted: dict[str, Any], known: dict[str, Any]
) -> list[tuple[str, type[Any], dict[str, Any]]]:
    """A sample event of each kind that the task has, with the model that judges it."""
    contract = Contract.of(task.fields, 10.0)
    found: list[tuple[str, type[Any], dict[str, Any]]] = [
        ("prediction", contract.prediction, {**COMMON, **predicted, "weight": 2})
    ]
    if contract.outcome is not None and contract.joined is not None:
        found += [
            ("outcome", contract.outcome, {"id": 5, "outcome_time": 1_714_564_800_000, **known}),
            ("joined", contract.joined, {**COMMON, **predicted, **known, "sampling_fraction": 1}),
        ]
    return found


# a small reader of JSON Schema, enough for the schemas that pydantic makes -----------------------


def fits(schema: dict[str, Any], value: Any) -> bool:
    if "anyOf" in schema:
        return any(fits(option, value) for option in schema["anyOf"])
    match schema.get("type"):
        case None:
            return True
        case "null":
            return value is None
        case "boolean":
            return isinstance(value, bool)
        case "string":
            return isinstance(value, str) and (
                schema.get("minLength", 0) <= len(value) <= schema.get("maxLength", len(value))
            )
        case "object":
            return isinstance(value, dict) and fits_object(schema, value)
        case kind:
            numbers = (int, float) if kind == "number" else (int,)
            return isinstance(value, numbers) and not isinstance(value, bool) and fits_number(schema, value)


def fits_number(schema: dict[str, Any], value: float) -> bool:
    return (
        schema.get("minimum", value) <= value <= schema.get("maximum", value)
        and ("exclusiveMinimum" not in schema or value > schema["exclusiveMinimum"])
        and ("exclusiveMaximum" not in schema or value < schema["exclusiveMaximum"])
    )


def fits_object(schema: dict[str, Any], value: dict[str, Any]) -> bool:
    properties, other = schema.get("properties", {}), schema.get("additionalProperties", {})
    return all(name in value for name in schema.get("required", ())) and all(
        fits(properties.get(k, other if isinstance(other, dict) else {}), v) for k, v in value.items()
    )


@each_task
def test_samples_pass_the_models_and_the_schemas(
    task: Task, predicted: dict[str, Any], known: dict[str, Any]
) -> None:
    schemas = Contract.of(task.fields, 10.0).schema()
    samples = events_of(task, predicted, known)
    assert list(schemas) == [kind for kind, _, _ in samples]
    for kind, model, sample in samples:
        model.model_validate(sample)
        assert fits(schemas[kind], sample), kind


@each_task
def test_models_and_schemas_refuse_the_same(
    task: Task, predicted: dict[str, Any], known: dict[str, Any]
) -> None:
    schemas = Contract.of(task.fields, 10.0).schema()
    wrong: list[Any] = [[], {"a": []}, "x" * 100_001, -5, 1e9, "", 7.5]
    for kind, model, sample in events_of(task, predicted, known):
        for name in sample:
            if name in ("time", "outcome_time"):
                continue  # what is in the text of a time is beyond a schema
            for value in wrong:
                changed = {**sample, name: value}
                try:
                    validate(model, changed, assume_utc=False)
                    accepted = True
                except Rejected:
                    accepted = False
                assert fits(schemas[kind], changed) == accepted, (kind, name, value)


@each_task
def test_every_field_of_a_schema_is_described(
    task: Task, predicted: dict[str, Any], known: dict[str, Any]
) -> None:
    for kind, schema in Contract.of(task.fields, 10.0).schema().items():
        for name, field in schema["properties"].items():
            described = "description" in field or any("description" in o for o in field.get("anyOf", ()))
            assert described, f"{kind}.{name}"


@each_task
def test_required_fields(task: Task, predicted: dict[str, Any], known: dict[str, Any]) -> None:
    needed = {f.name for f in task.fields if f.required}
    for kind, model, sample in events_of(task, predicted, known):
        required = needed & set(sample) | ({"id"} if kind == "outcome" else {"time"})
        if kind == "prediction" and known:
            required.add("id")
        for name in sample:
            rest = {k: v for k, v in sample.items() if k != name}
            if name in required:
                with pytest.raises(Rejected, match=f"^{name} is missing$") as caught:
                    validate(model, rest, assume_utc=False)
                assert caught.value.reason is Reason.MISSING_FIELD
            elif name != "outcome_time":
                validate(model, rest, assume_utc=False)


def test_an_outcome_needs_one_of_two_times() -> None:
    outcome = Contract.of(build(BinaryOptions()).fields).outcome
    assert outcome is not None
    for name in ("time", "outcome_time"):
        validate(outcome, {"id": "a", "outcome": 1, name: TIME}, assume_utc=False)
    with pytest.raises(Rejected, match="outcome_time") as caught:
        validate(outcome, {"id": "a", "outcome": 1}, assume_utc=False)
    assert caught.value.reason is Reason.MISSING_FIELD


def test_events_cannot_be_changed() -> None:
    event = Contract.of(build(BinaryOptions()).fields).prediction(id="a", time=TIME, decision=1)
    with pytest.raises(ValueError, match="frozen"):
        event.time = 5


@pytest.mark.parametrize(
    ("raw", "content"),
    [
        (b"{}", {}),
        (b"null", {}),
        (b'{"a":1,"b":null,"c":true,"d":1.5,"e":"x"}', {"a": 1, "b": None, "c": True, "d": 1.5, "e": "x"}),
        (b'{"a":1,"a":2}', {"a": 2}),
    ],
)
def test_attributes(raw: bytes, content: dict[str, object]) -> None:
    found = validate_attributes(raw=raw)
    assert found == content
    assert [type(v) for v in found.values()] == [type(v) for v in content.values()]
    assert validate_attributes(content) == content


@pytest.mark.parametrize(
    ("raw", "reason"),
    [
        (b"[]", Reason.WRONG_TYPE),
        (b'"a"', Reason.WRONG_TYPE),
        (b'{"a":[]}', Reason.WRONG_TYPE),
        (b'{"a":1e999}', Reason.OUT_OF_RANGE),
        (b'{"a":"' + b"x" * 257 + b'"}', Reason.TOO_LONG),
        (b'{"a":', Reason.INVALID_JSON),
        (b'{"a":NaN}', Reason.INVALID_JSON),
    ],
)
def test_attributes_that_are_refused(raw: bytes, reason: Reason) -> None:
    with pytest.raises(Rejected) as caught:
        validate_attributes(raw=raw)
    assert caught.value.reason is reason
