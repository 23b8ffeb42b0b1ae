"""Last factors that know of the ReLU behind them: the closed form, what it gains, and when it is left alone."""

from __future__ import annotations

import numpy as np
import onnx_graphsurgeon as gs
import pytest
from onnxslim_opt.passes.base import Context
from onnxslim_opt.passes.lowrank import LowRank, groups, relu
from onnxslim_opt.passes.lowrank.choose import Option
from onnxslim_opt.passes.lowrank.layer import read
from onnxslim_opt.passes.lowrank.lowrank import FORMS
from onnxslim_opt.passes.lowrank.norm import Norm
from onnxslim_opt.passes.lowrank.planning import Split
from onnxslim_opt.passes.lowrank.search import Trial
from onnxslim_opt.passes.target import Target
from onnxslim_opt.runtime import Session, Timings, resolve
from onnxslim_opt.runtime.sources import DataOptions

from onnxslim_opt import ir


def network(activation="Relu", bounds=(), also=False, seed=0):
    """x (n, 40) through a Gemm with a bias well below zero, and an activation."""
    rng = np.random.default_rng(seed)
    x, y, z = gs.Variable("x", np.float32, ["n", 40]), gs.Variable("y", np.float32), gs.Variable("z", np.float32)
    weight, bias = rng.standard_normal((32, 40)).astype(np.float32), np.full(32, -6, np.float32)
    nodes = [gs.Node("Gemm", "layer", {"transB": 1}, [x, gs.Constant("w", weight), gs.Constant("b", bias)], [y])]
    inputs = [y, *(gs.Constant(f"c{k}", np.array(v, np.float32)) for k, v in enumerate(bounds))]
    nodes.append(gs.Node(activation, "act", {}, inputs, [z]))
    model = ir.from_proto(gs.export_onnx(gs.Graph(nodes, [x], [z, y] if also else [z], opset=17)))
    ir.shapes.refresh(model)
    return model


def rows(count, seed):
    rng = np.random.default_rng(seed)
    return rng.standard_normal((count, 40)).astype(np.float32)


def plain_split(model, x, rank):
    layer, form = read(model.graph.nodes[0], (len(x), 40)), FORMS["svd"]
    norm = Norm.of(x.mean(0), len(x), second=x.T.astype(np.float64) @ x / len(x))
    factors = groups.factors(layer, [norm], Trial(form, (rank,), 0.0, 0, 0))
    shift = groups.shift(groups.missing(layer, form, factors), [norm])
    return layer, Split(form, Option("svd", (rank,), 0.0, 0.0, 0, 0), tuple(factors), shift)


def output(layer, split, x):
    weight = split.factors[0] @ split.factors[1]
    return x @ weight.T + layer.bias + split.shift


@pytest.mark.parametrize("top", [np.inf, 1.5])
@pytest.mark.parametrize("weight", [0.01, 0.3, 1.0])
def test_relaxed_outputs_are_the_minimum(weight, top):
    rng = np.random.default_rng(0)
    estimate, target = rng.standard_normal(200) * 3, np.clip(rng.standard_normal(200) * 3, 0, top)
    grid = np.linspace(-12, 12, 24001)[:, None]
    cost = (target - np.clip(grid, 0, top)) ** 2 + weight * (grid - estimate) ** 2
    z = relu.relaxed(estimate, target, weight, top)
    found = (target - np.clip(z, 0, top)) ** 2 + weight * (z - estimate) ** 2
    assert np.all(found <= cost.min(0) + 1e-6)


@pytest.mark.parametrize("top", [np.inf, 12.0])
def test_the_error_behind_the_activation_falls_on_unseen_rows(top):
    model, x, unseen = network(), rows(4096, 1), rows(4096, 2)
    layer, split = plain_split(model, x, 10)
    better = relu.rectify(layer, split, x, top)
    y = unseen @ layer.flat.T + layer.bias
    before, after = (
        ((np.clip(output(layer, s, unseen), 0, top) - np.clip(y, 0, top)) ** 2).sum() for s in (split, better)
    )
    assert better.behind is not None and better.behind[1] < better.behind[0]
    assert after < 0.97 * before  # 0.956 without a ceiling; the direction of noise is all that is left to choose
    # and it is no longer the least-squares fit of what comes before the activation
    errors = [((output(layer, s, unseen) - y) ** 2).sum() for s in (split, better)]
    assert errors[1] > errors[0]


def test_a_fit_that_gains_nothing_is_not_kept():
    model, x = network(), rows(512, 1)
    layer, split = plain_split(model, x, 32)
    assert relu.rectify(layer, split, x, np.inf) is split


@pytest.mark.parametrize(
    ("activation", "bounds", "also", "expected"),
    [
        ("Relu", (), False, np.inf),
        ("Clip", (0.0, 6.0), False, 6.0),
        ("Clip", (-1.0, 1.0), False, None),
        ("Sigmoid", (), False, None),
        ("Relu", (), True, None),
    ],
)
def test_which_activations_are_seen(activation, bounds, also, expected):
    model = network(activation, bounds, also)
    assert relu.ceiling(model, read(model.graph.nodes[0], (5, 40))) == expected


@pytest.mark.parametrize("use", [False, True])
def test_the_report_holds_the_error_on_check_feeds(use):
    model = network()
    feeds = resolve([{"x": rows(200, k)} for k in range(24)], model, DataOptions())
    fit, check = feeds.split()
    ctx = Context(Target.detect(), fit, check, "data", model.copy(), Timings())
    copy = model.copy()
    row = LowRank(rank=10, min_gain=-1, relu=use).run(copy, ctx).details["layers"][0]
    ir.order.sort(copy)
    assert (row["error_behind_relu"] is not None) == use
    name = next(n.outputs[0].name for n in copy.graph.nodes if n.name.endswith("svd1"))
    outputs = [(Session(model, outputs=["y"]).run(f)["y"], Session(copy, outputs=[name]).run(f)[name]) for f in check]
    wanted, found = (np.concatenate(v).astype(np.float64) for v in zip(*outputs))
    expected = ((wanted - found) ** 2).sum() / ((wanted - wanted.mean(0)) ** 2).sum()
    assert row["error_unseen"] == pytest.approx(expected, rel=1e-3)
