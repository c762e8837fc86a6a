"""What is in an input, a first configuration for it, and how the sample fares under that one.

Everything proposed is a guess from names, types and values of the fields. Nothing is inferred about people.
The parts, in the order in which data passes them: :mod:`~monitor.inspection.columns` (with the vocabulary in
:mod:`~monitor.inspection.words`), :mod:`~monitor.inspection.task` and :mod:`~monitor.inspection.guess`,
:mod:`~monitor.inspection.proposal`, :mod:`~monitor.inspection.trial`, :mod:`~monitor.inspection.report`,
:mod:`~monitor.inspection.tables`.
"""

from monitor.inspection.report import Inspection, inspect_input
from monitor.inspection.tables import render

__all__ = ["Inspection", "inspect_input", "render"]
