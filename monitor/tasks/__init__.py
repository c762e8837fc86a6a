"""Tasks: one file per kind of model, each with its statistics and its table of metrics.

>>> from pydantic import TypeAdapter
>>> options = TypeAdapter(TaskConfig).validate_python({"type": "score", "range": [0, 1]})
>>> build(options).metrics["mean_value"].definition
'sum of values / predictions'
"""

from __future__ import annotations

from collections.abc import Mapping
from types import MappingProxyType
from typing import Annotated, TypeAlias

from pydantic import Field as Setting

from monitor.tasks.base import Task
from monitor.tasks.binary import Binary, BinaryOptions
from monitor.tasks.regression import Regression, RegressionOptions
from monitor.tasks.score import Score, ScoreOptions
from monitor.tasks.speech import Speech, SpeechOptions

__all__ = ["TASKS", "TaskConfig", "build"]

TaskConfig: TypeAlias = Annotated[
    BinaryOptions | RegressionOptions | SpeechOptions | ScoreOptions, Setting(discriminator="type")
]
"""What stands under ``task:`` in the configuration; ``type`` says which task it is."""

TASKS: Mapping[str, type[Task]] = MappingProxyType(
    {"binary": Binary, "regression": Regression, "speech": Speech, "score": Score}
)
"""Task classes by the ``type`` of their options."""


def build(
    options: BinaryOptions | RegressionOptions | SpeechOptions | ScoreOptions,
    *,
    weight_bound: float | None = None,
    outcome_ttl_seconds: float = 2592000.0,
) -> Task:
    """The task that these options describe.

    Parameters
    ----------
    options : one of the classes of :data:`TaskConfig`
    weight_bound : float, optional
        Events carry weights in (0, weight_bound].
    outcome_ttl_seconds : float
        Longest delay of an outcome; the grid of the delay follows from it.
    """
    match options:
        case BinaryOptions():
            return Binary(options, weight_bound=weight_bound, outcome_ttl_seconds=outcome_ttl_seconds)
        case RegressionOptions():
            return Regression(options, weight_bound=weight_bound, outcome_ttl_seconds=outcome_ttl_seconds)
        case SpeechOptions():
            return Speech(options, weight_bound=weight_bound, outcome_ttl_seconds=outcome_ttl_seconds)
        case ScoreOptions():
            return Score(options, weight_bound=weight_bound, outcome_ttl_seconds=outcome_ttl_seconds)
