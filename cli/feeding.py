"""Feeds for the commands that only look at models."""

from __future__ import annotations

from pathlib import Path
from typing import Any


def feeds_for(model: Path, values: dict[str, Any]) -> Any:
    """The feeds that the data options name, for the model at this path."""
    from .. import ir
    from ..passes.optimize import data_options
    from ..passes.recipe import Settings
    from ..runtime import feeds

    settings = Settings(**{k: v for k, v in values.items() if v is not None})
    return feeds.resolve(settings.data, ir.load(model), data_options(settings))
