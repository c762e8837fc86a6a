"""Task speech against jiwer, a textbook edit distance and published counts."""

from __future__ import annotations

import csv
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import jiwer
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from monitor.tasks.speech import (
    WORD_COUNTS,
    NormaliseOptions,
    Speech,
    SpeechOptions,
    normalise,
    word_errors,
)
from tests.oracle.helpers import COMMON, Oracle, Rows, cell_table, check, over

WEIGHT_BOUND = 4.0
RATE_BOUND = 2.0
SAMPLE = Path(__file__).parents[3] / "shared" / "data" / "asr_whisper_l2arctic_sample.csv"
TEXTS = SpeechOptions(utterance_rate_bound=RATE_BOUND)
COUNTS = SpeechOptions(input="counts", utterance_rate_bound=RATE_BOUND)
NORMALISED = jiwer.Compose(
    [jiwer.ToLowerCase(), jiwer.RemovePunctuation(), jiwer.RemoveMultipleSpaces(), jiwer.Strip()]
)

Errors = tuple[int, int, int, int, int, int]
"""Substitutions, deletions, insertions, words, character errors, characters of one utterance."""


def edit_distance(one: Sequence[Any], other: Sequence[Any]) -> int:
    """Levenshtein distance by the textbook recurrence (Wagner and Fischer 1974)."""
    row = list(range(len(other) + 1))
    for i, a in enumerate(one, 1):
        previous, row[0] = row[0], i
        for j, b in enumerate(other, 1):
            previous, row[j] = row[j], min(row[j] + 1, row[j - 1] + 1, previous + (a != b))
    return row[-1]


def utterances(rows: Rows) -> list[tuple[Errors, float]]:
    """Errors of each matched utterance by jiwer, or as given, and its weight."""
    if "words" in rows.outcomes:
        return [((s, d, i, n, 0, 0), w) for s, d, i, n, w in rows.columns(*WORD_COUNTS)]
    found = []
    for hypothesis, reference, weight in rows.columns("hypothesis", "reference"):
        heard, said = NORMALISED(hypothesis), NORMALISED(reference)
        output = jiwer.process_words(said, heard)
        counts = (output.substitutions, output.deletions, output.insertions)
        assert sum(counts) == edit_distance(said.split(), heard.split())
        found.append(((*counts, len(said.split()), edit_distance(said, heard), len(said)), weight))
    return found


def pooled(numerator: Callable[[Errors], float], denominator: Callable[[Errors], float]) -> Oracle:
    """An oracle: weighted sum of one quantity over weighted sum of another."""

    def oracle(rows: Rows) -> float | None:
        found = utterances(rows)
        return over(sum(w * numerator(e) for e, w in found), sum(w * denominator(e) for e, w in found))

    return oracle


def mean_rate(rows: Rows) -> float | None:
    rates = [(min(sum(e[:3]) / e[3], RATE_BOUND), w) for e, w in utterances(rows) if e[3]]
    return over(sum(r * w for r, w in rates), sum(w for _, w in rates))


ORACLES: dict[str, Oracle] = {
    **COMMON,
    "word_error_rate": pooled(lambda e: sum(e[:3]), lambda e: e[3]),
    "substitution_rate": pooled(lambda e: e[0], lambda e: e[3]),
    "deletion_rate": pooled(lambda e: e[1], lambda e: e[3]),
    "insertion_rate": pooled(lambda e: e[2], lambda e: e[3]),
    "character_error_rate": pooled(lambda e: e[4], lambda e: e[5]),
    "mean_utterance_error_rate": mean_rate,
    "sentence_error_rate": pooled(lambda e: sum(e[:3]) > 0, lambda e: 1),
    "hallucination_share": pooled(lambda e: sum(e[:3]) > e[3], lambda e: 1),
}

# numbers of reference words are powers of two: rates are then exact on the grid
WORDS = st.sampled_from(["a", "b", "It's", "so", "HELLO", "été", "so,"])
REFERENCES = st.sampled_from([0, 1, 2, 4, 8]).flatmap(lambda n: st.lists(WORDS, min_size=n, max_size=n))
ATTRIBUTES = (st.sampled_from(["x", "y", None]), st.sampled_from(["u", "v", None]))
WEIGHT = st.integers(1, 4096)
TEXT_EVENTS = st.lists(
    st.tuples(*ATTRIBUTES, st.lists(WORDS, max_size=9), REFERENCES, WEIGHT, st.booleans()),
    min_size=1,
    max_size=15,
)
COUNT_EVENTS = st.lists(
    st.tuples(
        *ATTRIBUTES,
        st.tuples(
            st.integers(0, 5), st.integers(0, 5), st.integers(0, 40), st.sampled_from([0, 1, 2, 4, 16])
        ),
        WEIGHT,
        st.booleans(),
    ),
    min_size=1,
    max_size=40,
)


def test_every_metric_has_an_oracle() -> None:
    assert set(Speech(TEXTS).metrics) == set(ORACLES)


@pytest.mark.parametrize("weighted", [False, True])
@settings(max_examples=40, deadline=None, derandomize=True)
@given(events=TEXT_EVENTS)
def test_random_texts(events: list[tuple[Any, ...]], weighted: bool) -> None:
    a, b, hypothesis, reference, weight, matched = zip(*events, strict=True)
    rows = Rows(
        {"a": list(a), "b": list(b)},
        {"hypothesis": ["  ".join(words) for words in hypothesis]},
        {"reference": [" ".join(words) + "." for words in reference]},
        np.array(matched, bool),
        np.array(weight) / 1024 if weighted else None,
    )
    bound = WEIGHT_BOUND if weighted else None
    check(Speech(TEXTS, weight_bound=bound), rows, ORACLES)
    no_characters = TEXTS.model_copy(update={"characters": False})
    check(Speech(no_characters, weight_bound=bound), rows, ORACLES)


@pytest.mark.parametrize("weighted", [False, True])
@settings(max_examples=60, deadline=None, derandomize=True)
@given(events=COUNT_EVENTS)
def test_random_counts(events: list[tuple[Any, ...]], weighted: bool) -> None:
    a, b, counts, weight, matched = zip(*events, strict=True)
    rows = Rows(
        {"a": list(a), "b": list(b)},
        {},
        {name: np.array(column) for name, column in zip(WORD_COUNTS, zip(*counts, strict=True), strict=True)},
        np.array(matched, bool),
        np.array(weight) / 1024 if weighted else None,
    )
    check(Speech(COUNTS, weight_bound=WEIGHT_BOUND if weighted else None), rows, ORACLES)


@settings(max_examples=200, deadline=None, derandomize=True)
@given(st.lists(WORDS, max_size=12), st.lists(WORDS, max_size=12))
def test_alignment_is_that_of_jiwer(reference: list[str], hypothesis: list[str]) -> None:
    output = jiwer.process_words(" ".join(reference), " ".join(hypothesis))
    expected = (output.substitutions, output.deletions, output.insertions)
    assert word_errors(reference, hypothesis) == expected


@settings(max_examples=200, deadline=None, derandomize=True)
@given(
    st.text(st.characters(exclude_characters="\t\n\r\x0b\x0c\x1c\x1d\x1e\x1f\x85\u2028\u2029"), max_size=30)
)
def test_normalisation_is_that_of_jiwer(text: str) -> None:
    lower_and_bare = normalise(NormaliseOptions(collapse_spaces=False))
    assert lower_and_bare(text) == jiwer.RemovePunctuation()(jiwer.ToLowerCase()(text))
    assert normalise(NormaliseOptions())(text) == " ".join(NORMALISED(text).split())


def test_character_error_rate_is_that_of_jiwer() -> None:
    rows = sample_like(200)
    task = Speech(TEXTS)
    table = cell_table(task, rows, np.zeros(200, np.int64), 1)
    sums = dict(zip((s.name for s in task.statistics), table[0].tolist(), strict=True))
    references = [NORMALISED(t) for t in rows.outcomes["reference"]]
    hypotheses = [NORMALISED(t) for t in rows.predictions["hypothesis"]]
    expected = jiwer.cer(references, hypotheses)
    assert abs(sums["character_errors"] / sums["characters"] - expected) <= 1e-12


def sample_like(n: int) -> Rows:
    """Seeded utterances of 1 to 12 words, the hypothesis with some of them changed."""
    rng = np.random.default_rng(7)
    vocabulary = ["red", "road", "reads", "Rome", "roam", "a", "the", "then"]
    said = [[str(w) for w in rng.choice(vocabulary, rng.integers(1, 13))] for _ in range(n)]
    heard = [[str(rng.choice(vocabulary)) if rng.random() < 0.3 else w for w in words] for words in said]
    return Rows(
        {"a": ["x"] * n, "b": ["u"] * n},
        {"hypothesis": [" ".join(words) + "!" for words in heard]},
        {"reference": [" ".join(words) for words in said]},
        np.ones(n, bool),
    )


def test_published_counts_of_the_whisper_sample() -> None:
    if not SAMPLE.exists():
        pytest.skip("the shared sample of Whisper transcripts is not beside this checkout")
    with SAMPLE.open(newline="", encoding="utf-8") as file:
        lines = list(csv.DictReader(file))
    languages = ["Arabic", "Chinese", "Hindi"]
    cells = np.array([languages.index(line["l1_background"]) for line in lines], np.int64)
    rows = Rows(
        {"l1": [line["l1_background"] for line in lines], "speaker": [line["speaker_id"] for line in lines]},
        {"hypothesis": [line["hypothesis"] for line in lines]},
        {"reference": [line["reference"] for line in lines]},
        np.ones(len(lines), bool),
    )
    task = Speech(SpeechOptions())
    table = cell_table(task, rows, cells, 3)
    first = [s.name for s in task.statistics].index("substitutions")
    assert [s.name for s in task.statistics[first : first + 4]] == list(WORD_COUNTS)
    assert table[:, first : first + 4].tolist() == [
        [447, 33, 74, 3138],
        [536, 59, 64, 3137],
        [243, 28, 34, 3135],
    ]
