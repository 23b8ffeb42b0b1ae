"""Ranges chosen by the error of the outputs, and regions that hold the floor."""

import numpy as np
import pytest
from onnxslim_opt.passes.quant import Quant, calibrate, choosing, placement, planning, tuning
from quant_nets import Net, cnn, context, images


def two_layers():
    net = Net()
    net.gemm(net.add("Relu", net.gemm("x", 16, 24), out="a"), 24, 8, out="y")
    return net.model({"x": [4, 16]}, ["y"]), net


def test_the_noise_of_a_range_is_what_numpy_says():
    model, _ = two_layers()
    rng = np.random.default_rng(3)
    feeds = [{"x": rng.standard_normal((4, 16)).astype(np.float32)} for _ in range(9)]
    ctx = context(model, feeds)
    plan = Quant(calibrate="mse", equalise=False).plan(model, ctx)
    trial = tuning._Trial(plan.base, {"a": ["a"]}, plan.stats, ctx.fit, ctx)
    w1, b1, w2, b2 = (t.values for n in model.graph.nodes if n.op == "Gemm" for t in n.inputs[1:])
    signal = noise = 0.0
    for feed in list(ctx.fit.spread(2 * tuning.FEEDS))[::2]:
        a = np.maximum(feed["x"] @ w1.T + b1, 0)
        y, z = (v @ w2.T + b2 for v in (a, calibrate.to_scale(0.0, 1.7, "u8").fake(a)))
        signal, noise = signal + (y.astype(np.float64) ** 2).sum(), noise + ((z - y).astype(np.float64) ** 2).sum()
    assert trial.noise("a", (0.0, 1.7)) == pytest.approx(noise / signal, rel=1e-3)


def peaks():
    """Outputs hang on the largest of many values, which the range that loses least of all of them clips."""
    net = Net()
    a = net.add("Relu", net.add("Conv", "x", net.const(np.ones((1, 1, 1, 1), np.float32))), out="a")
    top = net.add("MaxPool", a, out="top", kernel_shape=[768, 768])
    net.add("Conv", top, net.const(np.ones((1, 1, 1, 1), np.float32)), out="y")
    rng = np.random.default_rng(0)
    feeds = [{"x": rng.exponential(size=(1, 1, 768, 768)).astype(np.float32)} for _ in range(12)]
    return net.model({"x": [1, 1, 768, 768]}, ["y"]), feeds


def test_ranges_follow_the_outputs_where_those_hang_on_outliers():
    model, feeds = peaks()
    levels, plans = {}, {}
    for method in ("mse", "auto"):
        ctx = context(model, feeds)
        plan = plans[method] = Quant(calibrate=method, equalise=False).plan(model, ctx)
        levels[method] = choosing._Levels(plan, ctx).of(frozenset(plan.able))
    assert plans["mse"].stats.limits == {} and "a" in plans["auto"].stats.limits
    assert levels["auto"] > levels["mse"] + 3
    assert sum(plans["auto"].noise.values()) < sum(plans["mse"].noise.values())


def test_layers_with_a_method_of_their_own_and_named_methods_are_not_tuned():
    model, feeds = peaks()
    assert Quant(layers="conv=percentile").plan(model, context(model, feeds)).stats.limits.get("a") is None
    assert Quant(calibrate="minmax").plan(model, context(model, feeds)).stats.limits == {}


def test_regions_that_hold_the_floor_are_proposed_and_their_noise_falls_with_the_aim():
    model = cnn()
    ctx = context(model, images())
    plan = Quant(calibrate="mse").plan(model, ctx)
    plan.costs = dict.fromkeys(plan.able, (1000.0, 10.0))
    propose = choosing._regions(plan, 0.0, 0.0)
    noises = [choosing._noise(plan, propose(aim)) for aim in (0.0, 40.0, 50.0, 60.0)]
    assert noises == sorted(noises, reverse=True) and noises[-1] <= 1e-6 < noises[0]
    for floor in (20.0, 38.0):
        for choice in choosing.candidates(plan, ctx, "auto", floor, 0.0):
            assert choosing._Levels(plan, ctx).of(choice.nodes) >= floor
    loud = choosing.candidates(plan, ctx, "auto", 38.0, 0.0)[0]
    assert loud.banned <= set(plan.full.quantized())
    placed = placement.place(plan.base, loud.nodes, plan.target)
    assert not loud.banned & set(placed.quantized())
    assert planning.between(plan.base, plan.able) >= loud.nodes
