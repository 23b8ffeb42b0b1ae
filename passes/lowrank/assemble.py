"""Putting chosen splits into a model."""

from __future__ import annotations

from collections.abc import Mapping
from typing import TYPE_CHECKING

from ...ir import Model
from . import siblings
from .refit import Done

if TYPE_CHECKING:
    from .planning import Found


def assemble(model: Model, layers: Mapping[str, Found], chosen: Mapping[str, int]) -> list[Done]:
    """Replace the layers in `chosen` (index of the split, by node name) by their chains; the others stay whole."""
    again, done = siblings.reader(model), []
    for name, found in layers.items():
        if name in chosen:
            split, layer = found.splits[chosen[name]], again(found.names, found.size)
            made = siblings.put(model, layer, split.form.chain(layer, split.factors), split.shift, split.form.name)
            done += [Done(own.node.name, own, last) for own, last in made]
    return done
