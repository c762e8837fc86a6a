"""Inspection: what is found in an input, what is proposed for it, and how the sample fares."""

from __future__ import annotations

import io
import json
import random
from collections.abc import Iterable
from pathlib import Path
from typing import Any

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from rich.console import Console

from monitor.config import Config
from monitor.config_file import parse_config
from monitor.errors import MonitorError
from monitor.inspection import Inspection, inspect_input, render
from monitor.sources.files import FileInput, Progress

DATA = Path(__file__).parents[3] / "shared" / "data"
NOW = 1_750_000_000_000


def inspected(path: Path, *, sample: int = 5_000, config: Config | None = None) -> Inspection:
    found = inspect_input(FileInput(str(path), "events"), sample=sample, config=config, now_ms=lambda: NOW)
    assert parse_config(found.proposal)
    assert found.accepted + sum(r.count for r in found.rejects) == found.read
    return found


def lines(path: Path, rows: Iterable[Any]) -> Path:
    path.write_text("".join(f"{r if isinstance(r, str) else json.dumps(r)}\n" for r in rows), "utf-8")
    return path


def roles(found: Inspection) -> dict[str, list[str]]:
    """Paths by the field of the event that the proposal reads from them."""
    by_role: dict[str, list[str]] = {}
    for profile in found.fields:
        for role in filter(None, profile.role.split(", ")):
            by_role.setdefault(role, []).append(profile.path)
    return by_role


def rendered(found: Inspection, width: int) -> str:
    out = io.StringIO()
    render(found, Console(file=out, width=width))
    return out.getvalue()


def fields_of(found: Inspection) -> Any:
    return parse_config(found.proposal).sources[0].fields


def shared(name: str) -> Path:
    if not (DATA / name).exists():
        pytest.skip(f"{name} is not beside this checkout, in shared/data")
    return DATA / name


def clock(i: int) -> str:
    return f"2024-05-01T{i // 60 % 24:02d}:{i % 60:02d}:00Z"


def native(count: int) -> list[dict[str, Any]]:
    rng = random.Random(1)
    return [
        {
            "id": f"e{i}",
            "time": clock(i),
            "attributes": {"sex": rng.choice("FM"), "age": rng.randint(18, 90), "site": rng.choice("ns")},
            "decision": rng.randint(0, 1),
            "outcome": rng.randint(0, 1),
        }
        for i in range(count)
    ]


# real data -----------------------------------------------------------------------------------------


def test_compas() -> None:
    found = inspected(shared("compas_two_years.csv"))
    assert found.records == found.read == found.accepted == 5_000
    by_role = roles(found)
    assert by_role["id"] == ["id"]
    assert by_role["time"] == ["compas_screening_date"]
    assert by_role["decision"] == ["decile_score"]
    assert by_role["outcome"] == ["two_year_recid"]
    assert {"race", "sex", "age_cat"} <= set(by_role["attribute"])
    assert not {"age", "score_text", "v_decile_score", "is_violent_recid"} & set(by_role["attribute"])
    config = parse_config(found.proposal)
    assert config.sources[0].fields.task_field("decision").at_least == 5
    model = config.models["compas_two_years"]
    assert model.groups[-1] == ("sex", "race")
    assert config.time.bucket.days == 1


def test_asr_sample() -> None:
    found = inspected(shared("asr_whisper_l2arctic_sample.csv"))
    assert found.read == found.accepted == 1_050
    assert roles(found) == {
        "id": ["speaker_id", "file"],
        "attribute": ["l1_background"],
        "reference": ["reference"],
        "hypothesis": ["hypothesis"],
    }
    config = parse_config(found.proposal)
    assert config.sources[0].fields.time.value == "2024-01-01T00:00:00Z"
    assert next(iter(config.models.values())).windows == ("all",)


# shapes of records ---------------------------------------------------------------------------------


def test_native_events_need_no_mapping(tmp_path: Path) -> None:
    found = inspected(lines(tmp_path / "native.jsonl", native(500)))
    assert found.accepted == 500
    assert fields_of(found).attributes == "attributes"
    assert parse_config(found.proposal).models["native"].attribute("age").bins is not None
    assert found.unknown["native"] == {"sex": 0.0, "age": 0.0, "site": 0.0}


def test_predictions_and_outcomes_apart(tmp_path: Path) -> None:
    rows: list[dict[str, Any]] = []
    for row in native(300):
        outcome = row.pop("outcome")
        rows += [row, {"id": row["id"], "outcome_time": row["time"], "outcome": outcome}]
    found = inspected(lines(tmp_path / "apart.jsonl", rows))
    assert found.accepted == 600
    assert roles(found)["id"] == ["id"]
    assert roles(found)["outcome_time"] == ["outcome_time"]


def test_nested_records_with_odd_names(tmp_path: Path) -> None:
    rng = random.Random(2)
    rows = [
        {
            "meta": {"request.id": f"r{i}", "created_at": 1_714_521_600 + i},
            "payload": {"user": {"sex": rng.choice("FM")}, "prediction": {"score": rng.random()}},
            "ground_truth": {"label": rng.random() < 0.3},
        }
        for i in range(400)
    ]
    found = inspected(lines(tmp_path / "nested.jsonl", rows))
    assert found.accepted == 400
    assert fields_of(found).id == ('meta["request.id"]',)
    assert fields_of(found).time.unit == "unix_seconds"
    assert fields_of(found).task_field("decision").at_least == 0.5
    assert roles(found)["score"] == ["payload.prediction.score"]


def test_many_events_in_one_record(tmp_path: Path) -> None:
    rng = random.Random(3)
    rows = [
        {
            "request_id": f"r{i}",
            "timestamp": 1_714_521_600_000 + i * 1000,
            "rows": [
                {"index": k, "gender": rng.choice("fm"), "y_pred": rng.randint(0, 1), "y_true": 0}
                for k in range(rng.randint(1, 5))
            ],
        }
        for i in range(200)
    ]
    found = inspected(lines(tmp_path / "batched.jsonl", rows))
    assert found.records == 200
    assert found.accepted == found.read == sum(len(r["rows"]) for r in rows)
    assert fields_of(found).id == ("request_id", "rows[*].index")
    assert roles(found)["outcome"] == ["rows[*].y_true"]


def test_arrays_side_by_side(tmp_path: Path) -> None:
    rng = random.Random(4)
    rows = [
        {
            "timestamp": 1_714_521_600_000,
            "predictions": [rng.randint(0, 1) for _ in range(3)],
            "instances": [{"id": f"{i}-{k}", "gender": rng.choice("fm")} for k in range(3)],
        }
        for i in range(100)
    ]
    found = inspected(lines(tmp_path / "served.jsonl", rows))
    assert found.accepted == found.read == 300
    assert roles(found)["decision"] == ["predictions[*]"]


def test_an_array_beside_a_whole_event_is_left_alone(tmp_path: Path) -> None:
    rows = [{**row, "history": [{"outcome": 1, "decision": 0}]} for row in native(100)]
    found = inspected(lines(tmp_path / "history.jsonl", rows))
    assert found.read == found.accepted == 100
    assert roles(found)["outcome"] == ["outcome"]


# tasks ---------------------------------------------------------------------------------------------


def test_regression(tmp_path: Path) -> None:
    rng = random.Random(5)
    rows = [
        {"uuid": f"u{i}", "date": "2024-01-02 10:00:00", "region": rng.choice("ab"),
         "estimated_price": rng.uniform(5e4, 8e5), "actual_price": rng.uniform(5e4, 8e5)}
        for i in range(200)
    ]  # fmt: skip
    found = inspected(lines(tmp_path / "prices.jsonl", rows))
    config = parse_config(found.proposal)
    assert found.accepted == 200
    assert config.models["prices"].task.model_dump()["range"] == (0, 2_000_000)
    assert config.time.assume_utc


def test_one_number_left_is_a_score(tmp_path: Path) -> None:
    rng = random.Random(6)
    rows = [
        {"id": i, "ts": clock(i), "lang": rng.choice("de"), "wait": rng.random() * 90} for i in range(200)
    ]
    found = inspected(lines(tmp_path / "waits.jsonl", rows))
    assert found.accepted == 200
    assert roles(found)["value"] == ["wait"]
    assert parse_config(found.proposal).models["waits"].task.model_dump()["range"] == (0, 100)


def test_word_counts(tmp_path: Path) -> None:
    row = {"time": clock(0), "substitutions": 1, "deletions": 0, "insertions": 2, "words": 9}
    rows = [{**row, "id": i, "accent": "ab"[i % 2]} for i in range(100)]
    found = inspected(lines(tmp_path / "counts.jsonl", rows))
    assert found.accepted == 100
    assert "type: speech, input: counts" in found.proposal


def test_flags_written_as_words(tmp_path: Path) -> None:
    path = tmp_path / "loans.csv"
    body = "".join(
        f"L{i},{clock(i)},{'fm'[i % 2]},{'yes' if i % 3 else 'no'},{i % 5 == 0}\n" for i in range(99)
    )
    path.write_text(f"loan_id,applied_at,gender,approved,repaid\n{body}")
    found = inspected(path)
    assert found.accepted == 99
    assert fields_of(found).task_field("decision").equals == "yes"
    assert roles(found)["outcome"] == ["repaid"]


def test_numeric_attributes_of_csv_are_binned(tmp_path: Path) -> None:
    path = tmp_path / "ages.csv"
    body = "".join(f"{i},{clock(i)},{18 + i % 70},{i % 2},{i % 3 % 2}\n" for i in range(300))
    path.write_text(f"id,time,age,decision,outcome\n{body}")
    found = inspected(path)
    assert parse_config(found.proposal).models["ages"].attribute("age").bins == (35, 50, 70)
    assert found.accepted == 300, found.rejects


# robustness ----------------------------------------------------------------------------------------


def test_rejects_are_counted_by_reason_with_an_example(tmp_path: Path) -> None:
    rows = [*native(98), "{", '{"id": "x", "time": 3, "decision": 1, "outcome": 1}', "[1]", '{"decision": 7}']
    found = inspected(lines(tmp_path / "mixed.jsonl", rows))
    assert (found.records, found.read, found.accepted) == (102, 102, 98)
    reasons = {r.reason: r for r in found.rejects}
    assert reasons["invalid_json"].count == 1
    assert reasons["invalid_json"].example.startswith("at 99: ")
    assert "not_an_object" in reasons


def test_disorder_asks_for_grace(tmp_path: Path) -> None:
    rows = native(200)
    rows[0], rows[150] = rows[150], rows[0]
    config = parse_config(inspected(lines(tmp_path / "late.jsonl", rows)).proposal)
    assert config.time.grace.total_seconds() == 86_400


def test_a_given_configuration_is_tried(tmp_path: Path) -> None:
    config = parse_config("models: {m: {task: binary, groups: [sex, ward]}}")
    rows = [{k: v for k, v in row.items() if i % 4 or k != "id"} for i, row in enumerate(native(100))]
    found = inspected(lines(tmp_path / "given.jsonl", rows), config=config)
    assert found.judged_by == "the configuration"
    assert found.accepted == 100
    assert found.unknown == {"m": {"sex": 0.0, "ward": 1.0}}


def test_sample_bounds_what_is_read(tmp_path: Path) -> None:
    path, progress = lines(tmp_path / "long.jsonl", native(2_500)), Progress()
    found = inspect_input(FileInput(str(path), "events"), sample=1_200, now_ms=lambda: NOW, progress=progress)
    assert found.records == found.read == 1_200
    assert progress.bytes > 0


def test_parquet(tmp_path: Path) -> None:
    polars = pytest.importorskip("polars", reason="Parquet needs polars")
    rows = [{**row, **row.pop("attributes")} for row in native(300)]
    polars.DataFrame(rows).write_parquet(tmp_path / "native.parquet")
    found = inspected(tmp_path / "native.parquet")
    assert found.accepted == 300


def test_empty_and_absent_inputs(tmp_path: Path) -> None:
    found = inspected(lines(tmp_path / "empty.jsonl", []))
    assert (found.records, found.read, found.fields) == (0, 0, ())
    assert "0 of 0" in rendered(found, 80)
    with pytest.raises(MonitorError, match="cannot read"):
        inspect_input(FileInput(str(tmp_path / "absent.jsonl"), "events"), sample=1, now_ms=lambda: NOW)


@pytest.mark.parametrize("width", [80, 100])
def test_rendering_fits_and_cannot_steer_the_terminal(tmp_path: Path, width: int) -> None:
    rows = [
        {**row, "ward": f"[red]{'x' * 40}\x07{i % 2}", "\x1b[31mx": i / 7}
        for i, row in enumerate(native(100))
    ]
    found = inspected(lines(tmp_path / "native.jsonl", rows))
    text = rendered(found, width)
    assert "\x1b" not in text
    assert "\x07" not in text
    assert "[red]" in text
    assert "for you to decide" in " ".join(text.split())
    head, *body = text.splitlines()
    assert head.endswith("native.jsonl: 100 records") or "records" in body[0]
    assert all(len(line) <= width for line in body)


def test_proposal_is_short_and_leaves_the_choice_to_the_user(tmp_path: Path) -> None:
    found = inspected(lines(tmp_path / "native.jsonl", native(100)))
    assert 10 <= len(found.proposal.splitlines()) <= 20
    assert "Which attributes are sensitive is for you to decide" in found.proposal


def test_names_with_quotes_and_control_characters(tmp_path: Path) -> None:
    rows = [{**row, 'the "real"\tward\\': "ab"[i % 2]} for i, row in enumerate(native(100))]
    found = inspected(lines(tmp_path / "names.jsonl", rows))
    assert found.accepted == 100


@pytest.mark.parametrize(
    ("model", "fields", "number"),
    [
        (
            "{task: binary, groups: [x]}",
            "{time: {path: x, unit: unix_seconds}, attributes: {x: x}}",
            1_714_521_600,
        ),
        ("{task: binary, groups: [x], weights: {bound: 10}}", "{weight: x, attributes: {x: x}}", 2),
    ],
)
def test_a_text_where_a_shared_path_needs_a_number_is_one_reject(
    tmp_path: Path, model: str, fields: str, number: int
) -> None:
    config = parse_config(f"models: {{m: {model}}}\nsources: [{{fields: {fields}}}]\n")
    rows = [{"id": i, "time": clock(i), "decision": 1, "x": x} for i, x in enumerate((number, "x"))]
    found = inspected(lines(tmp_path / "shared.jsonl", rows), config=config)
    assert (found.read, found.accepted) == (2, 1)


SCALARS = (
    st.none() | st.booleans() | st.integers() | st.floats(allow_nan=False, allow_infinity=False)
    | st.text(max_size=8) | st.sampled_from(["2024-01-02", "yes", "no", "a b c", 1_714_521_600])
)  # fmt: skip
NAMES = st.text(max_size=5) | st.sampled_from(
    [
        "id",
        "time",
        "age",
        "sex",
        "score",
        "outcome",
        "decision",
        "model",
        "prediction",
        "text",
        "model_version",
    ]
)
VALUES = st.recursive(
    SCALARS, lambda v: st.lists(v, max_size=3) | st.dictionaries(NAMES, v, max_size=4), max_leaves=8
)


@settings(
    max_examples=200, deadline=None, derandomize=True,
    suppress_health_check=[HealthCheck.function_scoped_fixture, HealthCheck.too_slow],
)  # fmt: skip
@given(st.lists(st.dictionaries(NAMES, VALUES, max_size=6), max_size=6))
def test_any_records_give_a_proposal_that_loads(tmp_path: Path, rows: list[dict[str, Any]]) -> None:
    found = inspected(lines(tmp_path / "any.jsonl", rows))
    assert found.records == len(rows)
    rendered(found, 80)
