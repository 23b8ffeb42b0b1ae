"""What a model is: load, save, edit, order, shapes, verify, text, cost, and facts about operators."""

from . import cost, edit, errors, ops, order, shapes, text, verify
from .exporting import to_bytes, to_proto
from .files import atomic, from_bytes, load, save
from .importing import from_proto
from .model import Header, Model

__all__ = [
    "Header",
    "Model",
    "atomic",
    "cost",
    "edit",
    "errors",
    "from_bytes",
    "from_proto",
    "load",
    "ops",
    "order",
    "save",
    "shapes",
    "text",
    "to_bytes",
    "to_proto",
    "verify",
]
