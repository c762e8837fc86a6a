"""fairness-monitor: watches a deployed model for fairness gaps between groups."""

__version__ = "0.1.0"
