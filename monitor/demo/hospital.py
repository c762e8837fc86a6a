"""The demo's traffic: an invented hospital that dictates, and corrects what the service heard."""

from __future__ import annotations

import heapq
from collections.abc import Mapping, Sequence

import msgspec
import numpy as np

from monitor.times import format_time

MINUTES = 360
OPENED = 180
"""Simulated minutes, and the minute in which the new scanner is switched on."""
PER_MINUTE = 64
WARD = "ward-7"
MINUTE_MS = 60_000

ACCENTS = {
    "southern english": (0.30, 0.070, 0.00),
    "northern english": (0.22, 0.075, 0.00),
    "welsh": (0.14, 0.080, 0.00),
    "scottish": (0.18, 0.084, 0.34),
    "nigerian": (0.16, 0.086, 0.17),
}
"""Share of the traffic, share of words misheard, and what the scanner adds to that in its ward."""
_WARDS = {"ward-2": (0.24, 46), "ward-4": (0.22, 52), WARD: (0.32, 48), "theatre-1": (0.22, 60)}
"""Share of the traffic, and the usual noise in dB."""
_SCANNER_DB = 23
_SAID = tuple(
    text.split()
    for text in (
        "the patient reports chest pain since early this morning without any shortness of breath",
        "blood pressure is one hundred and fifty over ninety on the left arm",
        "please continue the antibiotic twice daily for another seven days",
        "no known allergies and no history of diabetes in the family",
        "the wound on the right knee is clean and dry with no sign of infection",
        "she was admitted with a fever and a productive cough three days ago",
        "start fifteen milligrams in the evening and review on thursday",
        "the x ray of the left hand shows no fracture",
        "he is able to walk to the bathroom with the help of one nurse",
        "temperature is thirty eight point two and the pulse is regular",
        "repeat the blood count tomorrow and call the surgeon with the result",
        "discharge is planned for friday if the pain remains under control",
        "the abdomen is soft and there is mild tenderness on the right side",
        "she has taken the tablets as prescribed and sleeps well at night",
    )
)
_MISHEARD = {
    "fifteen": "fifty", "fifty": "fifteen", "ninety": "nineteen", "left": "lift", "right": "write",
    "no": "now", "known": "none", "knee": "need", "thirty": "thirteen", "hand": "and", "mild": "mile",
    "pain": "pane", "fever": "favour", "daily": "dairy", "dry": "try", "walk": "work", "the": "a",
}  # fmt: skip
_WORDS = sorted({word for text in _SAID for word in text})


class Hospital:
    """Transcripts and, minutes later, their corrected texts, as the bytes of JSON events.

    Everything follows from ``seed``: which events, with which errors, at which time after ``start_ms``.
    ``delay`` stretches or shortens the wait for corrected texts (median 4 minutes), and every id begins
    with ``prefix``.
    """

    def __init__(self, seed: int, start_ms: int, *, delay: float = 1.0, prefix: str = "u") -> None:
        self._random = np.random.default_rng(seed)
        self._start = start_ms
        self._delay = delay
        self._prefix = prefix
        self._waiting: list[tuple[int, int, bytes]] = []
        self._sent = 0

    def minute(self, number: int) -> list[bytes]:
        """Events that arrive in a minute, in their order of arrival."""
        begin = self._start + number * MINUTE_MS
        return self.between(begin, begin + MINUTE_MS, PER_MINUTE, scanner=number >= OPENED)

    def between(self, begin_ms: int, end_ms: int, expected: float, *, scanner: bool) -> list[bytes]:
        """Events that arrive in a span, of about ``expected`` more utterances; spans follow each other."""
        for _ in range(int(self._random.poisson(expected))):
            self._speak(begin_ms + int(self._random.integers(end_ms - begin_ms)), scanner=scanner)
        arrived = []
        while self._waiting and self._waiting[0][0] < end_ms:
            arrived.append(heapq.heappop(self._waiting)[2])
        return arrived

    def _speak(self, at: int, *, scanner: bool) -> None:
        random = self._random
        accent, (_, rate, harm) = _pick(random, ACCENTS)
        ward, (_, usual) = _pick(random, _WARDS)
        scanner = scanner and ward == WARD
        noise = int(random.normal(usual + _SCANNER_DB * scanner, 3))
        rate += harm * scanner + 0.0005 * max(noise - 50, 0)
        said = _SAID[int(random.integers(len(_SAID)))]
        heard = _mishear(random, said, min(rate * float(random.gamma(4, 0.25)), 0.9))
        name = f"{self._prefix}{self._sent:06d}"
        attributes: dict[str, object] = {"accent": accent, "ward": ward, "noise_db": noise}
        luck = float(random.random())
        if luck < 0.04:
            del attributes["accent"]
        prediction: dict[str, object] = {
            "id": name,
            "time": format_time(at),
            "attributes": attributes,
            "hypothesis": " ".join(heard),
        }
        self._send(at, prediction)
        known = at + int(min(random.lognormal(1.4, 0.5), 20) * MINUTE_MS * self._delay)
        if luck < 0.97:
            self._send(known, {"id": name, "time": format_time(known), "reference": " ".join(said)})
        if luck > 0.996:
            self._send(at, prediction)  # a retry of the producer: counts once
        elif luck > 0.992 and at - self._start > 10 * MINUTE_MS:
            self._send_broken(at, prediction)

    def _send_broken(self, at: int, event: dict[str, object]) -> None:
        event = {**event, "id": f"{event['id']}-b"}
        raw = msgspec.json.encode(event)
        match int(self._random.integers(5)):
            case 0:
                self._send(at, raw[: len(raw) // 2])
            case 1:
                self._send(at, raw.replace(b" ", b"\xe9", 1))
            case 2:
                self._send(at, {k: v for k, v in event.items() if k != "time"})
            case 3:
                self._send(at, {**event, "hypothesis": 7})
            case _:
                late = max(at - 45 * MINUTE_MS, self._start - MINUTE_MS)
                self._send(at, {**event, "time": format_time(late)})

    def _send(self, at: int, event: Mapping[str, object] | bytes) -> None:
        arrival = at + int(self._random.integers(15_000))
        raw = event if isinstance(event, bytes) else msgspec.json.encode(event)
        heapq.heappush(self._waiting, (arrival, self._sent, raw))
        self._sent += 1


def _pick(
    random: np.random.Generator, table: Mapping[str, tuple[float, ...]]
) -> tuple[str, tuple[float, ...]]:
    """A row of the table, drawn by the shares that its rows begin with."""
    ends = np.cumsum([row[0] for row in table.values()])
    chosen = min(int(np.searchsorted(ends, random.random(), side="right")), len(ends) - 1)
    return list(table.items())[chosen]


def _mishear(random: np.random.Generator, said: Sequence[str], rate: float) -> list[str]:
    heard = []
    for word, chance in zip(said, random.random(len(said)).tolist(), strict=True):
        if chance >= rate:
            heard.append(word)
        elif chance < 0.70 * rate:
            heard.append(_MISHEARD.get(word) or _WORDS[int(random.integers(len(_WORDS)))])
        elif chance > 0.88 * rate:
            heard += [word, _WORDS[int(random.integers(len(_WORDS)))]]
    return heard
