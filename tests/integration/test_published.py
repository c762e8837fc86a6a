"""Published figures on real data, from files: joined, and split into predictions and outcomes."""

from __future__ import annotations

import csv
import json
import random
from collections import Counter
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any

import pytest

from monitor.config_file import load_config
from monitor.replay import Replayed, replay
from monitor.sinks.dead_letter import DeadLetters
from monitor.sources.files import FileInput

ROOT = Path(__file__).parents[2]
EXAMPLES = ROOT / "deploy" / "examples"
DATA = ROOT.parent / "shared" / "data"
NOW = int(datetime(2026, 1, 1, tzinfo=UTC).timestamp() * 1000)
GRACE = timedelta(days=7)
"""As in compas.yaml."""

COMPAS = {
    "African-American": (1369, 805, 990, 532, 0.4485, 0.2799),
    "Caucasian": (505, 349, 1139, 461, 0.2345, 0.4772),
}
"""TP, FP, TN, FN, false positive rate, false negative rate."""
ASR = {
    "Arabic": (447, 33, 74, 3138, 0.1765),
    "Chinese": (536, 59, 64, 3137, 0.2101),
    "Hindi": (243, 28, 34, 3135, 0.0973),
}
"""Substitutions, deletions, insertions, reference words, word error rate."""


def data(name: str) -> Path:
    """A file of the data that lies beside the repository."""
    path = DATA / name
    if not path.exists():
        pytest.skip(f"shared/data/{name} is not beside the repository")
    return path


def run(config: str, *paths: Path) -> Replayed:
    return replay(
        load_config(EXAMPLES / config),
        [FileInput(str(path), "events") for path in paths],
        now_ms=lambda: NOW,
        dead_letters=DeadLetters(None),
    )


def of(replayed: Replayed, metric: str, **group: str) -> dict[str, Any]:
    rows = replayed.document()["groups"]
    (row,) = [r for r in rows if r["metric"] == metric and r["group"] == group]
    found: dict[str, Any] = row
    return found


def compas_rows() -> list[dict[str, str]]:
    with data("compas_two_years.csv").open(newline="") as stream:
        return list(csv.DictReader(stream))


def confusion(replayed: Replayed, **group: str) -> tuple[int, int, int, int]:
    """TP, FP, TN, FN from numerators and denominators."""
    tpr, fpr = (of(replayed, f"{kind}_positive_rate", **group) for kind in ("true", "false"))
    return (
        tpr["numerator"],
        fpr["numerator"],
        fpr["denominator"] - fpr["numerator"],
        tpr["denominator"] - tpr["numerator"],
    )


def test_compas_gives_the_published_counts() -> None:
    replayed = run("compas.yaml", data("compas_two_years.csv"))
    assert replayed.events == {
        "read": 7214,
        "accepted": 7214,
        "rejected": 0,
        "joined": 7214,
        "unmatched_predictions": 0,
        "unmatched_outcomes": 0,
        "duplicates": 0,
    }
    for race, (*counts, fpr, fnr) in COMPAS.items():
        assert confusion(replayed, race=race) == tuple(counts)
        assert round(of(replayed, "false_positive_rate", race=race)["value"], 4) == fpr
        assert round(of(replayed, "false_negative_rate", race=race)["value"], 4) == fnr


@pytest.mark.parametrize("attributes", [(), ("race",), ("sex",), ("age_cat",), ("race", "sex")])
def test_compas_gives_the_counts_of_every_group(attributes: tuple[str, ...]) -> None:
    replayed = run("compas.yaml", data("compas_two_years.csv"))
    cells: Counter[tuple[tuple[str, ...], bool, bool]] = Counter()
    for row in compas_rows():
        group = tuple(row[a] for a in attributes)
        cells[group, int(row["decile_score"]) >= 5, row["two_year_recid"] == "1"] += 1
    groups = {g for g, _, _ in cells}
    reported = {
        tuple(r["group"].values())
        for r in replayed.document()["groups"]
        if tuple(r["group"]) == attributes and r["status"] == "ok"
    }
    assert reported == groups
    for group in groups:
        expected = tuple(
            cells[group, d, y] for d, y in ((True, True), (True, False), (False, False), (False, True))
        )
        assert confusion(replayed, **dict(zip(attributes, group, strict=True))) == expected


Line = tuple[datetime, dict[str, str]]


def day(text: str) -> datetime:
    return datetime.fromisoformat(text).replace(tzinfo=UTC)


def predictions_and_outcomes() -> tuple[list[Line], list[Line]]:
    predictions, outcomes = [], []
    kept = ("id", "compas_screening_date", "sex", "age_cat", "race", "decile_score")
    for row in compas_rows():
        screening = day(row["compas_screening_date"])
        known = screening + timedelta(days=730)
        if row["two_year_recid"] == "1" and row["r_offense_date"]:
            known = day(row["r_offense_date"])
        predictions.append((screening, {k: row[k] for k in kept}))
        outcome = {"id": row["id"], "two_year_recid": row["two_year_recid"]}
        outcomes.append((known, {**outcome, "outcome_date": known.date().isoformat()}))
    return predictions, outcomes


def test_no_offence_comes_before_its_screening() -> None:
    """Else ``outcome_wait`` would decide which of them count."""
    predictions, outcomes = predictions_and_outcomes()
    delays = [known - made for (made, _), (known, _) in zip(predictions, outcomes, strict=True)]
    assert min(delays) >= timedelta(0)
    assert max(delays) <= timedelta(days=1100)


def arrivals(chosen: random.Random, lines: list[Line]) -> list[dict[str, str]]:
    """Lines by time, displaced by less than grace; one in twenty comes again within the same bounds."""
    again = chosen.sample(lines, len(lines) // 20)
    late = [(time + chosen.random() * GRACE * 0.999, record) for time, record in [*lines, *again]]
    late.sort(key=lambda line: line[0])
    return [record for _, record in late]


def write(path: Path, records: list[dict[str, str]]) -> None:
    if path.suffix == ".csv":
        with path.open("w", newline="") as stream:
            writer = csv.DictWriter(stream, list(records[0]))
            writer.writeheader()
            writer.writerows(records)
        return
    numbers = ("decile_score", "two_year_recid")
    with path.open("w") as stream:
        for record in records:
            typed = {k: int(v) if k in numbers else v for k, v in record.items()}
            stream.write(json.dumps(typed) + "\n")


DELAY = "outcome_delay_seconds"
"""The one metric that is about when outcomes came: in the joined file they come with the prediction."""


@pytest.mark.parametrize("seed", range(10))
def test_split_compas_gives_the_same(seed: int, tmp_path: Path) -> None:
    whole = run("compas.yaml", data("compas_two_years.csv")).document()
    chosen = random.Random(seed)
    predictions, outcomes = predictions_and_outcomes()
    suffix = "csv" if seed % 2 else "jsonl"
    paths = [tmp_path / f"predictions.{suffix}", tmp_path / f"outcomes.{suffix}"]
    write(paths[0], arrivals(chosen, predictions))
    write(paths[1], arrivals(chosen, outcomes))
    chosen.shuffle(paths)
    split = run("compas.yaml", *paths).document()
    assert split["rejects"] == {}
    assert split["events"] == {
        "read": 2 * 7574,
        "accepted": 2 * 7574,
        "rejected": 0,
        "joined": 7214,
        "unmatched_predictions": 0,
        "unmatched_outcomes": 0,
        "duplicates": 2 * 360,
    }
    for part in ("groups", "gaps"):
        expected, found = ([r for r in d[part] if r["metric"] != DELAY] for d in (whole, split))
        assert found == expected
    # the delay itself, from the dates
    total = sum(
        (known - made).total_seconds() for (made, _), (known, _) in zip(predictions, outcomes, strict=True)
    )
    (delay,) = [r for r in split["groups"] if r["metric"] == DELAY and not r["group"]]
    assert delay["denominator"] == 7214
    assert delay["value"] == pytest.approx(total / 7214, abs=1.0)


def test_asr_gives_the_counts_of_each_first_language() -> None:
    replayed = run("asr.yaml", data("asr_whisper_l2arctic_sample.csv"))
    assert replayed.events["joined"] == 1050
    for language, (*errors, words, rate) in ASR.items():
        rows = {
            kind: of(replayed, f"{kind}_rate", l1_background=language)
            for kind in ("substitution", "deletion", "insertion", "word_error")
        }
        assert [rows[k]["numerator"] for k in ("substitution", "deletion", "insertion")] == errors
        assert {r["denominator"] for r in rows.values()} == {words}
        assert rows["word_error"]["numerator"] == sum(errors)
        assert round(rows["word_error"]["value"], 4) == rate
