"""Structured pruning: labels that flow through the graph say what hangs together, the data say what may go."""

from .grouping import Groups, Row
from .grouping import find as groups
from .prune import Prune

__all__ = ["Groups", "Prune", "Row", "groups"]
