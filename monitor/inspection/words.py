"""Words in the names of fields, and what they hint at.

A hint is a guess about a field's part in an event, never about a person. Words are in lower case and the
singular; the order of a list is a preference, a set has none.
"""

from __future__ import annotations

import re


def split_words(name: str) -> list[str]:
    """Words of a name written in any of the usual ways, in lower case.

    >>> split_words("predictedScore_v2")
    ['predicted', 'score', 'v2']
    """
    return re.findall(r"[^\W_]+", re.sub(r"([a-z0-9])([A-Z])", r"\1 \2", name).lower())


def singular(word: str) -> str:
    """Take the s off a plural.

    >>> [singular(w) for w in ("scores", "class", "status", "is")]
    ['score', 'class', 'status', 'is']
    """
    plural = len(word) > 3 and word.endswith("s") and word[-2:] not in ("is", "ss", "us")
    return word[:-1] if plural else word


SENSITIVE = split_words(
    "sex gender race ethnicity ethnic age accent dialect language lang l1 native nationality religion "
    "disability orientation marital region country site ward hospital school postcode noise device channel"
)
"""Attributes that people compare groups by: those of people first, then those of places and conditions."""

DECISION = {
    *split_words("decision decided prediction predicted predict pred ypred yhat hat"),
    *split_words("approved selected flagged"),
}
"""What a model said yes or no to."""

OUTCOME = {
    *split_words(
        "outcome actual truth true ytrue target observed label y gt result recid reoffended default"
    ),
    *split_words("defaulted repaid readmitted readmission churned converted died fraud hired"),
}
"""What came of it."""

SCORE = {*split_words("score probability prob proba confidence risk decile logit")}
"""A number that a decision may have been made from."""

ESTIMATE = {*DECISION, *split_words("estimate estimated forecast expected quoted")}
"""A number that a model predicted."""

HYPOTHESIS = split_words(
    "hypothesis hyp asr recognized recognised prediction predicted pred output transcript"
)
"""The text that a speech model heard."""

REFERENCE = split_words(
    "reference ref truth gold actual human target label outcome sentence text transcript transcription"
)
"""The text that was said."""

WORD_COUNTS = ("substitutions", "deletions", "insertions", "words")
"""Names of the fields of a speech task that is fed with counts; all four are needed, written like this."""

TIME = {*split_words("time timestamp ts datetime date at epoch when created")}
"""A time of whatever."""

KNOWN = {*split_words("outcome label truth actual result feedback resolved settled confirmed known")}
"""A time at which the outcome was known, rather than the prediction made."""

BIRTH = {*split_words("birth born dob")}
"""A time that no event has happened at."""

HORIZON = {*split_words("year month day week")}
"""An outcome within a stated time, which is preferred to one without."""

ID = {*split_words("id uuid guid key")}
"""A field that may tell events apart alone."""

PART_OF_ID = {*ID, *split_words("index idx seq sequence row position number no file utterance name")}
"""A field that may tell events apart together with another."""

YES = {
    *split_words("1 yes y true t positive pos approved approve accepted accept granted selected high pass")
}
"""Contents that mean yes, where a field has only two."""
