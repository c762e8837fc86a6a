"""Where each field of an event is found in a record.

Paths into records look like ``payload.user.sex``, ``a["key.with.dots"]``, ``rows[0].id``, ``rows[*].id``.
"""

from __future__ import annotations

import re
from collections.abc import Iterator, Mapping
from enum import Enum
from functools import cached_property
from typing import Annotated, Any, Final, Literal, TypeVar

from pydantic import (
    AfterValidator,
    BaseModel,
    BeforeValidator,
    ConfigDict,
    Discriminator,
    Field,
    SerializerFunctionWrapHandler,
    Tag,
    WithJsonSchema,
    WrapSerializer,
    model_validator,
)

from monitor.errors import Findings, did_you_mean, wrong
from monitor.times import parse_time


class Star(Enum):
    """The step ``[*]``: every element of an array, each of which becomes an event."""

    STAR = "*"

    def __repr__(self) -> str:
        return "STAR"


STAR: Final = Star.STAR
Step = str | int | Star

_NAME = re.compile(r"""[^.\[\]"'*]+""")
_INDEX = re.compile(r"\[([0-9]{1,9})\]")
_QUOTED = re.compile(r'\["((?:[^"\\]|\\["\\])*)"\]')


class PathError(ValueError):
    """A path that cannot be read; ``message`` says what is wrong, ``fix`` what to write instead."""

    def __init__(self, message: str, fix: str) -> None:
        self.message = message
        self.fix = fix
        super().__init__(f"{message}; {fix}")


def parse_path(text: str) -> tuple[Step, ...]:
    r"""Split a path into nested JSON into its steps.

    Parameters
    ----------
    text
        Names joined by dots, ``["…"]`` for a name with dots, brackets or quotes in it (with ``\"`` and
        ``\\`` for a quote and a backslash), ``[0]`` for an element of an array, and at most one ``[*]``
        for every element.

    Returns
    -------
    tuple
        A str for each name, an int for each element, :data:`STAR` for ``[*]``. Never empty.

    Raises
    ------
    PathError
        When the path cannot be read.

    Examples
    --------
    >>> parse_path('request["user.id"].rows[*][0]')
    ('request', 'user.id', 'rows', STAR, 0)
    """
    if not text:
        raise PathError("the path is empty", "name a field, like payload.id")
    if text.startswith("$"):
        plain = text.removeprefix("$").removeprefix(".")
        raise PathError(f"{text} starts with $", f"paths start at the record: write {plain or 'payload.id'}")
    steps: list[Step] = []
    position = 0
    while position < len(text):
        step, position = _step(text, position, first=not steps)
        if step is STAR and STAR in steps:
            raise PathError(
                f"{text} has more than one [*]", "keep one: a record becomes one event per element"
            )
        steps.append(step)
    return tuple(steps)


def _step(text: str, position: int, *, first: bool) -> tuple[Step, int]:
    if text[position] == "[":
        return _bracket(text, position)
    if not first:
        if text[position] != ".":
            raise PathError(
                f"{text} has {text[position]!r} after a bracket", "write a dot or a bracket there"
            )
        position += 1
    if position < len(text) and text[position] == "*":
        raise PathError(f"{text} has a * of its own", "write [*] for every element of an array")
    name = _NAME.match(text, position)
    if name is None:
        raise PathError(f"{text} has an empty name", 'write one dot between names, and ["…"] for odd names')
    if name[0] != name[0].strip():
        raise PathError(
            f"{text} has a space around a name", f'write ["{name[0]}"] when the space is part of it'
        )
    if name.end() < len(text) and text[name.end()] not in ".[":
        odd = text[name.end()]
        raise PathError(
            f"{text} has {odd!r} in a name", f'put names with {odd} in brackets and quotes: ["…"]'
        )
    return name[0], name.end()


def _bracket(text: str, position: int) -> tuple[Step, int]:
    if text.startswith("[*]", position):
        return STAR, position + 3
    if index := _INDEX.match(text, position):
        return int(index[1]), index.end()
    if quoted := _QUOTED.match(text, position):
        return re.sub(r"\\(.)", r"\1", quoted[1]), quoted.end()
    raise PathError(
        f"{text} has a bracket at character {position + 1} that cannot be read",
        'write [0] for an element, [*] for every element, or ["name"] for a name',
    )


def format_path(steps: tuple[Step, ...]) -> str:
    """Text that :func:`parse_path` reads back to ``steps``.

    >>> format_path(("request", "user.id", STAR, 0))
    'request["user.id"][*][0]'
    """
    text = ""
    for step in steps:
        if isinstance(step, Star):
            text += "[*]"
        elif isinstance(step, int):
            text += f"[{step}]"
        elif _NAME.fullmatch(step) and step == step.strip() and not (step.startswith("$") and not text):
            text += f".{step}" if text else step
        else:
            escaped = step.replace("\\", "\\\\").replace('"', '\\"')
            text += f'["{escaped}"]'
    return text


def _check(text: str) -> str:
    try:
        parse_path(text)
    except PathError as error:
        raise wrong(error.message, error.fix) from None
    return text


PathText = Annotated[str, AfterValidator(_check)]
"""Pydantic type of a path, kept as text."""


K = TypeVar("K")
V = TypeVar("V")


class Frozen(BaseModel):
    """Base of every part of the configuration.

    Frozen, no unknown keys, no conversion of types, no NaN or infinity.
    """

    model_config = ConfigDict(
        frozen=True,
        extra="forbid",
        strict=True,
        allow_inf_nan=False,
        validate_by_name=True,
        validate_by_alias=True,
    )


class FrozenDict(Mapping[K, V]):
    """A mapping that cannot be changed, and can be copied, hashed and pickled."""

    __slots__ = ("_items",)

    def __init__(self, items: Mapping[K, V]) -> None:
        self._items = dict(items)

    def __getitem__(self, key: K) -> V:
        return self._items[key]

    def __iter__(self) -> Iterator[K]:
        return iter(self._items)

    def __len__(self) -> int:
        return len(self._items)

    def __hash__(self) -> int:
        return hash(frozenset(self._items.items()))

    def __repr__(self) -> str:
        return repr(self._items)


def _as_tuple(value: Any) -> Any:
    return tuple(value) if isinstance(value, list) else value


def _as_dict(value: Mapping[Any, Any], serialise: SerializerFunctionWrapHandler) -> Any:
    return serialise(dict(value))


Items = Annotated[tuple[V, ...], BeforeValidator(_as_tuple)]
"""A YAML list, kept as a tuple."""
FrozenMap = Annotated[Mapping[K, V], AfterValidator(FrozenDict), WrapSerializer(_as_dict)]
"""A YAML mapping that cannot be changed."""


def text_like(pattern: str, what: str) -> tuple[AfterValidator, WithJsonSchema]:
    """Metadata for texts that match a pattern as a whole; ``what`` says what to write."""

    def check(text: str) -> str:
        if not re.fullmatch(pattern, text):
            raise wrong(f"{text!r} is not a name", f"use {what}")
        return text

    return AfterValidator(check), WithJsonSchema({"type": "string", "pattern": f"^{pattern}$"})


Scalar = bool | int | float | str
_CONDITIONS = ("at_least", "equals", "one_of")


class FieldPath(Frozen):
    """Where a field is found, and how its content is read; a bare text is its path."""

    path: PathText | None = Field(default=None, description="path in the record")
    value: str | None = Field(
        default=None, description="the same constant for every event, in place of a path"
    )
    at_least: float | None = Field(default=None, description="flag: true when the number is this or more")
    equals: Scalar | None = Field(default=None, description="flag: true when the content is this")
    one_of: Items[Scalar] | None = Field(
        default=None, min_length=1, description="flag: true when the content is one of these"
    )
    unit: Literal["rfc3339", "unix_seconds", "unix_milliseconds"] = Field(
        default="rfc3339", description="time: how it is written"
    )

    @model_validator(mode="before")
    @classmethod
    def _from_text(cls, value: Any) -> Any:
        return {"path": value} if isinstance(value, str) else value

    @model_validator(mode="after")
    def _check_combination(self) -> FieldPath:
        if (self.path is None) == (self.value is None):
            raise wrong("a field needs a path or a constant value, and not both", "write path: … or value: …")
        if len(self.options & set(_CONDITIONS)) > 1:
            raise wrong("a flag has one condition", "keep one of at_least, equals and one_of")
        return self

    @property
    def options(self) -> frozenset[str]:
        """Names of the settings besides the path that are not at their defaults."""
        defaults = {name: field.default for name, field in type(self).model_fields.items()}
        return frozenset(n for n, default in defaults.items() if n != "path" and getattr(self, n) != default)

    @cached_property
    def steps(self) -> tuple[Step, ...]:
        """The path as steps; empty for a constant."""
        return parse_path(self.path) if self.path is not None else ()


def _as_ids(value: Any) -> Any:
    return (value,) if isinstance(value, str) else _as_tuple(value)


def _one_or_each(value: Any) -> str:
    return "<each>" if isinstance(value, Mapping) else "<object>"


AttributePaths = Annotated[
    Annotated[PathText, Tag("<object>")] | Annotated[FrozenMap[str, PathText], Tag("<each>")],
    Discriminator(_one_or_each),
]


class FieldsConfig(Frozen):
    """Where each field is found in a record. What is not named is at the top level, under its own name.

    Fields of the tasks (``decision``, ``outcome``, …) are written beside the others and kept in
    ``task_fields``.
    """

    id: Annotated[tuple[PathText, ...], BeforeValidator(_as_ids)] = Field(
        default=("id",),
        min_length=1,
        description="path of the id, or several paths whose contents are joined with /",
    )
    time: FieldPath = Field(default=FieldPath(path="time"), description="when the prediction was made")
    outcome_time: FieldPath = Field(
        default=FieldPath(path="outcome_time"), description="when the outcome was known"
    )
    model: FieldPath = Field(
        default=FieldPath(path="model"), description="name of the model, or {value: its name}"
    )
    model_version: FieldPath = Field(
        default=FieldPath(path="model_version"), description="version of the model"
    )
    weight: PathText = Field(default="weight", description="how many events this one stands for")
    sampling_fraction: PathText = Field(
        default="sampling_fraction", description="share of events kept; 1 / weight"
    )
    attributes: AttributePaths = Field(
        default="attributes",
        description="path of an object with all attributes, or one path for each attribute",
    )
    task_fields: FrozenMap[str, FieldPath] = Field(
        default={}, validate_default=True, description="fields of the tasks"
    )

    @model_validator(mode="before")
    @classmethod
    def _collect_task_fields(cls, value: Any) -> Any:
        if not isinstance(value, Mapping):
            return value
        base = {k: v for k, v in value.items() if k in cls.model_fields}
        others = {k: v for k, v in value.items() if k not in cls.model_fields}
        return {**base, "task_fields": {**value.get("task_fields", {}), **others}} if others else base

    def task_field(self, name: str) -> FieldPath:
        """Where a field of a task is found."""
        return self.task_fields.get(name) or FieldPath(path=name)

    def check(self, kinds: Mapping[str, str], where: tuple[int | str, ...], findings: Findings) -> None:
        """Note fields that are not in ``kinds`` (task field to its kind), and misplaced settings."""
        for name, field in self.task_fields.items():
            if name not in kinds:
                message = f"{name!r} is neither a field of every event nor of the task of a model"
                known = [*(f for f in type(self).model_fields if f != "task_fields"), *kinds]
                findings.add((*where, name), message, did_you_mean(name, known), "models.*.task")
            else:
                conditions = _CONDITIONS if kinds[name] == "flag" else ()
                _check_options(name, field, conditions, where, findings)
        for name, allowed in (
            ("time", ("unit", "value")),
            ("outcome_time", ("unit",)),
            ("model", ("value",)),
            ("model_version", ("value",)),
        ):
            _check_options(name, getattr(self, name), allowed, where, findings)
        if self.time.value is not None:
            try:
                parse_time(self.time.value)
            except ValueError as error:
                message = f"{self.time.value!r} {error}"
                findings.add((*where, "time", "value"), message, "write a time like 2024-01-01T00:00:00Z")


def _check_options(
    name: str, field: FieldPath, allowed: tuple[str, ...], where: tuple[int | str, ...], findings: Findings
) -> None:
    for option in sorted(field.options - set(allowed)):
        rest = f"{', '.join(allowed)} or only the path" if allowed else "only the path"
        findings.add((*where, name, option), f"{name} cannot have {option!r}", f"use {rest}")
