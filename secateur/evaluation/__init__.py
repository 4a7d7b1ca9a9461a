"""One instrument for every kind of model: what an evaluation records, how records merge, and what has changed since."""

from secateur.evaluation.compare import compare_records
from secateur.evaluation.decode import load_record
from secateur.evaluation.merge import merge_records
from secateur.evaluation.record import EvaluationRecord

__all__ = ["EvaluationRecord", "compare_records", "load_record", "merge_records"]
