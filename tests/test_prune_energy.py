"""Losses of contractions without a regression: every operator's axis, and that such groups are pruned by the data."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
from onnx import helper
from onnxslim_opt.passes.base import Context
from onnxslim_opt.passes.prune import Prune, energy, groups
from onnxslim_opt.passes.target import Target
from onnxslim_opt.runtime import feeds
from prune_twin import build

from onnxslim_opt import ir

RNG = np.random.default_rng(0)
QUIET = (1, 4, 6)


def weights(*shape: int) -> np.ndarray:
    return RNG.standard_normal(shape).astype(np.float32)


def transposed() -> ir.Model:
    """A convolution of 8 channels, three of them quiet, read by a transposed one alone."""
    w = {"a": weights(8, 3, 3, 3), "b": weights(8, 5, 2, 2)}
    w["a"][list(QUIET)] *= 0.01
    nodes = [
        helper.make_node("Conv", ["x", "a"], ["y"], name="first", pads=[1] * 4),
        helper.make_node("Relu", ["y"], ["z"]),
        helper.make_node("ConvTranspose", ["z", "b"], ["out"], name="up", strides=[2, 2]),
    ]
    return build(nodes, {"x": [1, 3, 6, 6]}, w)


def einsum() -> ir.Model:
    """The same with a matrix product and an Einsum, whose weight has the contracted letter last."""
    w = {"a": weights(3, 8), "b": weights(5, 8)}
    w["a"][:, list(QUIET)] *= 0.01
    nodes = [
        helper.make_node("MatMul", ["x", "a"], ["y"], name="first"),
        helper.make_node("Relu", ["y"], ["z"]),
        helper.make_node("Einsum", ["z", "b"], ["out"], name="last", equation="bsd,kd->bsk"),
    ]
    return build(nodes, {"x": [1, 7, 3]}, w)


def context(model: ir.Model) -> Context:
    data = [{"x": weights(*model.graph.inputs[0].shape)} for _ in range(20)]
    found = feeds.resolve(data, model)
    fit, check = found.split()
    return Context(Target(), fit, check, found.source, model, None)  # type: ignore[arg-type]


@pytest.mark.parametrize("make", [transposed, einsum])
def test_the_quiet_positions_go_first(make: Any) -> None:
    model = make()
    ctx = context(model)
    ((_, losses),) = [r for r in energy.shares(model, groups(model).flow, set(), ctx.fit, ctx) if len(r[1]) == 8]
    assert sum(losses.values()) == pytest.approx(1.0)
    units = sorted(losses)
    assert {units.index(u) for u in sorted(losses, key=lambda u: losses[u])[:3]} == set(QUIET)
    before = model.graph.nodes[0].inputs[1].values
    small = model.copy()
    assert Prune(ratio=3 / 8, round_to=1, refit=False).run(small, ctx).did["channels removed"] == 3
    axis = 0 if before.ndim == 4 else 1
    np.testing.assert_array_equal(small.graph.nodes[0].inputs[1].values, np.delete(before, QUIET, axis))


def test_shares_follow_the_products_of_both_sides() -> None:
    """Of the loudest position, when its weight is zero, nothing is lost."""
    model = transposed()
    node = model.graph.nodes[-1]
    silent = node.inputs[1].values.copy()
    silent[0] = 0
    ir.edit.set_input(node, 1, ir.edit.constant(model, "silent", silent))
    ctx = context(model)
    ((_, losses),) = [r for r in energy.shares(model, groups(model).flow, set(), ctx.fit, ctx) if len(r[1]) == 8]
    assert losses[min(losses)] == 0.0 and max(losses.values()) > 0.05
