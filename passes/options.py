"""What several passes share among their options: a short way to declare one, and `exclude`."""

from __future__ import annotations

import re
from dataclasses import field
from typing import TYPE_CHECKING, Any

from ..ir.errors import OptionError

if TYPE_CHECKING:
    from .base import Context


def option(default: Any, text: str, **more: Any) -> Any:
    """A field of a pass with its help; more: `choices`, `min`, `max`."""
    return field(default=default, metadata={"help": text, **more})


class Excluding:
    """Mixed into passes with an option `exclude`: a regular expression of node names that stay as they are."""

    exclude: str

    def __post_init__(self) -> None:
        try:
            re.compile(self.exclude)
        except re.error as error:
            raise OptionError(f"exclude: {self.exclude!r} is no regular expression: {error}") from None

    def excluded(self, node: Any, ctx: Context) -> bool:
        """Whether the user asked to leave a node alone, for this pass or for all."""
        return ctx.excluded(node) or bool(self.exclude and re.search(self.exclude, node.name))
