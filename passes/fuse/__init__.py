"""`fuse`: groups of operators become one that computes the same. One file a family; `RULES` is their sum.

A new rule is a function `(rewriter, node) -> True | reason | None` whose docstring says why it is exact or what
rounding it brings, and one line in its family's `RULES`.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

from ...ir import Model, edit
from ..base import Context, Pass, PassResult, Skip
from ..rewrite import Rewriter
from . import (
    activation,
    affine,
    arithmetic,
    attention,
    batchnorm,
    bounds,
    broadcast,
    channels,
    contrib,
    gelu,
    joins,
    matmul,
    normal,
    ones,
    padding,
    pooling,
    recurrent,
    reshape,
    rms,
    scaling,
    shuffle,
    softmax,
    strided,
    sums,
    swish,
    tiny,
    transpose,
    upsampling,
    windows,
)

RULES = (
    *normal.RULES,
    *rms.RULES,
    *softmax.RULES,
    *gelu.RULES,
    *activation.RULES,
    *bounds.RULES,
    *broadcast.RULES,
    *padding.RULES,
    *affine.RULES,
    *scaling.RULES,
    *channels.RULES,
    *batchnorm.RULES,
    *matmul.RULES,
    *reshape.RULES,
    *transpose.RULES,
    *ones.RULES,
    *joins.RULES,
    *shuffle.RULES,
    *strided.RULES,
    *pooling.RULES,
    *arithmetic.RULES,
    *windows.RULES,
    *upsampling.RULES,
    *recurrent.RULES,
    *tiny.RULES,
)
# Passes that do not mind an Attention or a Sum. Others prune heads, or compute products and sums in 8 bits: for them
# both stay spelled out.
EXACT = frozenset(["simplify", "fold", "clean", "fuse"])
# Fewer nodes, though ONNX Runtime is slower at them than at what it makes of the spelled-out form.
COMPACT = (*swish.RULES, *activation.COMPACT, *recurrent.COMPACT)


@dataclass(frozen=True)
class Fuse(Pass):
    """Fuse operators into standard ones of the model's own opset; float results differ by rounding at most.

    compact: also where ONNX Runtime is slower at the operator than at its spelled-out form (Swish, some Mish and RNN).
    contrib: also into operators of ONNX Runtime's own, where it is faster at them; no other runtime loads the result.
    """

    name: ClassVar[str] = "fuse"
    compact: bool = False
    contrib: bool = False

    def run(self, model: Model, ctx: Context | None = None) -> PassResult:
        """Edit `model` in place."""
        first, then = self.once(model, ctx), finish(model, ctx, self.contrib)
        return PassResult(first.changed or then.changed, {**first.did, **then.did}, (*first.skipped, *then.skipped))

    def once(self, model: Model, ctx: Context | None = None) -> PassResult:
        """Apply the rules, without those that `finish` keeps for the end."""
        edit.sweep(model)
        rules = (*RULES, *COMPACT) if self.compact else RULES
        rules = (*rules, *attention.RULES) if _is_last(ctx) else (*rules, *sums.APART)
        counts, skipped = Rewriter(model).run(rules)
        return PassResult(bool(counts), dict(counts), tuple(skipped))


def finish(model: Model, ctx: Context | None = None, own: bool = False) -> PassResult:
    """Rules whose results other rules do not look into: for the end, once nothing else changes.

    own: whether operators of ONNX Runtime's own may be written.
    """
    if not _is_last(ctx):
        return PassResult(False)
    skipped: list[Skip] = []
    if own and ctx is not None and ctx.target.runtime != "onnxruntime":
        skipped.append(Skip(model.graph.name, f"contrib: the target {ctx.target.name} has no such operators"))
        own = False
    counts, refused = Rewriter(model).run((*contrib.RULES, *sums.RULES) if own else sums.RULES)
    return PassResult(bool(counts), dict(counts), (*skipped, *refused))


def _is_last(ctx: Context | None) -> bool:
    return ctx is None or EXACT.issuperset(ctx.follows)
