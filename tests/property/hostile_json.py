"""Configurations, and nearly valid JSON events for them, on which both ways of decoding must agree."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from functools import cached_property
from textwrap import dedent, indent

from hypothesis import strategies as st

from monitor.config import Config
from monitor.config_file import parse_config

ARRIVAL_MS = 1_714_600_000_000
"""2024-05-01T21:46:40Z, when every record arrives."""

Pairs = list[tuple[str, "bytes | Pairs"]]


@dataclass(frozen=True)
class Case:
    """A configuration and its fields: path → kind, for predictions, outcomes and both."""

    models: str
    fields: str
    both: Mapping[str, str]
    predicted: Mapping[str, str]
    known: Mapping[str, str]
    extra: str = ""

    @cached_property
    def config(self) -> Config:
        text = f"models:\n{indent(dedent(self.models).strip(), '  ')}\nsources:\n- name: events\n"
        if self.fields:
            text += f"  fields:\n{indent(dedent(self.fields).strip(), '    ')}\n"
        return parse_config(text + self.extra)


BASE = {"id": "id", "time": "time"}
NATIVE = {"attributes": "object", "model_version": "text"}
KNOWN = {"outcome_time": "time", "outcome": "flag"}
MANY = "attributes: {sex: {max_values: 10000}, site: {max_values: 10000}}"
BINARY = f"m:\n  task: binary\n  groups: [sex, site]\n  {MANY}\n"
SCORED = f"m:\n  task: {{type: binary, score: {{range: [0, 1]}}}}\n  groups: [sex, site]\n  {MANY}\n"
NUMBERS = f"n:\n  task: {{type: regression, range: [-10, 1000]}}\n  groups: [sex, site]\n  {MANY}\n"

CASES = {
    "binary": Case(BINARY, "", BASE, {"decision": "flag", **NATIVE, "weight": "number"}, KNOWN),
    "binary with a score": Case(SCORED, "", BASE, {"decision": "flag", "score": "number", **NATIVE}, KNOWN),
    "weights": Case(
        SCORED + "  weights: {bound: 10}\n",
        "",
        BASE,
        {"decision": "flag", "score": "number", "weight": "number", "sampling_fraction": "number", **NATIVE},
        KNOWN,
    ),
    "nested paths with conditions": Case(
        """
        m:
          task: binary
          groups: [sex, age, decile]
          attributes: {sex: {max_values: 10000}, decile: {max_values: 10000}, age: {bins: [25, 45]}}
        """,
        """
        id: a.id
        time: a.ts
        outcome_time: b.ts
        decision: {path: a.decile, at_least: 0.5}
        outcome: {path: b.verdict, one_of: [yes, "a", 1, true]}
        attributes: {sex: a.who.sex, age: a.who.age, decile: a.decile}
        """,
        {"a.id": "id", "a.ts": "time"},
        {"a.decile": "number", "a.who.sex": "scalar", "a.who.age": "number"},
        {"b.ts": "time", "b.verdict": "scalar"},
    ),
    "equals, and a large at_least": Case(
        "m: {task: binary, groups: [sex], attributes: {sex: {max_values: 10000}}}",
        """
        decision: {path: x, at_least: 9007199254740996}
        outcome: {path: y, equals: true}
        attributes: {sex: sex}
        """,
        BASE,
        {"x": "number", "sex": "scalar"},
        {"y": "scalar"},
    ),
    "composite id": Case(
        BINARY,
        "id: [session, turn]\nattributes: {sex: sex, site: site}",
        {"session": "id", "turn": "id", "time": "time"},
        {"decision": "flag", "sex": "scalar", "site": "scalar"},
        KNOWN,
    ),
    "unix seconds, paths shared": Case(
        SCORED + "  weights: {bound: 10}\n",
        """
        time: {path: ts, unit: unix_seconds}
        outcome_time: {path: known_ts, unit: unix_seconds}
        attributes: {sex: ts, site: weight}
        """,
        {"id": "id", "ts": "seconds"},
        {"decision": "flag", "score": "number", "weight": "number"},
        {"known_ts": "seconds", "outcome": "flag"},
    ),
    "unix milliseconds": Case(
        BINARY,
        "time: {path: ts, unit: unix_milliseconds}\noutcome_time: {path: kts, unit: unix_milliseconds}",
        {"id": "id", "ts": "ms"},
        {"decision": "flag", **NATIVE},
        {"kts": "ms", "outcome": "flag"},
    ),
    "small records only": Case(
        BINARY, "", BASE, {"decision": "flag"}, KNOWN, "limits: {max_message_bytes: 100}\n"
    ),
    "assume_utc": Case(BINARY, "", BASE, {"decision": "flag"}, KNOWN, "time: {assume_utc: true}\n"),
    "regression": Case(
        NUMBERS, "", BASE, {"prediction": "number", **NATIVE}, {"outcome_time": "time", "outcome": "number"}
    ),
    "speech texts": Case(
        f"m:\n  task: speech\n  groups: [sex, site]\n  {MANY}",
        "",
        BASE,
        {"hypothesis": "text", **NATIVE},
        {"outcome_time": "time", "reference": "text"},
    ),
    "speech counts": Case(
        f"m:\n  task: {{type: speech, input: counts}}\n  groups: [sex, site]\n  {MANY}",
        "",
        BASE,
        {**NATIVE},
        {
            "outcome_time": "time",
            **dict.fromkeys(("substitutions", "deletions", "insertions", "words"), "count"),
        },
    ),
    "score of predictions": Case(
        f"m:\n  task: {{type: score, range: [-1, 2]}}\n  groups: [sex, site]\n  {MANY}",
        "",
        BASE,
        {"value": "number", **NATIVE},
        {},
    ),
    "score of outcomes": Case(
        f"m:\n  task: {{type: score, range: [0, 3], when: outcome}}\n  groups: [sex, site]\n  {MANY}",
        "attributes: {sex: sex, site: who.site}",
        BASE,
        {"sex": "scalar", "who.site": "scalar"},
        {"outcome_time": "time", "value": "number"},
    ),
    "two models": Case(
        NUMBERS + BINARY,
        "",
        {**BASE, "model": "model"},
        {"decision": "flag", "prediction": "number", **NATIVE},
        {"outcome_time": "time", "outcome": "flag"},
    ),
    "two models, the other way round": Case(
        SCORED + NUMBERS,
        "attributes: {sex: sex, site: site}",
        {**BASE, "model": "model"},
        {"decision": "flag", "score": "number", "prediction": "number", "sex": "scalar", "site": "scalar"},
        {"outcome_time": "time", "outcome": "number"},
    ),
    "model version": Case(
        "m: {task: binary, groups: [model_version], attributes: {model_version: {max_values: 10000}}}",
        "model_version: meta.version",
        BASE,
        {"decision": "flag", "attributes": "object", "meta.version": "text"},
        KNOWN,
    ),
    "several events in a record": Case(
        BINARY,
        "id: rows[*].id\ndecision: rows[*].decision\noutcome: rows[*].outcome\nattributes: rows[*].who",
        {"time": "time", "rows": "rows"},
        {},
        {"outcome_time": "time"},
    ),
}

# values, as JSON text ----------------------------------------------------------------------------

DEEP = [
    pair[0] * n + middle + pair[1] * n
    for n in (100, 150, 190, 196, 197, 198, 199, 200, 201, 250, 400)
    for pair, middle in (((b"[", b"]"), b""), ((b'{"a":', b"}"), b"1"))
]
HOSTILE = [
    *b'null true false 0 1 -1 -0 2 1.0 0.0 0.5 -0.0 1e0 1E+2 "" "a" " " "1" "0.5" "true" "NaN" []'.split(),
    *b'[1] {} {"a":1} [null] {"sex":{}} {"sex":[1]} {"sex":NaN} {"sex":1e999} {"x":1e20}'.split(),
    *b"NaN Infinity -Infinity 1e999 -1e999 1e-999 1e306 1.7976931348623157e308 tru nul 01 1. .5 - +1".split(),
    *b'"\\ud800" "\\udc00" "\\ud83d\\ude00" "\\u0000" "\\q" "\\u00" \'a\' /**/1 1_0 0x1 "other"'.split(),
    *(str(s * n).encode() for s in (1, -1) for n in (2**53 + 1, 2**63 - 1, 2**63, 2**63 + 1, 2**64, 10**20)),
    b'"=other"', b"1e20", b"9007199254740995", b"9007199254740997.0", b"9223372036854774784",
    b"9" * 308, b"9" * 309, b"-" + b"9" * 310, b"9" * 400, b"9" * 3999, b"9" * 4001, b"9" * 5000,
    b"0." + b"3" * 4100, b"0." + b"0" * 3990 + b"1", b"1e" + b"9" * 40, b"1e-" + b"9" * 40,
    b'"\xff"', b'"\xed\xa0\x80"', b'"\xf0\x9f\x98\x80"', b'"\xc3\xa9"', b'"\x01"', b'"\x00"', b'"a\tb"',
    b'"' + b"x" * 256 + b'"', b'"' + b"x" * 257 + b'"', b'"' + b"y" * 512 + b'"', b'"' + b"y" * 513 + b'"',
    b'"' + b"\xc3\xa9" * 256 + b'"', b'"' + b"\\u00e9" * 257 + b'"', b'"' + b"z" * 100_001 + b'"',
    *DEEP,
]  # fmt: skip
TIMES = [
    *b"""2024-05-01T12:00:00Z 2024-05-01T12:00:01Z 2024-05-01T12:00:00.5Z 2024-05-01T12:00:00.123Z
    2024-05-01T12:00:00.123456Z 2024-05-01T12:00:00.999999999Z 2024-05-01T12:00:00+00:00 2024-02-29T00:00:00Z
    2024-05-01T12:00:00-00:00 2024-05-01T14:00:00+02:00 2024-05-01t12:00:00z 2024-05-01T12:00Z 2024-05-01
    1970-01-01T00:00:00Z 2000-02-29T23:59:59.999+00:00 1972-12-31 2024-05-01T21:56:40Z
    2023-02-29T00:00:00Z 2024-02-30T00:00:00Z 1900-02-29T00:00:00Z 2024-13-01T00:00:00Z 2024-00-01T00:00:00Z
    2024-05-00 2024-05-01T24:00:00Z 2024-05-01T12:60:00Z 2024-05-01T12:00:60Z 2024-05-01T12:00:00
    2024-05-01T12:00:00+24:00 2024-05-01T12:00:00+02:60 1969-12-31T23:59:59Z 1970-01-01T00:00:00+01:00
    2024-05-01T21:56:41Z 2999-01-01T00:00:00Z 9999-12-31T23:59:59-23:59 0000-01-01T00:00:00Z 20240501
    2024-05-01T12:00:00.Z 2024-05-01T12:00:00.1234567890Z 2024-5-1 +2024-05-01 T Z 2024-05-01T12:00:00ZZ
    2024-05-01T12:00:0:Z 2024-05-01T12:00:00/Z""".split(),
    "２０２４-05-01T12:00:00Z".encode(),
]  # fmt: skip
NUMERIC_TIMES = b"""1714564800000 1714564800123 1714564800 100000000000 99999999999 0 -1 -1714564800000
1714600600000 1714600600001 253402300799999 253402300800000 1e12 1714564800000.0 1714564800.5 1714564800.1235
1714564800.0005 -0.5 1e15 1e16 1000000000000001 100000000 99999999.9999 0.1 1.7145648e9""".split()

_quoted = [b'"' + t + b'"' for t in TIMES]
_names = st.sampled_from(
    [b'"f"', b'"m"', b'"x"', b"1", b"1.0", b"true", b'"unknown"', b'""', b"null", b"2.5"]
)
_numbers = st.one_of(
    st.sampled_from([b"0", b"1", b"0.5", b"0.1", b"1.0", b"2", b"1e-3", b"0.30000000000000004"]),
    st.floats(0, 1).map(lambda x: repr(x).encode()),
    st.integers(0, 10**25).map(lambda n: b"0.%025d" % n),
)
_objects = st.lists(
    st.tuples(st.sampled_from([b"sex", b"site", b"s\\u0065x", b"more"]), _names), max_size=3
).map(lambda pairs: b"{" + b",".join(b'"%s": %s' % pair for pair in pairs) + b"}")
_rows = st.lists(
    st.sampled_from(
        b"""{"id":"a","decision":1,"outcome":0} {"id":"b","decision":true} {"id":"c","outcome":1} {"id":"d"}
        {} 5 {"id":"e","decision":2,"who":{"sex":"f"}} null {"id":1,"decision":0,"who":{"sex":[]}}""".split()
    ),
    max_size=3,
).map(lambda rows: b"[" + b",".join(rows) + b"]")
RIGHT: Mapping[str, st.SearchStrategy[bytes]] = {
    "id": st.sampled_from([b'"a"', b'"b"', b'"\\u0061"', b'"\xc3\xa9"', b"5", b"-5", b'"5"', b'"e/1"']),
    "time": st.sampled_from([*_quoted[:17], *NUMERIC_TIMES[:2]]),
    "seconds": st.sampled_from([b"1714564800", b"1714564800.5", b"1714564800.1235", b"100000000"]),
    "ms": st.sampled_from([b"1714564800000", b"1714564800123", b"100000000000"]),
    "flag": st.sampled_from([b"true", b"false", b"1", b"0"]),
    "number": _numbers,
    "count": st.sampled_from([b"0", b"1", b"7", b"100000"]),
    "text": st.sampled_from([b'""', b'"a b"', b'"\\n\\u00e9"', b'"v1"', b'"\xe2\x82\xac"']),
    "scalar": _names,
    "object": _objects,
    "model": st.sampled_from([b'"m"', b'"n"']),
    "rows": _rows,
}
_odd = st.one_of(
    st.sampled_from(HOSTILE),
    st.sampled_from(_quoted),
    st.sampled_from(NUMERIC_TIMES),
    st.text(max_size=5).map(lambda t: b'"' + t.encode("utf-8", "surrogatepass") + b'"'),
    _numbers,
    _objects,
)
_deviations = st.sampled_from(
    ["odd", "odd", "odd", "missing", "null", "twice", "escaped key", "junk", "parent"]
)

# events ------------------------------------------------------------------------------------------


@st.composite
def events(draw: st.DrawFn, case: Case) -> bytes:
    """One event with no, one or a few oddities."""
    part = draw(st.sampled_from(["prediction", "outcome", "joined", "joined"]))
    kinds = dict(case.both)
    if part != "outcome":
        kinds |= case.predicted
    if part != "prediction":
        kinds |= case.known
    if "sampling_fraction" in kinds and draw(st.booleans()):
        del kinds["sampling_fraction"]
    values: list[tuple[str, bytes]] = [(path, draw(RIGHT[kind])) for path, kind in kinds.items()]
    for _ in range(draw(st.sampled_from([0, 0, 1, 1, 1, 2, 3]))):
        i = draw(st.integers(0, len(values) - 1))
        path, _value = values[i]
        match draw(_deviations):
            case "odd":
                values[i] = path, draw(_odd)
            case "missing" if len(values) > 1:
                del values[i]
            case "null":
                values[i] = path, b"null"
            case "twice":
                values.insert(draw(st.integers(0, len(values))), (path, draw(_odd)))
            case "escaped key":
                values[i] = "".join(f"\\u{ord(c):04x}" for c in path[:1]) + path[1:], values[i][1]
            case "junk":
                values.insert(i, (draw(st.sampled_from(["z", "", "é", "\\u007a"])), draw(_odd)))
            case "parent":
                values.insert(draw(st.integers(0, len(values))), (path.split(".")[0], draw(_odd)))
            case _:
                pass
    if draw(st.booleans()):
        values = draw(st.permutations(values))
    tree: Pairs = []
    for path, value in values:
        _insert(tree, path.split("."), value)
    return _render(tree, draw(st.sampled_from([b"", b"", b" ", b"\n\t"])))


def _insert(tree: Pairs, steps: list[str], value: bytes) -> None:
    head, *rest = steps
    if not rest:
        tree.append((head, value))
        return
    for key, inside in tree:
        if key == head and isinstance(inside, list):
            _insert(inside, rest, value)
            return
    below: Pairs = []
    tree.append((head, below))
    _insert(below, rest, value)


def _render(tree: Pairs, space: bytes) -> bytes:
    parts = [
        b'"' + key.encode() + b'":' + space + (_render(v, space) if isinstance(v, list) else v)
        for key, v in tree
    ]
    return b"{" + (b"," + space).join(parts) + b"}"


@st.composite
def mutations(draw: st.DrawFn, payload: bytes) -> bytes:
    """The payload with its bytes changed, or with something around it."""
    at = draw(st.integers(0, len(payload)))
    to = draw(st.integers(0, len(payload)))
    some = st.sampled_from(
        [b'"', b"{", b"}", b"[", b",", b":", b"\\", b"\x00", b"\xff", b"\xc3", b"e", b"-", b"9", b" "]
    )
    match draw(st.sampled_from(["cut", "flip", "insert", "splice", "behind", "before", "whole"])):
        case "cut":
            return payload[:at]
        case "flip":
            bit = 1 << draw(st.integers(0, 7))
            return payload[:at] + bytes(b ^ bit for b in payload[at : at + 1]) + payload[at + 1 :]
        case "insert":
            return payload[:at] + draw(st.one_of(some, st.binary(max_size=3))) + payload[at:]
        case "splice":
            return payload[:at] + payload[to:]
        case "behind":
            return payload + draw(
                st.sampled_from([b" ", b"\r", b"\x00", b"\x0c", b"{}", b",", b"}", b"\n" + payload])
            )
        case "before":
            return (
                draw(st.sampled_from([b"\xef\xbb\xbf", b" ", b"\x0b", b"\x00", b"[", b"\xff\xfe"])) + payload
            )
        case _:
            return draw(
                st.sampled_from(
                    [b"", b" ", b"\r", b"null", b"[]", b"5", b'"a"', b"{}", b"NaN", b"[" + payload + b"]"]
                )
            )


@st.composite
def batches(draw: st.DrawFn, case: Case) -> list[bytes]:
    """Records of a batch: mostly near-valid events, some repeated, some with their bytes changed."""
    found = draw(st.lists(events(case), min_size=1, max_size=5))
    if draw(st.integers(0, 2)) == 0:
        found = [draw(mutations(p)) if draw(st.booleans()) else p for p in found]
    if draw(st.integers(0, 3)) == 0:
        found = [found[0]] * draw(st.integers(1, 3)) + found[1:]
    return found
