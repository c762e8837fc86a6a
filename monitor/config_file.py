"""Reads the configuration: YAML, environment overrides, secrets in files; reports every problem at once.

``FAIRNESS_MONITOR__TIME__BUCKET=5m`` sets ``time.bucket``; numbers are positions in lists
(``FAIRNESS_MONITOR__MODELS__COMPAS__RULES__0__TOLERANCE``); names are matched without regard to case, with
``-`` and ``.`` written ``_``. With ``_FILE`` at the end, the value is the content of the named file.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from types import MappingProxyType
from typing import Any

from pydantic import ValidationError
from pydantic_core import ErrorDetails
from ruamel.yaml import YAML
from ruamel.yaml.error import MarkedYAMLError, YAMLError
from ruamel.yaml.nodes import MappingNode, Node, ScalarNode, SequenceNode

from monitor.config import Config
from monitor.errors import (
    ConfigError,
    Problem,
    Where,
    did_you_mean,
    explain,
    holds_text,
    keys_at,
    models_at,
    walk,
)
from monitor.paths import format_path

PREFIX = "FAIRNESS_MONITOR__"
_FILE = "_FILE"
_ROUNDS = 50
_MAX_NODES = 100_000
_SHORTHAND = {"task": "type"}
"""Keys whose bare value stands for a mapping with one key."""
_STAND_INS = {"tolerance": 0.5}
"""Values that take the place of wrong ones, so that what is around them is still looked at."""


def load_config(path: str | Path, environ: Mapping[str, str] = MappingProxyType({})) -> Config:
    """Read, override and validate a configuration file.

    Parameters
    ----------
    path
        A YAML 1.2 file.
    environ
        Environment variables; those that start with ``FAIRNESS_MONITOR__`` override the file.

    Raises
    ------
    ConfigError
        With everything that is wrong, each with its line or variable and what to do about it.
    """
    try:
        text = Path(path).read_text(encoding="utf-8-sig")
    except OSError as error:
        reason = (error.strerror or str(error)).lower()
        raise ConfigError(
            [Problem("", None, f"cannot be read: {reason}", "check the path", str(path))]
        ) from None
    except UnicodeDecodeError:
        raise ConfigError([Problem("", None, "is not UTF-8", "save it as UTF-8", str(path))]) from None
    return parse_config(text, environ, origin=str(path))


def parse_config(
    text: str, environ: Mapping[str, str] = MappingProxyType({}), *, origin: str = "configuration"
) -> Config:
    """Validate a configuration given as YAML text; see :func:`load_config`."""
    document = _read(text, origin)
    _override(document, environ)
    config = _validate(document)
    if document.problems or config is None:
        ordered = sorted(document.problems, key=lambda p: (p.line is None, p.line or 0, p.origin))
        raise ConfigError(dict.fromkeys(ordered))
    return config


@dataclass(slots=True)
class _Document:
    """The content of a file with the lines its keys and values are on, and what is wrong with it."""

    origin: str
    data: Any = None
    key_lines: dict[Where, int] = field(default_factory=dict)
    value_lines: dict[Where, int] = field(default_factory=dict)
    variables: dict[Where, str] = field(default_factory=dict)
    secrets: dict[str, str] = field(default_factory=dict)
    unusable: set[Where] = field(default_factory=set)
    problems: list[Problem] = field(default_factory=list)

    def add(self, where: Where, message: str, fix: str, *, at_key: bool = False) -> None:
        """Note a problem at a key or value, or at the closest thing above it that has a place."""
        line, origin = None, self.origin
        for depth in range(len(where), -1, -1):
            place = where[:depth]
            first, second = self.value_lines.get(place), self.key_lines.get(place)
            variable = self.variables.get(place)
            if depth == len(where) and first is second is None:  # a variable may have brought it in
                variable = next((v for p, v in self.variables.items() if p[:depth] == place), variable)
            if variable:
                line, origin = None, variable
                if secret := self.secrets.get(variable):
                    message, fix = message.replace(secret, "***"), fix.replace(secret, "***")
                break
            if line is None:
                line = first or second if depth == len(where) and not at_key else second or first
        self.problems.append(Problem(format_path(where), line, message, fix, origin))


def _yaml() -> YAML:
    yaml = YAML(typ="safe", pure=True)
    yaml.composer.warn_double_anchors = False
    return yaml


def _read(text: str, origin: str) -> _Document:
    document = _Document(origin, value_lines={(): 1})
    yaml = _yaml()
    try:
        root = yaml.compose(text)
    except MarkedYAMLError as error:
        mark = error.problem_mark or error.context_mark
        fix = "check the indentation, the colons and the quotes around this line"
        if "\\t" in str(error.problem):
            fix = "indent with spaces, not with tabs"
        if "another document" in str(error.problem):
            fix = "keep one document: take out the line ---"
        message = f"this is not YAML: {error.problem or error.context}"
        line = mark.line + 1 if mark else None
        raise ConfigError([Problem("", line, message, fix, origin)]) from None
    except (YAMLError, RecursionError) as error:
        message = f"this is not YAML: {str(error).splitlines()[0] if str(error) else 'nested too deeply'}"
        raise ConfigError([Problem("", None, message, "save it as plain YAML text", origin)]) from None
    reader = _Reader(yaml, document)
    document.data = reader.read(root, ()) if root is not None else {}
    return document


class _Reader:
    """Turns YAML nodes into plain values and keeps their lines."""

    def __init__(self, yaml: YAML, document: _Document) -> None:
        self._yaml = yaml
        self._document = document
        self._nodes = 0

    def read(self, node: Node, where: Where, above: tuple[Node, ...] = ()) -> Any:
        self._document.value_lines.setdefault(where, node.start_mark.line + 1)
        self._nodes += 1
        if node in above or self._nodes > _MAX_NODES:
            self._document.add(where, "aliases repeat without end", "write the values out")
            self._document.unusable.add(where)
            return None
        if isinstance(node, MappingNode):
            return self._mapping(node, where, (*above, node))
        if isinstance(node, SequenceNode):
            return [self.read(n, (*where, i), (*above, node)) for i, n in enumerate(node.value)]
        return self.scalar(node, where)

    def scalar(self, node: Node, where: Where) -> Any:
        kind = str(node.tag).rpartition(":")[2]
        if not isinstance(node, ScalarNode) or kind in ("str", "timestamp"):
            return node.value
        if kind in ("int", "float", "bool", "null"):
            try:
                return self._yaml.constructor.construct_object(node)
            except (ValueError, YAMLError):
                return node.value
        self._document.add(where, f"the tag {node.tag} has no meaning here", "take the tag out")
        self._document.unusable.add(where)
        return node.value

    def _mapping(self, node: MappingNode, where: Where, above: tuple[Node, ...]) -> dict[str, Any]:
        found: dict[str, Any] = {}
        merged: dict[str, Any] = {}
        for key, value in node.value:
            if not isinstance(key, ScalarNode):
                self._document.add(where, "a key is a list or a mapping", "use plain text as the key")
            elif str(key.tag).endswith(":merge") or (key.value == "<<" and not key.style):
                parts = value.value if isinstance(value, SequenceNode) else [value]
                for part in parts:
                    content = self.read(part, where, above)
                    merged = {**content, **merged} if isinstance(content, dict) else merged
            elif key.value in found:
                first = self._document.key_lines[(*where, key.value)]
                self._document.key_lines[(*where, key.value)] = key.start_mark.line + 1
                message = f"{key.value!r} is already given on line {first}"
                self._document.add((*where, key.value), message, "keep one of the two", at_key=True)
            else:
                self._document.key_lines[(*where, key.value)] = key.start_mark.line + 1
                self._document.value_lines.pop((*where, key.value), None)
                found[key.value] = self.read(value, (*where, key.value), above)
        return {**merged, **found}


def _override(document: _Document, environ: Mapping[str, str]) -> None:
    for variable in sorted(v for v in environ if v.startswith(PREFIX)):
        parts = variable.removeprefix(PREFIX).split("__")
        where = _place(document.data, parts)
        text = environ[variable]
        problem = (
            ("the name has an empty part", f"write it like {PREFIX}TIME__BUCKET") if "" in parts else None
        )
        if not problem and variable.endswith(_FILE) and not walk(Config, where)[1]:
            variable_without = variable.removesuffix(_FILE)
            where = _place(document.data, [*parts[:-1], parts[-1].removesuffix(_FILE)])
            try:
                content = Path(text).read_text(encoding="utf-8")
                text = content[:-1] if content.endswith("\n") else content
                document.secrets[variable] = text
            except (OSError, UnicodeDecodeError) as error:
                reason = error.strerror if isinstance(error, OSError) else "it is not UTF-8"
                problem = (
                    f"the file {text} cannot be read: {reason}".lower(),
                    "name a file that can be read",
                )
            if variable_without in environ:
                problem = (f"{variable_without} is set as well", "set one of the two")
        value: Any = text
        if not problem and not holds_text(Config, where, text):
            value, problem = _parse_value(text)
        if not problem:
            problem = _set(document, where, value)
        if problem:
            document.problems.append(Problem(format_path(where), None, *problem, variable))
        else:
            document.variables[where] = variable


def _plain(name: object) -> str:
    return str(name).casefold().replace("-", "_").replace(".", "_")


def _place(data: Any, parts: list[str]) -> Where:
    """Path that the parts of a variable's name stand for; what does not exist yet is in lower case."""
    where: Where = ()
    while parts:
        taken, step = 1, parts[0].lower()
        found: str | int = int(step) if isinstance(data, list) and step.isdecimal() else step
        if isinstance(data, dict):
            names = {_plain(k): k for k in data}
            fits = (n for n in range(len(parts), 0, -1) if "__".join(parts[:n]).casefold() in names)
            if (longest := next(fits, 0)) > 0:
                taken, found = longest, names["__".join(parts[:longest]).casefold()]
        elif not isinstance(data, list) and step.isdecimal():
            found = int(step)
        data = _child(data, found)
        where, parts = (*where, found), parts[taken:]
    return where


def _child(data: Any, step: str | int) -> Any:
    if isinstance(data, dict):
        return data.get(step)
    return data[step] if isinstance(data, list) and isinstance(step, int) and step < len(data) else None


def _parse_value(text: str) -> tuple[Any, tuple[str, str] | None]:
    scratch = _Document("")
    try:
        yaml = _yaml()
        node = yaml.compose(text)
    except YAMLError:
        return None, ("the value is not YAML", "put it in double quotes inside the variable")
    value = _Reader(yaml, scratch).read(node, ()) if node is not None else None
    return value, (scratch.problems[0].message, scratch.problems[0].suggestion) if scratch.problems else None


def _set(document: _Document, where: Where, value: Any) -> tuple[str, str] | None:
    """Put a value in its place; returns what is wrong and what to do when it has no place."""
    holder: Any = {"": document.data}
    last: str | int = ""
    for step in where:
        if holder[last] is None:
            holder[last] = [] if isinstance(step, int) else {}
        if last in _SHORTHAND and isinstance(holder[last], str):
            holder[last] = {_SHORTHAND[last]: holder[last]}
        holder, last = holder[last], step
        if isinstance(holder, list) and isinstance(step, int):
            if step > len(holder):
                return f"the list has {len(holder)} items, none at position {step}", "count positions from 0"
            if step == len(holder):
                holder.append(None)
        elif isinstance(holder, dict) and isinstance(step, str):
            holder.setdefault(step, None)
        else:
            kind = (
                "list"
                if isinstance(holder, list)
                else "mapping"
                if isinstance(holder, dict)
                else "single value"
            )
            return f"{step!r} has no place in a {kind}", "name a key that exists, or set the key above it"
    if last != "":
        holder[last] = value
    document.data = document.data if document.data is not None else {}
    return None


def _validate(document: _Document) -> Config | None:
    """Validate; what is wrong is left out (or renamed, for a misspelt key) and the rest looked at again."""
    dropped = set(document.unusable)
    renamed: dict[Where, str] = {}
    for _ in range(_ROUNDS):
        origins: dict[Where, Where] = {}
        data = _without(document.data, (), (), dropped, renamed, origins)
        try:
            return Config.model_validate(data)
        except ValidationError as error:
            details = error.errors(include_url=False)
        before = (len(dropped), len(renamed))
        _report(document, details, data, origins, dropped, renamed)
        if () in dropped or (len(dropped), len(renamed)) == before:
            break
    if not document.problems:
        document.add((), "the configuration is not valid", "report this with the file")
    return None


def _without(
    value: Any,
    where: Where,
    built: Where,
    dropped: set[Where],
    renamed: Mapping[Where, str],
    origins: dict[Where, Where],
) -> Any:
    """Copy without what was dropped; ``origins`` tells where each part of the copy comes from."""
    origins[built] = where
    if isinstance(value, dict):
        keys = {k: renamed.get((*where, k), k) for k in value if (*where, k) not in dropped}
        copy = {
            new: _without(value[k], (*where, k), (*built, new), dropped, renamed, origins)
            for k, new in keys.items()
        }
        for key in [k for k in _STAND_INS if (*where, k) in dropped]:
            copy[key], origins[(*built, key)] = _STAND_INS[key], (*where, key)
        return copy
    if isinstance(value, list):
        kept = [i for i in range(len(value)) if (*where, i) not in dropped]
        return [
            _without(value[i], (*where, i), (*built, n), dropped, renamed, origins)
            for n, i in enumerate(kept)
        ]
    return value


def _report(
    document: _Document,
    details: list[ErrorDetails],
    data: Any,
    origins: Mapping[Where, Where],
    dropped: set[Where],
    renamed: dict[Where, str],
) -> None:
    """Note the problems of one round, and leave out what they are about."""
    known = frozenset(dropped)
    places = [_locate(e["loc"], data) for e in details]
    corrected: set[Where] = set()
    order = sorted(range(len(details)), key=lambda i: details[i]["type"] != "extra_forbidden")
    for number, i in enumerate(order):
        error, built = details[i], places[i]
        kind, where = error["type"], origins[built]
        if kind == "extra_forbidden":
            meant = _report_unknown_key(document, where, data, built)
            if meant is not None:
                renamed[where] = meant
                corrected.add((*where[:-1], meant))
                continue
        elif kind == "missing":
            key = (*where, str(error["loc"][-1]))
            if key in corrected:
                continue
            if key not in known:
                _report_missing_key(document, key, data, built)
            if key[-1] in _STAND_INS:
                where = key
        elif kind == "default_factory_not_called":
            continue
        else:
            last = error["loc"][-1:]
            absent = kind == "config" and last != built[-1:] and isinstance(_value_at(data, built), dict)
            spot = (*where, *last) if absent and last != ("[key]",) else where
            below = any(len(p) > len(built) and p[: len(built)] == built for p in places)
            again = kind != "config" and built in (places[j] for j in order[:number])
            if not again and not (kind == "too_short" and below) and not _follows(error, spot, known):
                document.add(spot, *explain(error), at_key=last == ("[key]",))
        dropped.add(where)


def _report_unknown_key(document: _Document, where: Where, data: Any, built: Where) -> str | None:
    """Note the key; returns the key that was meant, where it is plain and not given as well."""
    siblings = _value_at(data, built[:-1])
    keys = keys_at(Config, built[:-1], siblings)
    fix = did_you_mean(str(where[-1]), keys)
    document.add(where, f"{where[-1]!r} is not a key of this part", fix, at_key=True)
    return next((k for k in keys if fix == f"did you mean {k!r}?" and k not in siblings), None)


def _report_missing_key(document: _Document, key: Where, data: Any, built: Where) -> None:
    models = models_at(Config, built, _value_at(data, built))
    descriptions = [
        f.description for m in models for n, f in m.model_fields.items() if key[-1] in (n, f.alias)
    ]
    fix = f"add {key[-1]}: {descriptions[0]}" if descriptions else f"add {key[-1]}"
    document.add(key, f"{str(key[-1])!r} is missing", fix, at_key=True)


def _follows(error: ErrorDetails, where: Where, known: frozenset[Where]) -> bool:
    """Tell whether this is only there because something else was left out."""
    if where in known or any(p[:-1] == where for p in known):
        return True
    for need in error.get("ctx", {}).get("needs", ()):
        base = {"./": where[:4], "..": where[:2]}.get(need[:2], ())
        path = (*base, *need.lstrip("./").split("."))
        if any(all(b in ("*", a) for a, b in zip(p, path, strict=False)) for p in known):
            return True
    return False


def _locate(loc: tuple[int | str, ...], data: Any) -> Where:
    """Path into ``data`` of a location pydantic reports, which also has tags of unions and the like."""
    where: Where = ()
    steps = iter(loc)
    for step in steps:
        inside = step in data if isinstance(data, dict) else isinstance(data, list) and isinstance(step, int)
        if not inside:
            continue
        where, data = (*where, step), data[step]
        if len(where) == 3 and where[0] == "models" and step == "task":
            next(steps, None)  # the tag of the union of tasks
    return where


def _value_at(data: Any, where: Where) -> Any:
    for step in where:
        data = data[step]
    return data
