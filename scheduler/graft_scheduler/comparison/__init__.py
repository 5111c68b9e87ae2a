"""The comparison of methods: one fine-tune in several variants, as jobs with the same data and budget."""

from graft_scheduler.comparison.handle import ComparisonHandle
from graft_scheduler.comparison.outcome import Comparison
from graft_scheduler.comparison.recommendation import Recommendation
from graft_scheduler.comparison.row import Row
from graft_scheduler.comparison.variants import Variant

__all__ = ["Comparison", "ComparisonHandle", "Recommendation", "Row", "Variant"]
