"""`fuse`: groups of operators become one that computes the same. One file a family; `RULES` is their sum.

A new rule is a function `(rewriter, node) -> True | reason | None` whose docstring says why it is exact or what
rounding it brings, and one line in its family's `RULES`.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

from ...ir import Model, edit
from ..base import Context, Pass, PassResult
from ..rewrite import Rewriter
from . import (
    activation,
    affine,
    arithmetic,
    batchnorm,
    joins,
    matmul,
    normal,
    padding,
    pooling,
    reshape,
    shuffle,
    transpose,
)

RULES = (
    *normal.RULES,
    *activation.RULES,
    *padding.RULES,
    *affine.RULES,
    *batchnorm.RULES,
    *matmul.RULES,
    *reshape.RULES,
    *transpose.RULES,
    *joins.RULES,
    *shuffle.RULES,
    *pooling.RULES,
    *arithmetic.RULES,
)


@dataclass(frozen=True)
class Fuse(Pass):
    """Fuse operators into standard ones of the model's own opset; float results differ by rounding at most."""

    name: ClassVar[str] = "fuse"

    def run(self, model: Model, ctx: Context | None = None) -> PassResult:
        """Edit `model` in place."""
        edit.sweep(model)
        counts, skipped = Rewriter(model).run(RULES)
        return PassResult(bool(counts), dict(counts), tuple(skipped))
