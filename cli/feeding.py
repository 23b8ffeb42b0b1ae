"""Feeds for the commands that only look at models."""

from __future__ import annotations

from pathlib import Path
from typing import Any


def feeds_for(model: Path, values: dict[str, Any]) -> Any:
    """The feeds that the data options name, for the model at this path; notes on how they are read go to stderr."""
    from .. import ir
    from ..passes.optimize import data_options
    from ..passes.recipe import Settings
    from ..runtime import feeds
    from . import show

    settings = Settings(**{k: v for k, v in values.items() if v is not None}).checked()
    found = feeds.resolve(settings.data, ir.load(model), data_options(settings))
    for text in found.notes:
        show.err().print(text, style="yellow", soft_wrap=True)
    return found
