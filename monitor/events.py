"""The event contract: predictions, outcomes, and joined events, as strict pydantic models.

These models are the authority. What they accept is accepted, nothing is converted, and what they
refuse is rejected with a reason. The fast path of :mod:`monitor.decode` accepts the same set.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Annotated, Any, TypeVar

import msgspec
from pydantic import (
    AfterValidator,
    BaseModel,
    ConfigDict,
    Field,
    StringConstraints,
    TypeAdapter,
    ValidationError,
    ValidationInfo,
    create_model,
    model_validator,
)
from pydantic_core import PydanticCustomError, from_json

from monitor import tasks
from monitor.names import Reason
from monitor.records import Rejected
from monitor.times import FIRST_PLAUSIBLE_MS, LAST_MS, parse_time

MAX_ID_CHARACTERS = 512
MAX_ATTRIBUTE_CHARACTERS = 256
_INT64 = 2**63
_WEIGHT = "how many events this one stands for"
_FRACTION = "share of events that is sent; weight is 1 / share"


def _milliseconds(value: str | int, info: ValidationInfo) -> int:
    if isinstance(value, int):
        if value < 0:
            raise PydanticCustomError("time", "lies before 1970")
        if value < FIRST_PLAUSIBLE_MS:
            raise PydanticCustomError(
                "time", "is in 1973 or before if it is in milliseconds; seconds need unit: unix_seconds"
            )
        if value > LAST_MS:
            raise PydanticCustomError("time", "lies after the year 9999")
        return value
    try:
        return parse_time(value, assume_utc=bool((info.context or {}).get("assume_utc")))
    except ValueError as error:
        raise PydanticCustomError("time", "{why}", {"why": str(error)}) from None


Time = Annotated[
    str | int,
    AfterValidator(_milliseconds),
    Field(description="RFC 3339 date-time with offset, RFC 3339 date (midnight UTC), or Unix milliseconds"),
]
Id = Annotated[
    Annotated[str, StringConstraints(min_length=1, max_length=MAX_ID_CHARACTERS)]
    | Annotated[int, Field(ge=-_INT64, lt=_INT64)],
    Field(description="names the prediction; an outcome carries the id of its prediction"),
]
AttributeValue = (
    Annotated[str, StringConstraints(max_length=MAX_ATTRIBUTE_CHARACTERS)] | bool | int | float | None
)
Attributes = Annotated[
    dict[str, AttributeValue],
    Field(description="what the producer knows of the person or case; absent or null means unknown"),
]


class Event(BaseModel):
    """What every event may carry. Fields that the contract does not name are ignored."""

    model_config = ConfigDict(strict=True, extra="ignore", frozen=True, allow_inf_nan=False)

    model: Annotated[str, Field(description="the model; may be left out when there is only one")] | None = (
        None
    )


class Predicted(Event):
    """What predictions and joined events share."""

    time: Annotated[Time, Field(description="when the prediction was made")]
    model_version: (
        Annotated[
            str,
            StringConstraints(max_length=MAX_ATTRIBUTE_CHARACTERS),
            Field(description="version of the model"),
        ]
        | None
    ) = None
    attributes: Attributes = {}
    weight: Annotated[float, Field(gt=0)] | None = Field(default=None, description=_WEIGHT)
    sampling_fraction: Annotated[float, Field(gt=0, le=1)] | None = Field(default=None, description=_FRACTION)


class Prediction(Predicted):
    """A model's prediction, when it is made."""

    id: Id


class Outcome(Event):
    """What turned out to be true of a prediction, when it is known."""

    id: Id
    time: Annotated[Time, Field(description="when the outcome was known")] | None = None
    outcome_time: Annotated[Time, Field(description="the same, and comes before ``time``")] | None = None

    @model_validator(mode="after")
    def _has_a_time(self) -> Outcome:
        if self.time is None and self.outcome_time is None:
            raise PydanticCustomError("missing_time", "an outcome needs time or outcome_time")
        return self


class Joined(Predicted):
    """A prediction together with its outcome. Without an id, duplicates cannot be noticed."""

    id: Id | None = None
    outcome_time: (
        Annotated[Time, Field(description="when the outcome was known; default ``time``")] | None
    ) = None


AnyEvent = TypeVar("AnyEvent", bound=Event)


@dataclass(frozen=True, slots=True)
class Contract:
    """The three kinds of events of one task, with the task's own fields."""

    prediction: type[Predicted]
    outcome: type[Outcome] | None
    joined: type[Joined] | None

    @classmethod
    def of(cls, fields: Sequence[tasks.base.Field], weight_bound: float | None = None) -> Contract:
        """The contract of a task with these fields.

        ``outcome`` and ``joined`` are None for tasks without outcome fields. Weights must not exceed
        ``weight_bound``; without one they are not read.
        """
        predicted: dict[str, Any] = {f.name: _field(f) for f in fields if f.block == "prediction"}
        known: dict[str, Any] = {f.name: _field(f) for f in fields if f.block == "outcome"}
        weight: Any = Annotated[float, Field(gt=0, le=weight_bound)] | None if weight_bound else Any
        share: Any = Annotated[float, Field(ge=1 / weight_bound, le=1)] | None if weight_bound else Any
        weights: dict[str, Any] = {
            "weight": (weight, Field(default=None, description=_WEIGHT)),
            "sampling_fraction": (share, Field(default=None, description=_FRACTION)),
        }
        if not known:
            optional_id: dict[str, Any] = {"id": (Id | None, None)}
            alone = create_model("Prediction", __base__=Prediction, **optional_id, **weights, **predicted)
            return cls(alone, None, None)
        return cls(
            create_model("Prediction", __base__=Prediction, **weights, **predicted),
            create_model("Outcome", __base__=Outcome, **known),
            create_model("Joined", __base__=Joined, **weights, **predicted, **known),
        )

    def schema(self) -> dict[str, Any]:
        """JSON Schema of each kind of event."""
        kinds = {"prediction": self.prediction, "outcome": self.outcome, "joined": self.joined}
        return {name: model.model_json_schema() for name, model in kinds.items() if model is not None}


def _field(field: tasks.base.Field) -> tuple[Any, Any]:
    kind: Any
    if field.kind == "flag":
        kind = bool | Annotated[int, Field(ge=0, le=1)]
    elif field.kind == "text":
        kind = Annotated[str, StringConstraints(max_length=int(field.high))]
    elif field.kind == "count":
        kind = Annotated[int, Field(ge=field.low, le=field.high)]
    else:
        kind = Annotated[float, Field(ge=field.low, le=field.high)]
    if field.required:
        return kind, Field(description=field.description)
    return kind | None, Field(default=None, description=field.description)


def validate(model: type[AnyEvent], values: Mapping[str, object], *, assume_utc: bool) -> AnyEvent:
    """An event of this kind from its fields; raises :class:`Rejected` with one sentence."""
    try:
        return model.model_validate(values, context={"assume_utc": assume_utc})
    except ValidationError as error:
        raise explain(error) from None


_ATTRIBUTES: TypeAdapter[dict[str, AttributeValue]] = TypeAdapter(
    Attributes, config=ConfigDict(strict=True, allow_inf_nan=False)
)


_QUICK_ATTRIBUTES = msgspec.json.Decoder(
    dict[str, Annotated[str, msgspec.Meta(max_length=MAX_ATTRIBUTE_CHARACTERS)] | bool | int | float | None]
    | None
)


def validate_attributes(
    values: Mapping[str, object] | None = None, *, raw: bytes | None = None
) -> Mapping[str, object]:
    """Attributes from a mapping, or from the bytes of a JSON object; raises :class:`Rejected`."""
    if raw is not None:
        try:  # what this accepts, the validation below accepts too
            quick: Mapping[str, object] | None = _QUICK_ATTRIBUTES.decode(raw)
            if quick is not None:
                return quick
        except msgspec.DecodeError:
            pass
    try:
        content = values if raw is None else from_json(raw, allow_inf_nan=False)
        return {} if content is None else _ATTRIBUTES.validate_python(content)
    except ValidationError as error:
        raise explain(error) from None
    except ValueError as error:
        raise Rejected(Reason.INVALID_JSON, str(error)) from None


_LONGEST_NAME = 100
"""Characters of a field's name in messages."""


def explain(error: ValidationError) -> Rejected:
    """The first thing wrong, as a reason code and a sentence that names the field."""
    first, *rest = error.errors(include_url=False, include_context=False)
    if first["type"] == "missing_time":
        return Rejected(Reason.MISSING_FIELD, "time and outcome_time are missing; an outcome needs one")
    depth = 2 if first["loc"][:1] == ("attributes",) else 1
    field = ".".join(str(part) for part in first["loc"][:depth])[:_LONGEST_NAME] or "event"
    alternatives = [e for e in [first, *rest] if e["loc"][:depth] == first["loc"][:depth]]
    for chosen in alternatives:
        if _reason(chosen["type"]) is not Reason.WRONG_TYPE:
            break
    else:
        chosen = first
    if chosen["type"] == "float_type" and type(chosen["input"]) is int:
        return Rejected(Reason.OUT_OF_RANGE, f"{field} is beyond the range of numbers")
    reason = _reason(chosen["type"])
    if reason is Reason.WRONG_TYPE:
        wanted = " or ".join(dict.fromkeys(e["msg"].removeprefix("Input should be ") for e in alternatives))
        return Rejected(reason, f"{field} should be {wanted}, not {_kind_of(chosen['input'])}")
    if reason is Reason.MISSING_FIELD:
        return Rejected(reason, f"{field} is missing")
    message = chosen["msg"].removeprefix("Input ").removeprefix("String ")
    return Rejected(reason, f"{field} {message[0].lower()}{message[1:]}")


def _reason(kind: str) -> Reason:
    if kind in ("missing", "missing_time", "string_too_short"):
        return Reason.MISSING_FIELD
    if kind == "time":
        return Reason.INVALID_TIME
    if kind == "string_too_long":
        return Reason.TOO_LONG
    if kind.startswith(("greater_than", "less_than")) or kind == "finite_number":
        return Reason.OUT_OF_RANGE
    return Reason.WRONG_TYPE


def _kind_of(value: object) -> str:
    names = {bool: "true or false", int: "an integer", float: "a number", str: "a text", list: "an array"}
    return names.get(type(value), "an object" if isinstance(value, dict) else "null")
