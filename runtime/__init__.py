"""What a model does: sessions, feeds, statistics, numerics, latency."""

from . import latency, numerics
from .feeds import Feeds
from .latency import Latency, Timings
from .numerics import Numerics, OutputDiff, Reference
from .session import Session
from .sources import DataOptions, resolve
from .specs import InputSpec, rename_feeds

__all__ = [
    "DataOptions",
    "Feeds",
    "InputSpec",
    "Latency",
    "Numerics",
    "OutputDiff",
    "Reference",
    "Session",
    "Timings",
    "latency",
    "numerics",
    "rename_feeds",
    "resolve",
]
