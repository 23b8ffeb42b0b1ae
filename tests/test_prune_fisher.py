"""What errors of outputs count, against noise that is really added; and the contest between ways to weigh losses."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
from onnxslim_opt.passes.base import Context
from onnxslim_opt.passes.prune import Prune, fisher, plan
from onnxslim_opt.passes.prune.contest import Contest
from onnxslim_opt.passes.prune.layers import layers
from onnxslim_opt.passes.target import Target
from onnxslim_opt.runtime import feeds
from onnxslim_opt.runtime.session import Session
from prune_nets import Net

from onnxslim_opt import ir

RNG = np.random.default_rng(5)


def network() -> ir.Model:
    """Channels of the first convolution that count very differently behind it."""
    net = Net(x=[1, 3, 8, 8])
    y = net.conv("x", 3, 8)
    z = net.conv(net.op("Relu", y), 8, 6)
    net.weights["w2"] = net.weights["w2"] * np.float32([4, 2, 1, 1, 0.5, 0.2, 0.1, 0.0]).reshape(1, 8, 1, 1)
    return net.head(net.op("Relu", z), 6)


def context(model: ir.Model, count: int = 40) -> Context:
    data = [{"x": RNG.standard_normal((1, 3, 8, 8)).astype(np.float32)} for _ in range(count)]
    found = feeds.resolve(data, model)
    return Context(Target(), found, found, found.source, model, None)  # type: ignore[arg-type]


def test_the_curvature_by_channel_is_what_noise_does_to_the_outputs() -> None:
    model = network()
    ctx = context(model, 200)
    found = layers(model)
    goals = plan.goals(model, found, ctx.fit, ctx)
    one = fisher.collect(model, found, goals, ctx.fit, ctx)[found[0].node]
    name, out = found[0].y, model.graph.outputs[0].name
    noisy = model.copy()
    tensor = next(t for n in noisy.graph.nodes for t in n.outputs if t.name == name)
    offset = ir.edit.variable(noisy, "offset", np.float32, list(tensor.shape))
    moved = ir.edit.variable(noisy, "moved", np.float32, list(tensor.shape))
    ir.edit.replace(noisy, tensor, moved)
    ir.edit.add(noisy.graph, ir.edit.node(noisy, "Add", [tensor, offset], outputs=[moved]))
    noisy.graph.inputs.append(offset)
    noisy.header.input_order, noisy.header.protos = (), {}
    ir.order.sort(noisy)
    session, clean = Session(noisy), Session(model)
    reference = [clean.run(f)[out] for f in ctx.fit]
    spread = np.concatenate(reference).var()
    for channel in (0, 1, 3, 7):
        errors = []
        for feed, wanted in zip(ctx.fit, reference):
            noise = np.zeros(tensor.shape, np.float32)
            noise[:, channel] = 0.01 * RNG.standard_normal((1, 8, 8))
            errors.append(np.square(session.run({**feed, offset.name: noise})[out] - wanted).mean() / spread)
        expected = one.channels[channel] / len(ctx.fit) * 0.01**2
        assert np.mean(errors) == pytest.approx(expected, rel=0.35, abs=1e-9)


def test_places_are_summed_where_the_goal_was_sampled() -> None:
    model = network()
    ctx = context(model, 12)
    found = layers(model)
    goals = plan.goals(model, found, ctx.fit, ctx)
    one = fisher.collect(model, found, goals, ctx.fit, ctx)[found[0].node]
    assert [len(p) for p in one.places] == [len(p) for p in goals[found[0].node].places]
    assert sum(p.sum() for p in one.places) == pytest.approx(one.channels.sum(), rel=1e-3)  # all places were taken
    scaled = fisher.weights(one.places)
    assert np.mean(np.concatenate(scaled)) == pytest.approx(1, rel=1e-3) and all((s > 0).all() for s in scaled)


def test_emphasis_keeps_the_variance_of_the_layer() -> None:
    channels, variance = RNG.random(12) ** 4, RNG.random(12) + 0.1
    found = fisher.emphasis(channels, variance, 3)
    assert found.shape == (3, 4) and (found.reshape(-1) * variance).sum() == pytest.approx(variance.sum())
    rank = np.argsort(np.clip(channels / channels.mean(), fisher.LEAST, fisher.MOST), kind="stable")
    assert (np.diff(found.reshape(-1)[rank]) >= -1e-12).all()


def test_the_contest_measures_what_pruning_does_and_the_best_order_wins() -> None:
    model = network()
    ctx = context(model)
    wanted = Prune(macs=0.4, round_to=1)
    found = wanted.plan(model, ctx)
    assert len(found.contest) > 1 and min(found.contest) > 0
    judge = Contest(found.groups, found.layers, found.goals, found.feeds, lambda g: wanted._kept(found, g), ctx)

    def error(gone: Any) -> float:
        return judge.error(np.asarray(gone, np.int64))

    assert error(wanted._gone(found, 1.0, ctx)) == pytest.approx(min(found.contest), rel=1e-3)
    assert error([]) < 1e-6 < error(found.order.units[:3]) < error(found.order.units[:6])


def collected(model: Any) -> tuple[Any, list[str]]:
    """What the gradients say of every layer, and what the run was told."""
    ctx, said = context(model, 12), list[str]()
    ctx.on_note = said.append
    found = layers(model)
    return fisher.collect(model, found, plan.goals(model, found, ctx.fit, ctx), ctx.fit, ctx), said


def test_an_operator_without_a_gradient_is_said_and_all_count_alike() -> None:
    net = Net(x=[1, 3, 8, 8])
    y = net.op("InstanceNormalization", net.conv("x", 3, 8), net.weight(8), net.weight(8))
    model = net.head(net.conv(y, 8, 4), 4)
    weights, said = collected(model)
    assert weights == {}
    assert "InstanceNormalization" in said[0]


def test_a_gradient_that_is_not_finite_is_said_and_all_count_alike() -> None:
    net = Net(x=[1, 3, 8, 8])
    above = net.op("Relu", net.conv("x", 3, 8))
    net.weights["none"] = np.float32(0)
    root = net.op("Where", net.op("Greater", above, "none"), net.op("Sqrt", above), "none")  # an infinite slope at 0
    model = net.head(net.conv(root, 8, 6), 6)
    weights, said = collected(model)
    assert weights == {}
    assert "not finite" in said[0]
