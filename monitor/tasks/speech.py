"""Speech recognition: word and character errors of transcripts, from texts or from counts."""

from __future__ import annotations

import re
import sys
import unicodedata
from collections.abc import Callable, Mapping, Sequence
from functools import cache
from typing import Annotated, Literal

import numpy as np
from pydantic import AfterValidator
from pydantic import Field as Setting
from rapidfuzz.distance import Levenshtein
from xxhash import xxh3_64_intdigest

from monitor.tasks.base import (
    COMMON_METRICS,
    Column,
    Field,
    Floats,
    Form,
    Metric,
    Records,
    Scatter,
    Statistic,
    Task,
    TaskOptions,
    Weighting,
    blank_records,
    common_statistics,
    metrics_table,
)

MAX_COUNT = 100_000
"""Most errors or words of one utterance, and most characters of one text."""

WORD_COUNTS = ("substitutions", "deletions", "insertions", "words")
CHARACTER_COUNTS = ("character_errors", "characters")


def _check_replacement(pair: tuple[str, str]) -> tuple[str, str]:
    pattern, replacement = pair
    try:
        re.compile(pattern).sub(replacement, "")
    except (re.error, IndexError) as error:
        raise ValueError(f"{pattern!r} -> {replacement!r} is not a valid replacement: {error}") from None
    return pair


Replacement = Annotated[tuple[str, str], Setting(strict=False), AfterValidator(_check_replacement)]


class NormaliseOptions(TaskOptions):
    """What is done to both texts before they are compared, in this order."""

    lowercase: bool = Setting(default=True, description="turn to lower case")
    replace: Annotated[tuple[Replacement, ...], Setting(strict=False)] = Setting(
        default=(),
        description="[[regex, replacement], …], applied in order, before punctuation is removed",
    )
    remove_punctuation: bool = Setting(
        default=True, description="drop every character of a Unicode category P (as jiwer.RemovePunctuation)"
    )
    collapse_spaces: bool = Setting(
        default=True, description="turn every run of white space to one space and strip both ends"
    )


class SpeechOptions(TaskOptions):
    """Options of task ``speech``."""

    type: Literal["speech"] = Setting(default="speech", description="transcripts and their references")
    input: Literal["texts", "counts"] = Setting(
        default="texts",
        description="texts: hypothesis and reference; counts: substitutions, deletions, insertions and words",
    )
    normalise: NormaliseOptions = Setting(
        default=NormaliseOptions(), description="normalisation of texts (not used with counts)"
    )
    characters: bool = Setting(
        default=True, description="also count character errors (from texts): adds character_error_rate"
    )
    utterance_rate_bound: float = Setting(
        default=10.0,
        gt=0,
        le=MAX_COUNT,
        allow_inf_nan=False,
        description="errors / words of one utterance counts as at most this in mean_utterance_error_rate",
    )


@cache
def _punctuation() -> dict[int, None]:
    """Translation table that drops every punctuation character; made once, at first use."""
    points = range(sys.maxunicode + 1)
    return {point: None for point in points if unicodedata.category(chr(point)).startswith("P")}


def normalise(options: NormaliseOptions) -> Callable[[str], str]:
    """The function that brings a text to the form in which it is compared.

    Steps: lower case, replacements, punctuation, spaces. The result is cut at ``MAX_COUNT`` characters,
    which only matters to texts that replacements made longer.

    Examples
    --------
    >>> normalise(NormaliseOptions(replace=(("%", " percent"),)))("  Fifty%,  I said! ")
    'fifty percent i said'
    """
    replacements = [(re.compile(pattern), replacement) for pattern, replacement in options.replace]
    punctuation = _punctuation() if options.remove_punctuation else None

    def apply(text: str) -> str:
        if options.lowercase:
            text = text.lower()
        for pattern, replacement in replacements:
            text = pattern.sub(replacement, text)
        if punctuation is not None:
            text = text.translate(punctuation)
        if options.collapse_spaces:
            text = " ".join(text.split())
        return text[:MAX_COUNT]

    return apply


def word_errors(reference: Sequence[str], hypothesis: Sequence[str]) -> tuple[int, int, int]:
    """Substitutions, deletions and insertions of a minimal alignment of words (as jiwer counts them).

    Examples
    --------
    >>> word_errors("the cat sat".split(), "a cat sat down".split())
    (1, 0, 1)
    """
    if reference == hypothesis:
        return (0, 0, 0)
    counts = {"replace": 0, "delete": 0, "insert": 0}
    for operation in Levenshtein.editops(reference, hypothesis):
        counts[operation.tag] += 1
    return (counts["replace"], counts["delete"], counts["insert"])


def _digests(texts: Column) -> list[int]:
    """A 63-bit hash of each text; 0 where a row has none (it is only the other half of an event)."""
    return [
        xxh3_64_intdigest(text.encode("utf-8", "surrogatepass")) >> 1 if isinstance(text, str) else 0
        for text in texts
    ]


class Speech(Task):
    """Transcripts (hypotheses), and what was really said (references).

    Fields: ``hypothesis`` (prediction) and ``reference`` (outcome), texts; or, with counts as input,
    ``substitutions``, ``deletions``, ``insertions`` and ``words`` (of the reference), all with the outcome.
    Words are runs of characters other than white space. Insertions against an empty reference are
    errors like others in the pooled rates (as in jiwer); such utterances are counted as
    ``empty_references`` and have no rate of their own.

    Parameters
    ----------
    options : SpeechOptions
    weight_bound : float, optional
        Events carry weights in (0, weight_bound]: errors and words are then multiplied by the weight.
    outcome_ttl_seconds : float
        Longest delay of an outcome.

    Notes
    -----
    Memory per cell: 12 integers, 14 with characters; weights add 8, or 10.
    Records hold a digest of the text, not the text. Outcome records of texts get their counts from
    :meth:`compare_texts`, when both texts are there.

    Examples
    --------
    >>> task = Speech(SpeechOptions())
    >>> outcomes = task.outcome_records({"reference": ["the cat sat"]})
    >>> done = task.compare_texts(outcomes, ["A cat sat down."], ["The cat sat."])
    >>> [int(done[name][0]) for name in (*WORD_COUNTS, *CHARACTER_COUNTS)]
    [1, 0, 1, 3, 8, 11]
    """

    name = "speech"

    def __init__(
        self,
        options: SpeechOptions,
        *,
        weight_bound: float | None = None,
        outcome_ttl_seconds: float = 2592000.0,
    ) -> None:
        self.options = options
        self._normalise = normalise(options.normalise)
        self._weighting = Weighting(weight_bound)
        self._from_texts = options.input == "texts"
        self._characters = self._from_texts and options.characters
        self._counts = WORD_COUNTS + (CHARACTER_COUNTS if self._characters else ())
        self.fields = _fields(self._from_texts)
        self.statistics = (
            *common_statistics(outcome_ttl_seconds),
            *_statistics(options, self._weighting, self._counts),
        )
        self.metrics = metrics_table(
            self.statistics, (*COMMON_METRICS, *_metrics(options, self._weighting, self._characters))
        )
        self._at = {s.name: i for i, s in enumerate(self.statistics)}
        digest = [("digest", "<i8")] if self._from_texts else []
        self.prediction_dtype = self._weighting.dtype(*digest)
        self.outcome_dtype = np.dtype([*digest, *((name, "<i4") for name in self._counts)])

    def prediction_records(self, columns: Mapping[str, Column], weights: Floats | None) -> Records:
        """Records of the digest of the hypothesis, and weight.

        Raises ValueError with counts as input and no weights: such records are
        ``numpy.zeros(n, task.prediction_dtype)``.
        """
        records = self._weighting.records(self.prediction_dtype, columns, weights)
        if self._from_texts:
            records["digest"] = _digests(columns["hypothesis"])
        return records

    def outcome_records(self, columns: Mapping[str, Column]) -> Records:
        """Records of the digest of the reference (counts still 0), or of the counts."""
        records = blank_records(self.outcome_dtype, columns)
        if self._from_texts:
            records["digest"] = _digests(columns["reference"])
        else:
            for name in WORD_COUNTS:
                records[name] = columns[name]
        return records

    def compare_texts(
        self, outcomes: Records, hypotheses: Sequence[str], references: Sequence[str]
    ) -> Records:
        """Copy of outcome records with the counts of errors, words and characters filled in."""
        if not self._from_texts:
            return super().compare_texts(outcomes, hypotheses, references)
        counts = np.zeros((len(outcomes), len(self._counts)), np.int32)
        for row, hypothesis, reference in zip(counts, hypotheses, references, strict=True):
            heard, said = self._normalise(hypothesis), self._normalise(reference)
            words = said.split()
            row[:4] = (*word_errors(words, heard.split()), len(words))
            if self._characters:
                row[4:] = (Levenshtein.distance(said, heard), len(said))
        completed = outcomes.copy()
        for column, name in enumerate(self._counts):
            completed[name] = counts[:, column]
        return completed

    def prediction_sums(self, predictions: Records) -> Sequence[Scatter]:
        """Nothing: a transcript says nothing about errors before its reference is known."""
        return ()

    def outcome_sums(self, predictions: Records, outcomes: Records) -> Sequence[Scatter]:
        """Errors, words and characters; utterances with errors, with too many, with no reference."""
        words = outcomes["words"].astype(np.int64)
        errors = sum((outcomes[name].astype(np.int64) for name in WORD_COUNTS[:3]), np.zeros_like(words))
        rate = np.minimum(errors / np.maximum(words, 1), self.options.utterance_rate_bound)
        rate[words == 0] = 0.0
        counts = {name: outcomes[name].astype(np.int64) for name in self._counts}
        counts["empty_references"] = (words == 0).astype(np.int64)
        counts["utterances_with_errors"] = (errors > 0).astype(np.int64)
        counts["more_errors_than_words"] = (errors > words).astype(np.int64)
        sums = [Scatter(self._at[name], count) for name, count in counts.items()]
        sums.append(self._add("utterance_rate_sum", rate, predictions))
        if self._weighting.bound is not None:
            sums.append(self._add("outcomes_weight", 1.0, predictions))
            sums += [
                self._add(f"{name}_weight", count.astype(np.float64), predictions)
                for name, count in counts.items()
            ]
        return sums

    def _add(self, name: str, values: Floats | float, predictions: Records) -> Scatter:
        position = self._at[name]
        return Scatter(position, self._weighting.amounts(self.statistics[position], values, predictions))


def _fields(from_texts: bool) -> tuple[Field, ...]:
    if from_texts:
        return (
            Field("hypothesis", "prediction", "text", "the transcript", True, 0, MAX_COUNT),
            Field("reference", "outcome", "text", "what was really said", True, 0, MAX_COUNT),
        )
    descriptions = (
        "words replaced by others",
        "words of the reference left out",
        "words that are not in the reference",
        "words of the reference",
    )
    return tuple(
        Field(name, "outcome", "count", description, True, 0, MAX_COUNT)
        for name, description in zip(WORD_COUNTS, descriptions, strict=True)
    )


def _statistics(options: SpeechOptions, weighting: Weighting, counted: Sequence[str]) -> list[Statistic]:
    descriptions = {
        "substitutions": "reference words replaced by others",
        "deletions": "reference words left out",
        "insertions": "words that are not in the reference",
        "words": "reference words",
        "character_errors": "edits between the characters of reference and hypothesis",
        "characters": "characters of references, single spaces included",
    }
    counts = [Statistic(name, "outcome", descriptions[name]) for name in counted]
    utterances = [
        Statistic("empty_references", "outcome", "utterances whose reference has no word"),
        Statistic("utterances_with_errors", "outcome", "utterances with at least one word error"),
        Statistic("more_errors_than_words", "outcome", "utterances with more errors than reference words"),
    ]
    rate = "sum of errors / words of each utterance with a reference word"
    statistics = [*counts, *weighting.twins(counts, MAX_COUNT), *utterances, *weighting.twins(utterances)]
    statistics.append(weighting.total("utterance_rate_sum", "outcome", rate, options.utterance_rate_bound))
    if weighting.bound is not None:
        statistics.append(weighting.total("outcomes_weight", "outcome", "sum of weights: outcomes", 1))
    return statistics


def _metrics(options: SpeechOptions, weighting: Weighting, characters: bool) -> list[Metric]:
    def share(
        name: str,
        definition: str,
        undefined: str,
        numerator: Form,
        denominator: Form,
        aliases: tuple[str, ...] = (),
    ) -> Metric:
        return Metric(
            name=name,
            definition=definition,
            orientation="lower is better",
            undefined=undefined,
            numerator=weighting.form(numerator),
            denominator=weighting.form(denominator),
            support={"outcomes": 1},
            aliases=aliases,
        )

    no_word, words = "no word in any reference", {"words": 1}
    no_outcome, outcomes = "no outcome", {"outcomes": 1}
    errors = {"substitutions": 1, "deletions": 1, "insertions": 1}
    with_words: Form = {"outcomes": 1, "empty_references": -1}
    metrics = [
        share(
            "word_error_rate",
            "(substitutions + deletions + insertions) / reference words, pooled; 0 is perfect",
            no_word,
            errors,
            words,
            ("wer",),
        ),
        share("substitution_rate", "substitutions / reference words", no_word, {"substitutions": 1}, words),
        share("deletion_rate", "deletions / reference words", no_word, {"deletions": 1}, words),
        share("insertion_rate", "insertions / reference words", no_word, {"insertions": 1}, words),
        Metric(
            name="mean_utterance_error_rate",
            definition=(
                f"mean over utterances with reference words of min(errors / words, "
                f"{options.utterance_rate_bound})"
            ),
            orientation="lower is better",
            undefined="no reference with a word",
            numerator={"utterance_rate_sum": 1},
            denominator=weighting.form(with_words),
            support=with_words,
        ),
        share(
            "sentence_error_rate",
            "utterances with at least one word error / utterances",
            no_outcome,
            {"utterances_with_errors": 1},
            outcomes,
            ("ser",),
        ),
        share(
            "hallucination_share",
            "utterances with more errors than reference words / utterances",
            no_outcome,
            {"more_errors_than_words": 1},
            outcomes,
        ),
    ]
    if characters:
        metrics.append(
            share(
                "character_error_rate",
                "edits between characters / reference characters, pooled; 0 is perfect",
                "no character in any reference",
                {"character_errors": 1},
                {"characters": 1},
                ("cer",),
            )
        )
    return metrics
