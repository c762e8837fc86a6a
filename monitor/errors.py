"""Errors that the monitor reports to the people who run it."""

from __future__ import annotations

import re
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass
from difflib import get_close_matches
from typing import Annotated, Any, Literal, get_args, get_origin

from pydantic import BaseModel, SecretStr, ValidationError
from pydantic_core import ErrorDetails, InitErrorDetails, PydanticCustomError

Where = tuple[str | int, ...]
"""Path of a key in the configuration, as keys and positions."""


class MonitorError(Exception):
    """Base of every error the monitor raises on purpose."""


@dataclass(frozen=True, slots=True)
class Problem:
    """One thing that is wrong in a configuration.

    Parameters
    ----------
    where
        Path of the key, as in ``models.compas.groups[1]``; empty when the file as a whole is wrong.
    line
        Line of the file, from 1; None when the problem has no line.
    message
        What is wrong, without a full stop.
    suggestion
        What to do about it, without a full stop; empty when the message says it.
    origin
        The file, or the environment variable, that holds the value.
    """

    where: str
    line: int | None
    message: str
    suggestion: str
    origin: str = ""

    def __str__(self) -> str:
        place = f"{self.origin}:{self.line}" if self.line is not None else self.origin
        head = ": ".join(part for part in (place, self.where, self.message) if part)
        end = "" if self.suggestion.endswith("?") else "."
        return f"{head}. Fix: {self.suggestion}{end}" if self.suggestion else f"{head}."


class ConfigError(MonitorError):
    """The configuration cannot be used. ``problems`` holds everything found, in the order of lines.

    >>> print(ConfigError([Problem("time.bucket", 3, "90 has no unit", "write 90s", "monitor.yaml")]))
    monitor.yaml:3: time.bucket: 90 has no unit. Fix: write 90s.
    """

    def __init__(self, problems: Iterable[Problem]) -> None:
        self.problems = tuple(problems)
        super().__init__("\n".join(str(p) for p in self.problems))


def did_you_mean(word: str, candidates: Iterable[str], limit: int = 12) -> str:
    """Suggestion of the candidate closest to ``word``, or of all of them when none is close.

    >>> did_you_mean("gruops", ["groups", "rules"])
    "did you mean 'groups'?"
    >>> did_you_mean("colour", ["groups", "rules"])
    'use one of groups, rules'
    """
    known = {c.casefold(): c for c in candidates}
    close = get_close_matches(word.casefold(), list(known), n=1, cutoff=0.6)
    if close:
        return f"did you mean {known[close[0]]!r}?"
    names = list(known.values())
    shown = ", ".join(names[:limit]) + (f" and {len(names) - limit} more" if len(names) > limit else "")
    return f"use one of {shown}" if len(names) > 1 else f"use {shown}" if names else "take it out"


def wrong(message: str, fix: str, *needs: str) -> PydanticCustomError:
    """Error for pydantic validators to raise: what is wrong, what to do, what the finding rests on.

    ``needs`` are paths of other keys, like ``time.bucket`` or ``models.*.task``, or ``../task`` for a key
    of the same model and ``./kind`` for one of the same rule; the finding is dropped while one of these
    has a problem of its own.
    """
    return PydanticCustomError("config", "{message}", {"message": message, "fix": fix, "needs": needs})


class Findings:
    """Several findings of one validator, each with its place below the validated value."""

    def __init__(self) -> None:
        self._details: list[InitErrorDetails] = []

    def add(self, where: tuple[int | str, ...], message: str, fix: str, *needs: str) -> None:
        """Note a finding; see :func:`wrong`."""
        self._details.append(InitErrorDetails(type=wrong(message, fix, *needs), loc=where, input=None))

    def raise_if_any(self, title: str) -> None:
        """Raise all findings as one pydantic.ValidationError; pydantic puts them in their places."""
        if self._details:
            raise ValidationError.from_exception_data(title, self._details)


_TYPES = {
    "string": ("text", "put it in quotes if it is meant as text"),
    "int": ("a whole number", "write a number like 10"),
    "float": ("a number", "write a number like 0.1"),
    "bool": ("true or false", "write true or false"),
    "tuple": ("a list", "write [a, b], or one item per line after a dash"),
    "list": ("a list", "write [a, b], or one item per line after a dash"),
    "dict": ("a mapping", "write key: value pairs below it"),
    "mapping": ("a mapping", "write key: value pairs below it"),
    "model": ("a mapping", "write key: value pairs below it"),
}
_BOUNDS = {
    "greater_than_equal": ("ge", "at least"),
    "greater_than": ("gt", "more than"),
    "less_than_equal": ("le", "at most"),
    "less_than": ("lt", "less than"),
}


def _shown(value: Any) -> str:
    if isinstance(value, list | tuple):
        return "a list"
    if isinstance(value, Mapping):
        return "a mapping"
    return "nothing" if value is None else str(value).lower() if isinstance(value, bool) else repr(value)


def explain(error: ErrorDetails) -> tuple[str, str]:
    """Say in words what is wrong and what to do, for an error that pydantic found."""
    kind, value, context = error["type"], error["input"], error.get("ctx", {})
    if kind == "config":
        return context["message"], context["fix"]
    if error["loc"][-1:] in (("bool",), ("int",), ("float",), ("str",)):
        return f"must be one text, number or truth value, not {_shown(value)}", "write one value"
    base = kind.split("_")[0]
    if base in _TYPES and (kind.endswith(("_type", "_parsing")) or kind == "int_from_float"):
        return f"must be {_TYPES[base][0]}, not {_shown(value)}", _TYPES[base][1]
    if kind in _BOUNDS:
        limit, words = _BOUNDS[kind]
        return (
            f"must be {words} {context[limit]:g}, not {value:g}",
            f"write {words} {context[limit]:g}",
        )
    if kind in ("literal_error", "union_tag_invalid"):
        choices = re.findall(r"'([^']*)'", context.get("expected") or context["expected_tags"])
        given = value if kind == "literal_error" else context["tag"]
        return f"{_shown(given)} is not one of the choices", did_you_mean(str(given), choices)
    if kind == "union_tag_not_found":
        return "the task has no type", "add type: binary, or another task"
    if kind == "finite_number":
        return "must be a finite number", "write a number"
    if kind in ("too_short", "too_long", "string_too_short", "string_too_long"):
        least = "min_length" in context
        words = f"at {'least' if least else 'most'} {context['min_length' if least else 'max_length']}"
        what = "character(s)" if kind.startswith("string") else "item(s)"
        return f"needs {words} {what}", "fill it in, or take the key out" if least else "make it shorter"
    message = error["msg"].removeprefix("Value error, ").rstrip(".")
    return message[:1].lower() + message[1:], "change the value, or take the key out"


def _leaves(annotation: Any) -> Iterator[Any]:
    """Types an annotation is made of; containers come before their contents, keys are left out."""
    origin, args = get_origin(annotation), get_args(annotation)
    if origin is Annotated:
        yield from _leaves(args[0])
    elif origin in (Mapping, tuple):
        yield origin
        yield from _leaves(args[-1] if origin is Mapping else args[0])
    elif args and origin is not Literal:
        for arg in args:
            yield from _leaves(arg)
    else:
        yield annotation


def walk(root: type[BaseModel], where: Where) -> tuple[list[Any], bool]:
    """Types at a path, and whether the path ends with the name of a field."""
    leaves: list[Any] = [root]
    inside, named = False, False
    for step in where:
        fields = {
            n: f for m in leaves if _is_model(m) for k, f in m.model_fields.items() for n in (k, f.alias)
        }
        if isinstance(step, int) or inside:
            inside, named = False, False
        elif step in fields or "task_fields" in fields:
            named = step in fields
            leaves = list(_leaves(fields[step if named else "task_fields"].annotation))
            inside = named and Mapping in leaves
        else:
            return [], False
    return leaves, named


def _is_model(leaf: Any) -> bool:
    return isinstance(leaf, type) and issubclass(leaf, BaseModel)


def holds_text(root: type[BaseModel], where: Where, text: str) -> bool:
    """Tell whether the content at this path is text, so that digits or a colon in it mean nothing."""
    leaves, named = walk(root, where)
    if SecretStr in leaves:
        return True
    if str not in leaves or any(_is_model(t) or t in (int, float, bool) for t in leaves):
        return False
    return not {Mapping, tuple} & set(leaves) or not (named or text.startswith("["))


def models_at(root: type[BaseModel], where: Where, value: Any) -> list[type[BaseModel]]:
    """Models that the value at this path may be; a ``type`` in it decides between several."""
    models = [m for m in walk(root, where)[0] if _is_model(m)]
    kind = value.get("type") if isinstance(value, dict) else value
    tagged = [m for m in models if "type" in m.model_fields and m.model_fields["type"].default == kind]
    return tagged or models


def keys_at(root: type[BaseModel], where: Where, value: Any) -> list[str]:
    """Keys that may stand at this path."""
    models = models_at(root, where, value)
    return [f.alias or n for m in models for n, f in m.model_fields.items() if n != "task_fields"]
