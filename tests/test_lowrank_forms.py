"""Every split, exact at full rank through ONNX Runtime, and its arithmetic of cost and errors."""

from __future__ import annotations

import dataclasses

import numpy as np
import onnx_graphsurgeon as gs
import onnxruntime as ort
import pytest
from onnxslim_opt.passes.lowrank import emit, fit, groups, ranks, search
from onnxslim_opt.passes.lowrank.basis import Basis, normal
from onnxslim_opt.passes.lowrank.layer import Layer, read, refusal
from onnxslim_opt.passes.lowrank.lowrank import FORMS
from onnxslim_opt.passes.lowrank.norm import Norm
from onnxslim_opt.passes.lowrank.tensor_forms import hooi

from onnxslim_opt import ir

CONVS = {
    "plain": ({"pads": [1, 1, 1, 1]}, (20, 16, 3, 3), (2, 16, 12, 13)),
    "strides, dilation, uneven pads": (
        {"strides": [2, 1], "pads": [1, 2, 0, 1], "dilations": [1, 2]},
        (20, 16, 3, 3),
        (2, 16, 12, 13),
    ),
    "same upper": ({"auto_pad": "SAME_UPPER", "strides": [2, 2]}, (20, 16, 3, 5), (2, 16, 12, 13)),
    "same lower": ({"auto_pad": "SAME_LOWER", "strides": [2, 1]}, (20, 16, 2, 3), (2, 16, 11, 13)),
    "valid": ({"auto_pad": "VALID", "strides": [1, 2]}, (20, 24, 3, 3), (2, 24, 12, 13)),
    "one axis": ({"strides": [2], "pads": [1, 2]}, (20, 16, 5), (2, 16, 32)),
    "three axes": ({"strides": [2, 1, 1], "pads": [1, 2, 0, 0, 1, 1]}, (20, 16, 3, 2, 3), (1, 16, 6, 7, 8)),
    "1x1 strided": ({"strides": [2, 2]}, (20, 36, 1, 1), (2, 36, 12, 13)),
    "1x3": ({"pads": [0, 1, 0, 1]}, (20, 16, 1, 3), (2, 16, 12, 13)),
}


TRANSPOSED = {
    "plain": ({"pads": [1, 1, 1, 1]}, (16, 20, 3, 3), (2, 16, 7, 6)),
    "upsampling": ({"strides": [2, 2]}, (16, 20, 2, 2), (2, 16, 7, 6)),
    "strides, dilation, uneven pads, padded output": (
        {"strides": [2, 3], "pads": [1, 0, 2, 1], "dilations": [2, 1], "output_padding": [1, 2]},
        (16, 20, 3, 4),
        (2, 16, 7, 6),
    ),
    "1x1 strided": ({"strides": [2, 2]}, (24, 20, 1, 1), (2, 24, 7, 6)),
    "one axis": ({"strides": [2]}, (16, 20, 4), (2, 16, 9)),
    "three axes": ({"strides": [2, 1, 2], "pads": [1, 0, 0, 0, 1, 1]}, (16, 20, 2, 3, 2), (1, 16, 4, 5, 3)),
    "groups": ({"group": 2, "strides": [2, 2], "pads": [1, 1, 1, 1]}, (32, 20, 4, 4), (2, 32, 7, 6)),
}
GROUPED = {
    "two": ({"group": 2, "pads": [1, 1, 1, 1]}, (40, 16, 3, 3), (2, 32, 9, 8)),
    "three, strides, dilation": (
        {"group": 3, "strides": [2, 1], "dilations": [1, 2], "pads": [1, 2, 0, 1]},
        (48, 20, 3, 3),
        (2, 60, 9, 12),
    ),
    "1x1": ({"group": 2}, (40, 24, 1, 1), (2, 48, 9, 8)),
}


def single(op, attrs, weight, size, bias=None, extra=()):
    """A model of one layer."""
    x, y = gs.Variable("x", np.float32, list(size)), gs.Variable("y", np.float32)
    inputs = [x, gs.Constant("w", weight)] + ([] if bias is None else [gs.Constant("b", bias)])
    nodes = [gs.Node(op, "layer", attrs, inputs, [y]), *extra]
    return ir.from_proto(gs.export_onnx(gs.Graph(nodes, [x], [nodes[-1].outputs[0]], opset=17)))


def run(model, x):
    session = ort.InferenceSession(ir.to_bytes(model), providers=["CPUExecutionProvider"])
    return session.run(None, {"x": x})[0]


def random_conv(key, seed=0):
    attrs, shape, size = CONVS[key]
    rng = np.random.default_rng(seed)
    weight = rng.standard_normal(shape).astype(np.float32)
    model = single("Conv", attrs, weight, size, rng.standard_normal(shape[0]).astype(np.float32))
    return model, rng.standard_normal(size).astype(np.float32)


def tidy(model):
    ir.order.sort(model)
    ir.shapes.refresh(model)
    ir.verify.check(model)
    return model


def replaced(model, form, rank, norm=None, shift=False):
    """A copy with its only layer split, and the factors."""
    copy = model.copy()
    node = next(n for n in copy.graph.nodes if n.name == "layer")
    layer = read(node, [int(d) for d in copy.graph.inputs[0].shape])
    norm = norm or Norm.identity(layer.width)
    trial = search.Trial(form, rank, 0.0, 0, 0)
    factors = groups.factors(layer, [norm] * layer.groups, trial)
    moved = groups.shift(groups.missing(layer, form, factors), [norm] * layer.groups) if shift else None
    emit.put(copy, layer, form.chain(layer, factors), moved, form.name)
    return tidy(copy), layer, factors


def relative(a, b):
    return float(np.linalg.norm(a - b) / np.linalg.norm(b))


@pytest.mark.parametrize("key", CONVS)
@pytest.mark.parametrize("name", [n for n in FORMS if n not in ("cp", "heads")])
def test_full_rank_reproduces_a_convolution(key, name):
    model, x = random_conv(key)
    form = FORMS[name]
    layer = read(model.graph.nodes[0], CONVS[key][2])
    if form.refuse(layer):
        pytest.skip(form.refuse(layer))
    split, _, factors = replaced(model, form, form.full(layer))
    assert tuple(f.shape for f in factors) == form.shapes(layer, form.full(layer))
    assert relative(run(split, x), run(model, x)) < 1e-5


@pytest.mark.parametrize(("op", "key"), [*(("ConvTranspose", k) for k in TRANSPOSED), *(("Conv", k) for k in GROUPED)])
@pytest.mark.parametrize("name", [n for n in FORMS if n not in ("cp", "heads")])
def test_full_rank_reproduces_transposed_and_grouped_convolutions(op, key, name):
    """Outputs, and the cost that was reckoned with."""
    attrs, shape, size = (TRANSPOSED if op == "ConvTranspose" else GROUPED)[key]
    rng = np.random.default_rng(11)
    weight = rng.standard_normal(shape).astype(np.float32)
    outputs = shape[0] if op == "Conv" else shape[1] * attrs.get("group", 1)
    model = single(op, attrs, weight, size, rng.standard_normal(outputs).astype(np.float32))
    x = rng.standard_normal(size).astype(np.float32)
    assert refusal(model.graph.nodes[0]) is None
    form, layer = FORMS[name], read(model.graph.nodes[0], size)
    assert layer.macs == ir.cost.of(tidy(model)).macs
    if form.refuse(layer):
        pytest.skip(form.refuse(layer))
    split, _, _ = replaced(model, form, form.full(layer))
    assert len(split.graph.nodes) > 1
    assert relative(run(split, x), run(model, x)) < 1e-5
    low, _, _ = replaced(model, form, form.scaled(layer, 0.4))
    macs, params = form.cost(layer, form.scaled(layer, 0.4))
    cost = ir.cost.of(low)
    assert (cost.macs, cost.params) == (macs, params + outputs)


def test_groups_at_low_rank_are_split_each_by_itself():
    """Errors and bias of a grouped layer are those of its groups as layers of their own."""
    attrs, shape, size = GROUPED["two"]
    rng = np.random.default_rng(12)
    model = single("Conv", attrs, rng.standard_normal(shape).astype(np.float32), size, np.zeros(40, np.float32))
    layer, form = read(model.graph.nodes[0], size), FORMS["channel"]
    norms = [correlated_norm(rng, layer.width, samples=3000) for _ in range(2)]
    trial = groups.trials(layer, norms, [form], lambda f: [(6,)])[0]
    factors = groups.factors(layer, norms, trial)
    lost = groups.missing(layer, form, factors)
    expected = []
    for g in range(2):
        part = Layer(None, "Conv", layer.stack[g], None, True, size, np.float32)
        own = fit.compose(form.spec(part), search.factors(form, part, norms[g], (6,)))
        expected.append(part.weight - own)
        assert np.allclose(expected[g].reshape(20, -1), lost[g], atol=1e-8)
    energies = [n.energy(w.reshape(20, -1)) for n, w in zip(norms, layer.stack)]
    left = [n.energy(d.reshape(20, -1)) for n, d in zip(norms, expected)]
    assert groups.error(lost, norms, groups.energy(layer, norms)) == pytest.approx(sum(left) / sum(energies))
    assert trial.error == pytest.approx(sum(left) / sum(energies), rel=1e-2)
    assert np.allclose(groups.shift(lost, norms), np.concatenate([d @ n.mean for d, n in zip(lost, norms)]))


def test_a_transposed_convolution_is_fitted_to_its_inputs():
    """Stride equal to the kernel: outputs do not overlap, so that the error reckoned is the error of the outputs."""
    rng = np.random.default_rng(13)
    rows = rng.standard_normal((2 * 42, 16)) @ (rng.standard_normal((16, 16)) * np.exp(-np.arange(16) / 3)[:, None])
    x = rows.reshape(2, 7, 6, 16).transpose(0, 3, 1, 2).astype(np.float32)
    model = single(
        "ConvTranspose",
        *TRANSPOSED["upsampling"][:1],
        rng.standard_normal((16, 20, 2, 2)).astype(np.float32),
        (2, 16, 7, 6),
    )
    layer, form = read(model.graph.nodes[0], (2, 16, 7, 6)), FORMS["channel_in"]
    moment = Norm.of(rows.mean(0), len(rows), second=rows.T @ rows / len(rows), centre=False)
    found = {}
    for kind, norm in (("aware", moment.repeated(layer.taps)), ("plain", Norm.identity(layer.width))):
        split, _, factors = replaced(model, form, (4,), norm)
        lost, many = groups.missing(layer, form, factors), [moment.repeated(layer.taps)]
        found[kind] = relative(run(split, x), run(model, x)) ** 2
        assert groups.error(lost, many, groups.energy(layer, many)) == pytest.approx(found[kind], rel=1e-3)
    assert found["aware"] < 0.5 * found["plain"]


@pytest.mark.parametrize("key", ["plain", "strides, dilation, uneven pads", "one axis", "three axes"])
def test_cp_reproduces_a_weight_of_its_rank(key):
    attrs, shape, size = CONVS[key]
    rng = np.random.default_rng(1)
    planted = [rng.standard_normal((3, d)) for d in shape]
    letters = "ocijk"[: len(shape)]
    spec = ",".join("r" + c for c in letters) + "->" + letters
    weight = np.einsum(spec, *planted).astype(np.float32)
    model = single("Conv", attrs, weight, size, rng.standard_normal(shape[0]).astype(np.float32))
    x = rng.standard_normal(size).astype(np.float32)
    # the ridge of the start keeps ALS a little off; the refinement without ridge brings it home
    split, _, _ = replaced(model, FORMS["cp"], (6,))
    assert relative(run(split, x), run(model, x)) < 1e-2
    layer = read(model.graph.nodes[0], size)
    norm = Norm.identity(layer.width)
    factors = search.factors(FORMS["cp"], layer, norm, (6,))
    spec = FORMS["cp"].spec(layer)
    factors = fit.improve(spec, factors, layer.weight, norm, sweeps=20, steps=20)
    assert fit.error(layer.weight, fit.compose(spec, factors), norm) < 1e-8


@pytest.mark.parametrize("trans", [0, 1])
@pytest.mark.parametrize("bias", ["row", "scalar", "matrix", None])
def test_full_rank_reproduces_gemm(trans, bias):
    rng = np.random.default_rng(2)
    matrix = rng.standard_normal((24, 20) if trans else (20, 24)).astype(np.float32)
    shapes = {"row": (24,), "scalar": (1,), "matrix": (5, 24)}
    b = None if bias is None else rng.standard_normal(shapes[bias]).astype(np.float32)
    model = single("Gemm", {"transB": trans, "alpha": 0.5, "beta": 2.0}, matrix, (5, 20), b)
    x = rng.standard_normal((5, 20)).astype(np.float32)
    layer = read(model.graph.nodes[0], (5, 20))
    assert layer.adjustable == (bias != "matrix")
    split, _, _ = replaced(model, FORMS["svd"], (20,))
    assert [n.op for n in split.graph.nodes] == ["Gemm", "Gemm"]
    assert relative(run(split, x), run(model, x)) < 1e-5


@pytest.mark.parametrize("outputs", [18, 64])
def test_full_rank_reproduces_matmul_and_moves_the_add_behind_it(outputs):
    rng = np.random.default_rng(3)
    weight = rng.standard_normal((20, outputs)).astype(np.float32)
    y, z = gs.Variable("y", np.float32), gs.Variable("z", np.float32)
    x = gs.Variable("x", np.float32, [2, 7, 20])
    nodes = [
        gs.Node("MatMul", "layer", {}, [x, gs.Constant("w", weight)], [y]),
        gs.Node("Add", "add", {}, [y, gs.Constant("b", rng.standard_normal(outputs).astype(np.float32))], [z]),
    ]
    model = ir.from_proto(gs.export_onnx(gs.Graph(nodes, [x], [z], opset=17)))
    value = rng.standard_normal((2, 7, 20)).astype(np.float32)
    split, layer, _ = replaced(model, FORMS["svd"], (min(20, outputs),))
    assert layer.adjustable
    assert relative(run(split, value), run(model, value)) < 1e-5
    # at rank 1 the constant moves by the mean error, so that the mean of the output is exact
    rows = value.reshape(-1, 20).astype(np.float64)
    norm = Norm.of(rows.mean(0), len(rows), second=rows.T @ rows / len(rows))
    split, _, _ = replaced(model, FORMS["svd"], (1,), norm, shift=True)
    before, after = run(model, value), run(split, value)
    assert np.abs(before.mean((0, 1)) - after.mean((0, 1))).max() < 1e-5
    assert relative(after, before) > 0.05


def test_costs_are_those_of_the_emitted_nodes():
    for key in CONVS:
        model, _ = random_conv(key)
        layer = read(model.graph.nodes[0], CONVS[key][2])
        assert ir.cost.of(tidy(model)).macs == layer.macs
        for form in FORMS.values():
            if form.refuse(layer) is None:
                rank = form.scaled(layer, 0.4)
                split, _, _ = replaced(model, form, rank)
                macs, params = form.cost(layer, rank)
                cost = ir.cost.of(split)
                assert (cost.macs, cost.params) == (macs, params + layer.outputs), (key, form.name)


def test_shared_factorization_predicts_the_error_of_each_rank():
    rng = np.random.default_rng(4)
    layer = correlated_layer(rng, (24, 16, 3, 3))
    norm = correlated_norm(rng, layer.width, samples=3000)
    for form in FORMS.values():
        if form.refuse(layer) is None and form.nested:
            chosen = [form.scaled(layer, s) for s in (0.2, 0.5, 0.8)]
            predicted = search.errors(form, layer, norm, chosen)
            for rank, guess in zip(chosen, predicted):
                spec = form.spec(layer)
                start = fit.refit(spec, form.sketch(layer, rank, norm), layer.weight, norm)
                assert guess == pytest.approx(
                    fit.error(layer.weight, fit.compose(spec, start), norm), rel=0.1, abs=2e-3
                )
            assert predicted == sorted(predicted, reverse=True)


@pytest.mark.parametrize("shape", [(24, 16, 3, 3), (20, 16, 5), (20, 16, 3, 2, 3), (24, 16)])
@pytest.mark.parametrize("samples", [30, 3000])
def test_normal_equations_in_blocks_are_those_of_the_whole_basis(shape, samples):
    rng = np.random.default_rng(11)
    layer = correlated_layer(rng, shape)
    rows = rng.standard_normal((samples, layer.width)) + 1
    some = Norm.of(rows.mean(0), samples, thin=rows / np.sqrt(samples))
    assert (some.thin is None) == (2 * samples > layer.width)
    for form in FORMS.values():
        if form.refuse(layer) is not None:
            continue
        spec, factors = form.spec(layer), [rng.standard_normal(s) for s in form.shapes(layer, form.scaled(layer, 0.4))]
        t = Basis.of(spec, factors, layer.weight.shape)
        assert np.allclose(fit.first(spec, factors) @ t.dense, fit.compose(spec, factors).reshape(len(layer.flat), -1))
        for norm in (Norm.identity(layer.width), some):
            crossed = norm.apply(t.dense)
            for single, tolerance in ((False, 1e-9), (True, 1e-4)):
                gram, right = normal(t, layer.flat, norm, single)
                assert np.allclose(gram, crossed @ t.dense.T, atol=tolerance * np.abs(gram).max())
                assert np.allclose(right, crossed @ layer.flat.T, atol=tolerance * np.abs(right).max())


def test_hooi_is_that_of_tensorly():
    from tensorly.decomposition import partial_tucker

    weight = np.random.default_rng(12).standard_normal((24, 16, 3, 3))
    start, *bases = hooi(weight, (9, 6), 0)
    (theirs, (a, b)), _ = partial_tucker(weight, rank=[9, 6], modes=[0, 1], n_iter_max=5, init=(start, bases), tol=0)
    ours, left, right = hooi(weight, (9, 6), 5)
    expected = np.einsum("rsij,or,cs->ocij", theirs, a, b)
    assert np.allclose(np.einsum("rsij,or,cs->ocij", ours, left, right), expected, atol=1e-10)
    assert np.square(ours).sum() > np.square(start).sum()


def correlated_layer(rng, shape):
    return Layer(None, "Conv", rng.standard_normal(shape), None, True, (1, shape[1], 8, 8), np.float32)


def correlated_norm(rng, width, samples):
    """Moments of inputs that live mostly in few directions, around a mean."""
    mixing = rng.standard_normal((width, width)) * np.exp(-np.arange(width) / 12)[:, None]
    rows = rng.standard_normal((samples, width)) @ mixing + rng.standard_normal(width)
    return Norm.of(rows.mean(0), samples, second=rows.T @ rows / samples)


@pytest.mark.parametrize("name", [n for n in FORMS if n not in ("svd", "heads")])
def test_data_aware_is_no_worse_than_plain_at_the_same_rank(name):
    form, rng = FORMS[name], np.random.default_rng(5)
    for shape in [(24, 16, 3, 3), (16, 24, 3, 3), (48, 16, 3, 3)]:
        layer = correlated_layer(rng, shape)
        norm = correlated_norm(rng, layer.width, samples=3000)
        plain = Norm.identity(layer.width)
        for share in (0.15, 0.3, 0.6):
            rank, spec = form.scaled(layer, share), form.spec(layer)
            aware = fit.compose(spec, search.factors(form, layer, norm, rank))
            blind = fit.compose(spec, search.factors(form, layer, plain, rank))
            a, b = fit.error(layer.weight, aware, norm), fit.error(layer.weight, blind, norm)
            assert a <= b
            if name == "channel" and share < 0.5 and layer.outputs <= 24:
                assert a < 0.7 * b


@pytest.mark.parametrize("shape", [(20, 50), (50, 20), (30, 30)])
def test_svd_reaches_eckart_young_in_the_norm_of_the_data(shape):
    rng = np.random.default_rng(6)
    inputs = shape[1]
    rows = rng.standard_normal((200_000, inputs)) @ rng.standard_normal((inputs, inputs))
    second = rows.T @ rows / len(rows)
    weight = rng.standard_normal(shape)
    layer = Layer(None, "MatMul", weight, None, False, (1, inputs), np.float32)
    norm = Norm.of(rows.mean(0), len(rows), second=second, centre=False)
    # independent of the code under test: singular values of W·H^(1/2) through a symmetric square root
    values, vectors = np.linalg.eigh(second)
    root = (vectors * np.sqrt(values)) @ vectors.T
    singular = np.linalg.svd(weight @ root, compute_uv=False)
    form = FORMS["svd"]
    for rank in (1, 5, 12, 19):
        factors = search.factors(form, layer, norm, (rank,))
        found = fit.error(weight[:, :], fit.compose("or,rc->oc", factors), norm)
        best = (singular[rank:] ** 2).sum() / (singular**2).sum()
        assert found == pytest.approx(best, rel=1e-6)


def test_low_rank_data_make_a_full_rank_weight_exact():
    """Inputs in a 6-dimensional subspace: rank 6 loses nothing, where the plain SVD loses most."""
    rng = np.random.default_rng(7)
    rows = rng.standard_normal((5000, 6)) @ rng.standard_normal((6, 40))
    layer = Layer(None, "MatMul", rng.standard_normal((32, 40)), None, False, (1, 40), np.float32)
    norm = Norm.of(rows.mean(0), len(rows), second=rows.T @ rows / len(rows), centre=False)
    thin = Norm.of(rows.mean(0), len(rows), thin=rows / np.sqrt(len(rows)), centre=False)
    spec, form = "or,rc->oc", FORMS["svd"]
    for n in (norm, thin):
        aware = fit.compose(spec, search.factors(form, layer, n, (6,)))
        assert fit.error(layer.weight, aware, norm) < 1e-6
    blind = fit.compose(spec, search.factors(form, layer, Norm.identity(40), (6,)))
    assert fit.error(layer.weight, blind, norm) > 0.3


def test_thin_and_dense_moments_agree():
    rng = np.random.default_rng(8)
    rows = rng.standard_normal((50, 12 * 9)) + rng.standard_normal(12 * 9)
    mean, second = rows.mean(0), rows.T @ rows / 50
    eye = np.eye(12 * 9)
    for centre in (True, False):
        dense = Norm.of(mean, 50, second=second.copy(), centre=centre)
        thin = Norm.of(mean, 50, thin=rows / np.sqrt(50), centre=centre)
        assert np.allclose(dense.apply(eye), thin.apply(eye), atol=1e-10)
        for keep in [(0,), (0, 1), (1, 2), (0, 2)]:
            a, b = dense.marginal((12, 3, 3), keep), thin.marginal((12, 3, 3), keep)
            assert np.allclose(a.apply(np.eye(a.width)), b.apply(np.eye(b.width)), atol=1e-10)


@pytest.mark.parametrize("spread", [0.0, 1e-9, 1e-5, 1e-3])
def test_an_input_that_hardly_varies_can_be_served(spread):
    """E[x xᵀ] less the mean's square is then rounding, and indefinite; every form needs a definite norm."""
    rng = np.random.default_rng(9)
    layer = correlated_layer(rng, (24, 16, 3, 3))
    rows = (rng.standard_normal(layer.width) * 30 + spread * rng.standard_normal((400, layer.width))).astype(np.float32)
    norm = Norm.of(rows.mean(0), len(rows), second=(rows.T @ rows).astype(np.float64) / len(rows))
    assert norm.definite and np.isfinite(norm.diagonal)
    for form in FORMS.values():
        if form.refuse(layer) is None:
            rank = form.scaled(layer, 0.3)
            found = search.factors(form, layer, norm, rank)
            assert all(np.isfinite(f).all() for f in found)
            assert np.isfinite(search.errors(form, layer, norm, [rank])).all()


@pytest.mark.parametrize(
    ("attrs", "shape", "reason"),
    [
        ({"group": 4}, (32, 8, 3, 3), "fewer than 16 inputs or outputs a group"),
        ({"group": 32}, (32, 1, 3, 3), "depthwise"),
        ({}, (8, 32, 3, 3), "fewer than 16"),
    ],
)
def test_refusals_have_reasons(attrs, shape, reason):
    weight = np.ones(shape, np.float32)
    model = single("Conv", attrs, weight, (1, 32, 8, 8))
    assert reason in refusal(model.graph.nodes[0])


def test_a_shared_weight_is_refused():
    w, x = gs.Constant("w", np.ones((20, 20), np.float32)), gs.Variable("x", np.float32, [2, 20])
    y, z = gs.Variable("y", np.float32), gs.Variable("z", np.float32)
    nodes = [gs.Node("MatMul", "a", {}, [x, w], [y]), gs.Node("MatMul", "b", {}, [y, w], [z])]
    model = ir.from_proto(gs.export_onnx(gs.Graph(nodes, [x], [z], opset=17)))
    assert all("shared" in refusal(n) for n in model.graph.nodes)


def test_rank_grids_are_on_the_staircase_and_save_macs():
    layer = Layer(None, "Conv", np.zeros((128, 128, 3, 3)), None, True, (1, 128, 28, 28), np.float32)
    layer = read(random_conv("plain")[0].graph.nodes[0], (1, 16, 12, 13)) if layer.geometry.strides == () else layer
    for form in FORMS.values():
        if form.refuse(layer) is None:
            found = ranks.grid(form, layer, 16, 0.9)
            assert all(form.cost(layer, r)[0] <= 0.9 * layer.macs for r in found)
            assert found == sorted(set(found), reverse=True)
            assert all(x % 8 == 0 for r in found for x in r if x >= 8)
    wide = Layer(None, "MatMul", np.zeros((384, 384)), None, True, (1, 64, 384), np.float32)
    found = [r for (r,) in ranks.grid(FORMS["svd"], wide, 16, 0.95)]
    assert found == sorted(set(found), reverse=True) and len(found) >= 12
    assert all(r % (16 if r >= 64 else 8 if r >= 32 else 4 if r >= 16 else 1) == 0 for r in found)


def test_a_share_of_the_full_rank_is_rounded_for_the_kernels_of_the_layer():
    """Products in steps of a quarter of the rank at most, convolutions in the target's multiple of channels."""
    wide = Layer(None, "MatMul", np.zeros((384, 384)), None, True, (1, 64, 384), np.float32)
    conv = read(single("Conv", {}, np.zeros((384, 384, 1, 1)), (1, 384, 4, 4)).graph.nodes[0], (1, 384, 4, 4))
    product, channels = FORMS["svd"], FORMS["channel"]
    found = [(ranks.given(product, wide, s, 16)[0], ranks.given(channels, conv, s, 16)[0]) for s in (0.06, 0.1, 0.5)]
    assert found == [(24, 16), (40, 32), (192, 192)]


def test_a_product_that_is_an_output_is_not_put_right_behind_it():
    rng = np.random.default_rng(3)
    y, z, x = (gs.Variable(n, np.float32, s) for n, s in (("y", [7, 18]), ("z", [7, 18]), ("x", [7, 20])))
    weight, bias = gs.Constant("w", rng.standard_normal((20, 18)).astype(np.float32)), np.ones(18, np.float32)
    nodes = [
        gs.Node("MatMul", "layer", {}, [x, weight], [y]),
        gs.Node("Add", "add", {}, [y, gs.Constant("b", bias)], [z]),
    ]
    model = ir.from_proto(gs.export_onnx(gs.Graph(nodes, [x], [z, y], opset=17)))
    assert not read(model.graph.nodes[0], (7, 20), ir.edit.output_ids(model)).adjustable
    model.graph.outputs.pop()
    assert read(model.graph.nodes[0], (7, 20), ir.edit.output_ids(model)).adjustable


@pytest.mark.parametrize("name", ["spatial", "spatial_t"])
@pytest.mark.parametrize("kernel", [(3, 2), (3, 2, 3)])
def test_evbmf_unfolds_as_the_form_splits(name, kernel):
    """A weight of rank one along the split is a matrix of rank one."""
    rng, form = np.random.default_rng(0), FORMS[name]
    weight = np.zeros((16, 20, *kernel))
    plain = Layer(gs.Node("Conv", "c"), "Conv", weight, None, True, (1, 20, *(8 for _ in kernel)), np.float32)
    factors = [rng.standard_normal(s) for s in form.shapes(plain, (1,))]
    layer = dataclasses.replace(plain, weight=fit.compose(form.spec(plain), factors))
    (matrix,) = ranks.unfoldings(form, layer)
    assert matrix.size == weight.size and np.linalg.matrix_rank(matrix) == 1
