"""Factors through Relu6: integers get better, floats stay as they were, and saturation stands in for the clip."""

import numpy as np
import pytest
from onnxslim_opt.passes.quant import Quant, calibrate, choosing, clips, equalise, storage
from onnxslim_opt.passes.quant.planning import Choice
from quant_nets import Net, context, session, sqnr

from onnxslim_opt import ir

TOP = 6.0


def relu6(net, x, out, low=0.0, high=TOP):
    return net.add("Clip", x, net.const(np.float32(low)), net.const(np.float32(high)), out=out)


def separable(blocks=2):
    """A stem, depthwise and pointwise layers with Relu6 between them, and a head: channels are of very different size,
    and what reads them makes up for it."""
    net, width, rng = Net(), 24, np.random.default_rng(3)
    names = ["stem", *(f"{kind}{k}" for k in range(blocks) for kind in ("deep", "point"))]
    x = "x"
    for name in names:
        depthwise, plain = name.startswith("deep"), name.startswith("point")
        made = net.conv(x, 3 if x == "x" else width, width, 1 if plain else 3, width if depthwise else 1, out=name)
        x = relu6(net, made, f"{name}6")
    head = net.conv(x, width, 8, out="head")
    net.gemm(net.add("Flatten", net.add("MaxPool", head, out="max", kernel_shape=[12, 12]), out="flat"), 8, 4, out="y")
    model = net.model({"x": [1, 3, 12, 12]}, ["y"])
    layers, before = {n.name: n for n in model.graph.nodes if n.op == "Conv"}, np.ones((3, 1, 1), np.float32)
    for name in (*names, "head"):
        node, after = layers[f"{name}_node"], np.exp(rng.uniform(-3, 1.5, width)).reshape(-1, 1, 1).astype(np.float32)
        columns = before[:, None] if name.startswith("deep") else before
        rows = after[:8, None] ** 0 if name == "head" else after[:, None]
        node.inputs[1].values = node.inputs[1].values * rows / columns
        node.inputs[2].values = node.inputs[2].values * rows.reshape(-1)
        before = after
    return model


def feeds(n=24, seed=1, scale=1.0):
    rng = np.random.default_rng(seed)
    return [{"x": scale * rng.standard_normal((1, 3, 12, 12)).astype(np.float32)} for _ in range(n)]


def outputs(model, data):
    run = session(model, optimize=False)
    return [run.run(None, feed)[0] for feed in data]


def weights(model):
    return {n.name: [t.values for t in n.inputs[1:]] for n in model.graph.nodes if n.op in ("Conv", "Gemm")}


@pytest.fixture(scope="module")
def planned():
    model = separable()
    ctx = context(model, feeds())
    p = Quant(compute="all", floor=0.0)
    return model, ctx, p, p.plan(model, ctx)


def test_factors_are_powers_of_two_and_channels_that_are_clipped_have_none(planned):
    model, ctx, _, plan = planned
    copy = model.copy()
    copy.graph.outputs.append(copy.tensors()["deep06"])
    peak = np.max([session(copy).run(None, f)[1] for f in ctx.fit.spread(equalise.FEEDS)], axis=(0, 1, 3, 4))
    factor = plan.factors["deep06"]
    np.testing.assert_array_equal(factor, plan.factors["deep0"])
    np.testing.assert_array_equal(factor, 2.0 ** np.rint(np.log2(factor)))
    assert (peak == TOP).any() and (factor[peak == TOP] == 1).all()
    assert factor.min() == 1 and factor.max() >= 4
    assert (peak * factor <= TOP).all()


def test_what_stays_float_gets_its_weights_back(planned):
    model, _, _, plan = planned
    back = choosing.start(plan, frozenset())
    for name, arrays in weights(model).items():
        for one, two in zip(arrays, weights(back)[name]):
            np.testing.assert_array_equal(one, two)
    data = feeds(4, 7, scale=10.0)
    for a, b in zip(outputs(model, data), outputs(back, data)):
        np.testing.assert_array_equal(a, b)


def test_saturation_is_the_clip_of_every_channel(planned):
    """The quantized tensor is that of a network with one clip a channel, far beyond what was calibrated too."""
    _, _, _, plan = planned
    scales = plan.stats.scales(plan.full)
    for name in ("stem6", "deep06", "point06", "deep16", "point16"):
        scale, factor = scales[name], plan.factors[name].reshape(-1, 1)
        high = scale.limits[1]
        assert (high - scale.zero) * np.float32(scale.scale) <= TOP * (1 + 1e-6)
        x = np.random.default_rng(0).standard_normal((factor.size, 500)).astype(np.float32) * 20
        exact = (np.clip(x, 0, TOP) * factor).astype(np.float32)
        np.testing.assert_array_equal(scale.fake(np.clip(x * factor.astype(np.float32), 0, TOP)), scale.fake(exact))


@pytest.mark.parametrize("scale", [1.0, 2.0])
def test_integers_get_better(planned, scale):
    model, ctx, _, _ = planned
    level = {}
    for on in (False, True):
        p, new = Quant(compute="all", floor=0.0, equalise=on, calibrate="mse"), model.copy()
        p.apply(new, p.plan(model, ctx), 1.0, ctx)
        ir.verify.check(new)
        level[on] = sqnr(model, new, feeds(8, 5, scale))
    assert level[True] > level[False] + (6 if scale == 1.0 else 0)


def test_a_part_in_integers_and_the_rest_stored(planned):
    """Layers next to a clip that stays float take factors back, with the integers that were rounded for them."""
    model, ctx, p, plan = planned
    nodes = frozenset(n for n in plan.able if n.startswith(("deep0", "point0", "stem")))
    assert clips.undone(plan.base, plan.factors).keys() > choosing.undone(plan, nodes).keys() >= {"deep1", "deep16"}
    new, levels = model.copy(), {}
    p._computed(new, plan, Choice(nodes, None, "all"), 1.0, ctx)
    ir.verify.check(new)
    for scale in (1.0, 2.0):
        data = feeds(8, 5, scale)
        levels[scale] = sqnr(model, new, data) - sqnr(model, choosing.build(plan, nodes), data)
    assert min(levels.values()) > -1  # what is stored beside them costs next to nothing


def test_storage_alone_keeps_clips_where_they_were():
    model = separable()
    ctx = context(model, feeds())
    p = Quant()
    plan, new = p.plan(model, ctx), model.copy()
    p._stored(new, plan, 1.0, ctx, "")
    ir.verify.check(new)
    plain, off = model.copy(), Quant(equalise=False)
    off._stored(plain, off.plan(model, ctx), 1.0, ctx, "")
    for scale in (1.0, 4.0):  # the weights round better, on feeds beyond those seen too
        data = feeds(8, 5, scale)
        assert sqnr(model, new, data) > sqnr(model, plain, data) + 6


def test_known_integers_are_those_of_the_layer_without_factors(planned):
    _, _, _, plan = planned
    lost, back = clips.undone(plan.base, plan.factors), choosing.start(plan, frozenset())
    assert lost
    known, before = clips.known(plan.base, lost, plan.rounded), weights(plan.base)
    for node in (n for n in back.graph.nodes if n.op == "Conv"):
        name = node.inputs[1].name
        ratio = node.inputs[1].values / before[node.name][0]
        np.testing.assert_array_equal(
            storage.restored(known[name].packed), plan.rounded[name].packed.dequantized() * ratio
        )
        rows = (node.inputs[2].values / before[node.name][1]).astype(np.float64)
        np.testing.assert_allclose(known[name].shift, plan.rounded[name].shift * rows, rtol=1e-6)


@pytest.mark.parametrize("kind", ["negative", "twice", "pooled", "computed"])
def test_other_clips_bar_their_channels(kind):
    net = Net()
    a = net.conv("x", 3, 16, out="a")
    low = -1.0 if kind == "negative" else 0.0
    high = net.add("ReduceMax", "x", out="top", keepdims=0) if kind == "computed" else net.const(np.float32(TOP))
    b = net.add("Clip", a, net.const(np.float32(low)), high, out="b")
    if kind == "pooled":
        b = net.add("MaxPool", b, out="p", kernel_shape=[2, 2], strides=[2, 2])
    c = net.conv(b, 16, 8, 1, out="c")
    if kind == "twice":
        c = net.add("Add", c, net.conv(b, 16, 8, 1, out="d"), out="e")
    net.add("Sigmoid", c, out="y")
    model = net.model({"x": [1, 3, 12, 12]}, ["y"])
    ctx = context(model, feeds())
    found = equalise.factors(model, ctx.fit, ctx)
    assert "a" not in found or (found["a"] == 1).all()


def test_a_clip_without_an_upper_end_is_a_relu():
    found = []
    for op, more in (("Relu", ()), ("Clip", (np.float32(0.0),))):
        net = Net()
        b = net.add(op, net.conv("x", 3, 16, out="a"), *(net.const(v) for v in more), out="b")
        net.conv(b, 16, 8, 1, out="y")
        model = net.model({"x": [1, 3, 12, 12]}, ["y"])
        ctx = context(model, feeds())
        found.append(equalise.factors(model, ctx.fit, ctx)["b"])
        assert not clips.undone(model, {"a": found[-1], "b": found[-1]})
    np.testing.assert_array_equal(*found)
    assert (found[0] != 1).any()


def test_mean_square_calibration_stays_within_the_clip():
    seen = calibrate.Seen(0.0, TOP, np.linspace(0.01, 5.99, 300), np.r_[np.ones(299), 500.0])
    assert calibrate.choose("mse", [seen], 100.0)[1] <= TOP
