"""Metrics that compare an output field with a label, as `IAPO(metric=metrics.exact_match("answer"))` takes them."""

from iapo_dspy.scoring.metrics import LabelMetric, exact_match, f1

__all__ = ["LabelMetric", "exact_match", "f1"]
