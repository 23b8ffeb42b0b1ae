"""ConvTranspose, Einsum and what recurrent layers read, as regressions: their rows, and what the refit recovers."""

from __future__ import annotations

from typing import Any

import numpy as np
import onnx_graphsurgeon as gs
import pytest
from onnx import helper
from onnxslim_opt.passes.base import Context
from onnxslim_opt.passes.prune import Prune, curves, groups
from onnxslim_opt.passes.prune import plan as planning
from onnxslim_opt.passes.prune.cut import cut
from onnxslim_opt.passes.prune.layers import layers, layout, matrix, store
from onnxslim_opt.passes.prune.refit import refit
from onnxslim_opt.passes.sparsify import Sparsify
from onnxslim_opt.passes.target import Target
from onnxslim_opt.runtime import Session, feeds, unfold
from prune_nets import Net
from prune_twin import build

from onnxslim_opt import ir

RNG = np.random.default_rng(0)
TRANSPOSED = [  # kernel, input and output channels, groups, attributes, size
    ((5,), 4, 6, 1, {}, (9,)),
    ((3, 3), 4, 6, 1, {"strides": [2, 2], "pads": [1, 0, 1, 1], "output_padding": [1, 0]}, (5, 7)),
    ((4, 2), 4, 6, 2, {"strides": [3, 2], "dilations": [1, 2], "pads": [1, 1, 0, 2]}, (5, 7)),
    ((2, 3, 2), 4, 8, 4, {"strides": [2, 1, 2], "output_padding": [1, 0, 0]}, (3, 4, 2)),
    ((3, 3), 4, 6, 1, {"strides": [2, 2], "auto_pad": "SAME_UPPER"}, (5, 7)),
    ((4, 3), 4, 6, 1, {"strides": [2, 3], "auto_pad": "SAME_LOWER"}, (5, 7)),
    ((3, 3), 4, 6, 1, {"strides": [2, 2], "auto_pad": "VALID"}, (5, 7)),
    ((4, 3), 4, 6, 1, {"strides": [2, 2], "output_shape": [9, 14]}, (5, 7)),
    ((4, 3), 4, 6, 1, {"strides": [2, 2], "output_shape": [11, 15], "auto_pad": "SAME_UPPER"}, (5, 7)),
    ((1, 1), 4, 6, 1, {"strides": [2, 2]}, (5, 7)),  # outputs that no input reaches
]
EINSUMS = [  # equation, shapes of data and weight, whether the weight comes first
    ("bsd,kd->bsk", (2, 5, 4), (3, 4), False),
    ("hde,bhsd->bhse", (2, 3, 5, 4), (3, 4, 6), True),
    ("bshd,hde->bse", (2, 5, 3, 4), (3, 4, 6), False),
    ("...d,dk", (2, 5, 4), (4, 3), False),
    ("nkctv,kvw->nctw", (2, 3, 4, 5, 6), (3, 6, 7), False),
    ("bshd,hde->bseh", (2, 5, 3, 4), (3, 4, 6), False),
    ("bsd,d->bs", (2, 5, 4), (4,), False),
]


def random(*shape: int) -> np.ndarray:
    return RNG.standard_normal(shape).astype(np.float32)


def check_rows(model: ir.Model, x: np.ndarray) -> None:
    """Rows times matrices are the node's output at every other position, and the weight survives the way back."""
    node = model.graph.nodes[0]
    geo, y = unfold.regression(node), next(iter(Session(model).run({"x": x}).values()))
    total, found = unfold.count(geo, x.shape), matrix(node)
    assert found.shape[::2] == (geo.groups, geo.width) and total * found[:, :, 0].size == y.size
    at = np.arange(0, total, 2)
    np.testing.assert_allclose(
        unfold.rows(geo, x, at) @ np.swapaxes(found, 1, 2), unfold.targets(geo, y, at), atol=2e-5
    )
    weight = next(t.values for t in node.inputs if hasattr(t, "values"))
    np.testing.assert_array_equal(layout(node)(found)[0], weight)


@pytest.mark.parametrize(("kernel", "channels", "out", "group", "attrs", "size"), TRANSPOSED)
def test_rows_of_a_transposed_convolution(kernel, channels, out, group, attrs, size) -> None:
    node = helper.make_node("ConvTranspose", ["x", "w"], ["y"], name="up", group=group, **attrs)
    weight = random(channels, out // group, *kernel)
    check_rows(build([node], {"x": [2, channels, *size]}, {"w": weight}), random(2, channels, *size))


@pytest.mark.parametrize(("text", "shape", "weight", "first"), EINSUMS)
def test_rows_of_an_einsum(text: str, shape: Any, weight: Any, first: bool) -> None:
    names = ["w", "x"] if first else ["x", "w"]
    node = helper.make_node("Einsum", names, ["y"], name="product", equation=text)
    check_rows(build([node], {"x": list(shape)}, {"w": random(*weight)}), random(*shape))


@pytest.mark.parametrize(
    ("text", "shape", "weight"),
    [
        ("bsd,dk->sk", (2, 5, 4), (4, 3)),  # sums over the rows
        ("bsd,dkm->bsk", (2, 5, 4), (4, 3, 2)),  # sums over the weight alone
        ("bss,sk->bk", (2, 4, 4), (4, 3)),  # a diagonal
        ("bsd,d->bsd", (2, 5, 4), (4,)),  # sums over nothing
        ("d,dk->k", (4,), (4, 3)),  # no rows
        ("bsd,dk->bsk", (2, 5, 1), (4, 3)),  # broadcasts
    ],
)
def test_what_is_no_product_of_rows_and_a_matrix_is_no_layer(text: str, shape: Any, weight: Any) -> None:
    node = helper.make_node("Einsum", ["x", "w"], ["y"], name="product", equation=text)
    assert not layers(build([node], {"x": list(shape)}, {"w": random(*weight)}))


def context(model: ir.Model, count: int = 20) -> Context:
    data = [{"x": random(*model.graph.inputs[0].shape)} for _ in range(count)]
    found = feeds.resolve(data, model)
    fit, check = found.split()
    return Context(Target(), fit, check, found.source, model, None)  # type: ignore[arg-type]


def upsampled(group: int = 1, rank: int = 2, **attrs: Any) -> ir.Model:
    """A convolution of 8 channels whose last ones are sums of others, read by a transposed one."""
    n = Net(x=[2, 3, *[6] * rank])
    weight, bias, spread = n.weight(8, 3, *[3] * rank), n.weight(8), n.weight(8, 6 // group, *[3] * rank)
    each = 8 // group
    for values in (n.weights[weight], n.weights[bias]):  # a constant is felt by phase and at the borders
        values[each - 1 :: each] = values[each - 2 :: each] - 0.5 * values[each - 3 :: each]
    a = n.op("Conv", "x", weight, bias, pads=[1] * 2 * rank)
    n.op("ConvTranspose", a, spread, n.weight(6), group=group, **attrs)
    return n.model()


def contracted(text: str, x: list[int], weight: list[int], biased: bool = True) -> ir.Model:
    """Eight features whose last is a sum of others, put in heads where the equation wants them, read by an Einsum."""
    n = Net(x=[2, 7, 12])
    made = n.weight(12, 8)
    n.weights[made][:, 7] = n.weights[made][:, 6] - 0.5 * n.weights[made][:, 5]
    a = n.op("Add", n.op("MatMul", "x", made), n.weight(8))
    if x:
        a = n.op("Reshape", a, n.ints(2, 7, *x))
    y = n.op("Einsum", a, n.weight(*weight), equation=text)
    if biased:
        outputs = weight[1:] if text.startswith("bsd") else weight[-1:]
        n.op("Add", y, n.weight(*outputs))
    return n.model()


def recurrent(kind: str, bias: bool = True, **attrs: Any) -> ir.Model:
    """Eight features whose last is a sum of others, read by a recurrent layer of six units in both directions."""
    n = Net(x=[7, 2, 12])
    made, gates = n.weight(12, 8), {"LSTM": 4, "GRU": 3, "RNN": 1}[kind]
    n.weights[made][:, 7] = n.weights[made][:, 6] - 0.5 * n.weights[made][:, 5]
    a = n.op("Add", n.op("MatMul", "x", made), n.weight(8))
    rest = [n.weight(2, 2 * gates * 6)] if bias else []
    inputs = (n.weight(2, gates * 6, 8), n.weight(2, gates * 6, 6), *rest)
    n.weights[inputs[0]] /= np.float32(3)  # or every gate is open or shut
    n.op(kind, a, *inputs, hidden_size=6, direction="bidirectional", **attrs)
    return n.model()


NETS = {
    "plain": lambda: upsampled(strides=[2, 2], pads=[1] * 4, output_padding=[1, 1]),
    "groups": lambda: upsampled(group=2, strides=[2, 2], dilations=[2, 1]),
    "line": lambda: upsampled(rank=1, strides=[3]),
    "volume": lambda: upsampled(rank=3, strides=[2, 1, 2]),
    "same": lambda: upsampled(strides=[2, 2], auto_pad="SAME_UPPER"),
    "einsum": lambda: contracted("bsd,dk->bsk", [], [8, 5]),
    "heads out": lambda: contracted("bsd,dhe->bshe", [], [8, 2, 3]),
    "LSTM": lambda: recurrent("LSTM"),
    "LSTM without bias": lambda: recurrent("LSTM", bias=False),
    "GRU": lambda: recurrent("GRU"),
    "GRU reset after": lambda: recurrent("GRU", linear_before_reset=1),
    "RNN": lambda: recurrent("RNN"),
    "heads in": lambda: contracted("bshd,hde->bse", [2, 4], [2, 4, 5], biased=False),
}


def distances(model: ir.Model, small: ir.Model, ctx: Context) -> float:
    """Squared error relative to the variance, on feeds that were not fitted on."""
    whole, part = Session(model), Session(small)
    pairs = [[next(iter(s.run(f).values())).astype(np.float64) for s in (whole, part)] for f in ctx.check]
    return float(np.mean([np.square(a - b).mean() / a.var() for a, b in pairs]))


def dependent(model: ir.Model) -> np.ndarray:
    """Units of the positions that are sums of others: of groups and heads the last positions, else the last one."""
    found = groups(model)
    (family,) = [f for f in found.families if any(node.startswith(("Conv_0", "MatMul_0")) for node, _, _ in f.members)]
    return family.units[-1:]


@pytest.mark.parametrize("name", [n for n in NETS if n != "heads in"])
def test_a_channel_that_others_make_up_leaves_no_trace(name: str) -> None:
    model = NETS[name]()
    ctx, found, gone = context(model), groups(model), dependent(model)
    kinds = planning.layers(model, gates=True)
    goals = planning.goals(model, kinds, ctx.fit, ctx)
    small, raw = model.copy(), model.copy()
    for one in (small, raw):
        cut(one, found.flow, gone)
        ir.order.sort(one)
    plan = planning.Plan(found, None, kinds, goals)  # type: ignore[arg-type]  # the units are given
    assert refit(small, kinds, ctx.fit, goals, Prune()._kept(plan, gone), ctx, ridges=(1e-9,)) == 2
    assert distances(model, raw, ctx) > 1e-2
    assert distances(model, small, ctx) < 1e-10  # squared: 1e-5 of the range


@pytest.mark.parametrize("name", list(NETS))
@pytest.mark.parametrize("ratio", [0.25, 0.5])
def test_the_refit_lowers_the_error_of_the_output(name: str, ratio: float) -> None:
    model = NETS[name]()
    ctx = context(model)

    def error(**options: Any) -> float:
        small = model.copy()
        assert Prune(ratio=ratio, round_to=1, criterion="l1", **options).run(small, ctx).changed
        ir.order.sort(small)
        ir.verify.check(small)
        return distances(model, small, ctx)

    fitted, raw = error(), error(refit=False)
    assert fitted < 0.97 * raw and fitted < 1


@pytest.mark.parametrize("name", [n for n in NETS if n not in ("groups", "heads in")])  # where columns go together
def test_the_choice_knows_which_channels_others_make_up(name: str) -> None:
    """Second-order losses: the channels that can be made up go, and hardly anything is lost."""
    model = NETS[name]()
    ctx, small = context(model), model.copy()
    assert Prune(ratio=0.1, round_to=1).run(small, ctx).did["channels removed"]
    assert distances(model, small, ctx) < 1e-4


@pytest.mark.parametrize("biased", [False, True])
def test_without_a_bias_what_goes_takes_its_mean_along(biased: bool) -> None:
    """The loss of a unit is the least-squares error without it; with a bias the fit has an intercept."""
    n = Net(x=[2, 40, 12])
    shifted = n.op("Add", n.op("MatMul", "x", n.weight(12, 6)), n.weight(6))
    y = n.op("MatMul", shifted, n.weight(6, 5))
    if biased:
        n.op("Add", y, n.weight(5))
    model = n.model()
    ctx, found = context(model), groups(model)
    kinds = planning.layers(model)
    goals = planning.goals(model, kinds, ctx.fit, ctx)
    (curve,) = planning.curvatures(model, found, kinds, goals, ctx.fit, ctx)
    session = Session(model, outputs=[kinds[1].x, kinds[1].y])
    values = [session.run(f) for f in ctx.fit]
    a, b = (np.concatenate([v[k].reshape(-1, v[k].shape[-1]) for v in values]) for k in (kinds[1].x, kinds[1].y))
    losses = curve.losses(found.units.tolist())
    for k, unit in enumerate(found.units.tolist()):
        rest = np.c_[np.delete(a, k, 1), np.ones(len(a))] if biased else np.delete(a, k, 1)
        left = b - rest @ np.linalg.lstsq(rest, b, rcond=None)[0]
        assert losses[unit] == pytest.approx(np.square(left).sum() / len(b) / b.var(0).sum(), rel=0.05)


@pytest.mark.parametrize("options", [{"ratio": 0.5}, {"nm": "2:4"}])
@pytest.mark.parametrize("name", ["plain", "groups", "line", "volume", "einsum", "heads out", "heads in"])
def test_zeros_reach_transposed_convolutions_and_einsums(name: str, options: dict[str, Any]) -> None:
    model = NETS[name]()
    ctx, small = context(model), model.copy()
    assert Sparsify(**options).run(small, ctx).changed
    node = next(n for n in small.graph.nodes if n.op in ("ConvTranspose", "Einsum"))
    found = matrix(node)
    assert (found == 0).mean() == pytest.approx(0.5, abs=0.02)
    if "nm" in options:  # of every four neighbours among the input channels of a tap
        channels = found.shape[2] // int(np.prod(node.inputs[1].shape[2:])) if node.op == "ConvTranspose" else -1
        by_tap = np.swapaxes(found.reshape(*found.shape[:2], channels, -1), 2, 3) if channels > 0 else found
        assert ((by_tap.reshape(-1, 4) != 0).sum(1) == 2).all()
    raw, fitted = model.copy(), {n.name: n for n in small.graph.nodes}
    kinds = {n.name: n for n in raw.graph.nodes}
    for layer in layers(raw):
        weight = np.where(matrix(fitted[layer.node]) == 0, 0, matrix(kinds[layer.node]))
        store(raw, layer, kinds, weight, None)
    assert distances(model, small, ctx) < 0.9 * distances(model, raw, ctx)  # the rest takes their part over


def doubled(kind: str, direction: str, last: bool, start: bool) -> ir.Model:
    """A recurrent layer whose last two units are one; its states, or its last ones, are read by a linear layer."""
    n = Net(x=[7, 2, 5])
    ways, gates = 2 if direction == "bidirectional" else 1, {"LSTM": 4, "RNN": 1}[kind]
    w, r, b = n.weight(ways, gates * 6, 5), n.weight(ways, gates * 6, 6), n.weight(ways, 2 * gates * 6)
    for name in (w, r, b):
        n.weights[name] *= np.float32(4)
        by_unit = n.weights[name].reshape(ways, -1, 6, n.weights[name].shape[2] if name != b else 1)
        by_unit[:, :, 5] = by_unit[:, :, 4]
    first = []
    if start:
        first = ["", n.weight(ways, 2, 6)]
        n.weights[first[1]][:, :, 5] = n.weights[first[1]][:, :, 4]
    y, h = n.op(kind, "x", w, r, b, *first, outputs=2, hidden_size=6, direction=direction)
    read = h if last else n.op("Reshape", n.op("Transpose", y, perm=[0, 2, 1, 3]), n.ints(7, 2, 6 * ways))
    n.linear(read, 6 if last else 6 * ways, 3)
    model = n.model()
    if last:  # as `simplify` leaves it
        model.graph.nodes[0].outputs[0] = gs.Variable.empty()
    return model


@pytest.mark.parametrize("kind", ["LSTM", "RNN"])
@pytest.mark.parametrize("direction", ["forward", "reverse", "bidirectional"])
@pytest.mark.parametrize("last", [False, True])
@pytest.mark.parametrize("start", [False, True])
def test_a_unit_that_equals_another_leaves_no_trace(kind: str, direction: str, last: bool, start: bool) -> None:
    model = doubled(kind, direction, last, start)
    ctx, found = context(model), groups(model)
    kinds = planning.layers(model, gates=True)
    goals = planning.goals(model, kinds, ctx.fit, ctx)
    (family,) = found.families
    raw, small = model.copy(), model.copy()
    for one in (raw, small):
        cut(one, found.flow, family.units[-1:])
        ir.order.sort(one)
    plan = planning.Plan(found, None, kinds, goals)  # type: ignore[arg-type]  # the units are given
    kept = Prune()._kept(plan, family.units[-1:])
    assert refit(small, kinds, ctx.fit, goals, kept, ctx, ridges=(1e-9,)) == 2
    assert distances(model, small, ctx) < 1e-5 * distances(model, raw, ctx)
    curve = next(c for c in planning.curvatures(model, found, kinds, goals, ctx.fit, ctx) if c.node == kinds[0].node)
    losses = np.array(list(curve.losses(family.units.tolist()).values()))
    assert losses[-2:].max() < 0.3 * losses[:-2].min()


def test_a_vector_is_one_row() -> None:
    n = Net(x=[6])
    n.op("MatMul", n.op("Relu", n.linear("x", 6, 16)), n.weight(16, 4))
    model = n.model()
    ctx, small = context(model), model.copy()
    assert Prune(ratio=0.5, round_to=1).run(small, ctx).did["layers refitted"] == 2
    ir.order.sort(small)
    raw = model.copy()
    Prune(ratio=0.5, round_to=1, refit=False).run(raw, ctx)
    ir.order.sort(raw)
    assert distances(model, small, ctx) < distances(model, raw, ctx)
    assert Sparsify(ratio=0.5).run(model.copy(), ctx).did["layers"] == 1
    (curve,) = curves.curves(model, ctx, [0.5])
    assert curve.errors is not None and curve.errors[0] > 0
