"""Shares that the user sets for single groups: `REGEX=SHARE`, searched in the names of the nodes that make a
group's channels."""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence

import numpy as np

from ...ir.errors import OptionError
from .grouping import Groups

Overrides = Sequence[tuple[re.Pattern[str], float]]


def parse(texts: Sequence[str] | str) -> Overrides:
    """Raises OptionError for what is not of the form."""
    found = []
    for text in (texts,) if isinstance(texts, str) else texts:
        expression, equals, share = text.rpartition("=")
        try:
            value = float(share)
            pattern = re.compile(expression)
        except (ValueError, re.error):
            value, pattern = -1.0, re.compile("")
        if not equals or not expression or not 0 <= value < 1:
            raise OptionError(
                f"prune: shares={text} is not REGEX=SHARE with a share from 0 to below 1, e.g. layer3.*=0.6"
            )
        found.append((pattern, value))
    return found


def makers(groups: Groups) -> list[list[str]]:
    """Of every family, the nodes that make its channels, in the model's order; others read them or go along."""
    by_unit: dict[int, list[str]] = {}
    for origin in groups.flow.origins:
        cells = groups.flow.atoms.resolve(origin.cells)
        for unit in np.unique(cells).tolist() if cells is not None else ():
            by_unit.setdefault(unit, []).append(origin.node)
    return [list(dict.fromkeys(n for u in f.units.tolist() for n in by_unit.get(u, ()))) for f in groups.families]


def of_families(groups: Groups, overrides: Overrides) -> Mapping[int, float]:
    """Family (by its place in `groups.families`) -> share. Raises OptionError where nothing matches."""
    first = makers(groups)
    found: dict[int, float] = {}
    for pattern, share in overrides:
        hit = [k for k, names in enumerate(first) if any(pattern.search(n) for n in names)]
        if not hit:
            raise OptionError(f"prune: shares: {pattern.pattern} matches no group that may go; see inspect --groups")
        found.update((k, share) for k in hit if k not in found)
    return found
