"""Moments against a dense unfolding written another way; pairs against least squares; probing of shapes."""

import itertools
import pathlib

import numpy as np
import onnx
import pytest
from onnx import helper, numpy_helper
from onnxslim_opt.ir.errors import PassError
from onnxslim_opt.runtime import DataOptions, Session, moments, pairs, probe, resolve, unfold
from onnxslim_opt.runtime.pairs import Pair

from onnxslim_opt import ir

SHARED = pathlib.Path(__file__).resolve().parents[2] / "shared"


def conv(rank, channels, out, kernel, attrs, size, batch=2, bias=True):
    """A model with one Conv named "conv", and three feeds."""
    rng = np.random.default_rng(0)
    group = attrs.get("group", 1)
    weight = rng.standard_normal((out, channels // group, *kernel), np.float32)
    tensors = [numpy_helper.from_array(weight, "w")]
    if bias:
        tensors.append(numpy_helper.from_array(rng.standard_normal(out, np.float32), "b"))
    node = helper.make_node("Conv", ["x", "w", *(["b"] if bias else [])], ["y"], name="conv", **attrs)
    info = [helper.make_tensor_value_info(n, onnx.TensorProto.FLOAT, [None] * (rank + 2)) for n in "xy"]
    graph = helper.make_graph([node], "g", info[:1], info[1:], tensors)
    model = ir.from_proto(helper.make_model(graph, opset_imports=[helper.make_opsetid("", 17)], ir_version=8))
    data = [{"x": rng.standard_normal((batch, channels, *size), np.float32) + np.float32(0.5)} for _ in range(3)]
    return model, data, weight


def dense_rows(model, x, width, group):
    """[G, P, K] by asking ONNX Runtime: a Conv with one-hot filters reads out every entry of every patch."""
    probe_model = model.copy()
    node = probe_model.graph.nodes[0]
    shape = node.inputs[1].shape
    filters = np.eye(width, dtype=np.float32).reshape(width, *shape[1:])
    probe_model.graph.nodes[0].inputs[1].values = np.concatenate([filters] * group)
    node.inputs = list(node.inputs)[:2]
    y = Session(probe_model).run({"x": x})["y"].astype(np.float64)
    flat = np.moveaxis(y.reshape(y.shape[0], group, width, -1), 3, 1).reshape(-1, group, width)
    return flat.transpose(1, 0, 2)


CASES = [
    (1, 4, 6, (3,), {"pads": [1, 2]}, (9,)),
    (2, 3, 5, (3, 3), {"pads": [1, 1, 1, 1]}, (7, 6)),
    (2, 4, 6, (3, 2), {"strides": [2, 3], "pads": [0, 1, 2, 0]}, (9, 10)),
    (2, 4, 6, (3, 3), {"dilations": [2, 3], "pads": [2, 3, 2, 3]}, (8, 9)),
    (2, 6, 4, (3, 3), {"group": 2, "strides": [2, 2], "pads": [1, 1, 1, 1]}, (8, 7)),
    (2, 5, 5, (3, 3), {"group": 5, "pads": [1, 1, 1, 1]}, (6, 6)),
    (2, 5, 10, (5, 3), {"group": 5, "dilations": [1, 2]}, (9, 9)),
    (2, 3, 4, (3, 3), {"auto_pad": "SAME_UPPER", "strides": [2, 2]}, (8, 7)),
    (2, 3, 4, (4, 4), {"auto_pad": "SAME_LOWER", "strides": [2, 1]}, (8, 7)),
    (2, 3, 4, (3, 3), {"auto_pad": "VALID", "strides": [2, 1]}, (8, 7)),
    (2, 8, 4, (1, 1), {}, (5, 5)),
    (3, 2, 3, (2, 3, 2), {"pads": [1, 1, 0, 0, 1, 1], "strides": [1, 2, 1]}, (4, 5, 4)),
]


@pytest.mark.parametrize(("rank", "channels", "out", "kernel", "attrs", "size"), CASES)
def test_conv_moments_match_a_dense_unfolding(rank, channels, out, kernel, attrs, size):
    model, data, weight = conv(rank, channels, out, kernel, attrs, size)
    group, width = attrs.get("group", 1), int(np.prod(weight.shape[1:]))
    moment = moments.collect(model, ["conv"], resolve(data, model), max_rows_per_feed=10**6)["conv"]
    rows = np.concatenate([dense_rows(model, f["x"], width, group) for f in data], axis=1)
    H, mean = np.swapaxes(rows, 1, 2) @ rows / rows.shape[1], rows.mean(1)
    assert moment.samples == rows.shape[1] and moment.width == width
    if group == 1:
        H, mean = H[0], mean[0]
    np.testing.assert_allclose(moment.mean, mean, atol=1e-6)
    np.testing.assert_allclose(moment.second, H, atol=1e-5 * np.abs(H).max())


@pytest.mark.parametrize(("rank", "channels", "out", "kernel", "attrs", "size"), CASES)
def test_rows_times_weight_are_the_output(rank, channels, out, kernel, attrs, size):
    model, data, weight = conv(rank, channels, out, kernel, attrs, size, bias=False)
    geo = unfold.geometry(model.graph.nodes[0])
    x = data[0]["x"]
    y = Session(model).run(data[0])["y"]
    total = unfold.count(geo, x.shape)
    assert total == y.size // out
    picked = unfold.choose(total, total // 2, 5, "conv", 0)
    rows = unfold.rows(geo, x, picked)
    product = rows @ np.swapaxes(weight.reshape(geo.groups, out // geo.groups, geo.width), 1, 2)
    np.testing.assert_allclose(product, unfold.targets(geo, y, picked), atol=1e-4)


def linear(text, weight_shape):
    rng = np.random.default_rng(1)
    model = ir.text.parse(text)
    model.graph.nodes[0].name = "fc"
    model.graph.nodes[0].inputs[1].values = rng.standard_normal(weight_shape, np.float32)
    return model, rng


@pytest.mark.parametrize(
    ("text", "weight", "shape", "unroll"),
    [
        ("g (float[N,6] x) => (float[N,4] y) <float[1] w = {0}> { y = Gemm(x, w) }", (6, 4), (9, 6), lambda x: x),
        (
            "g (float[N,6] x) => (float[N,4] y) <float[1] w = {0}> { y = Gemm<transB=1>(x, w) }",
            (4, 6),
            (9, 6),
            lambda x: x,
        ),
        (
            "g (float[6,N] x) => (float[N,4] y) <float[1] w = {0}> { y = Gemm<transA=1>(x, w) }",
            (6, 4),
            (6, 9),
            lambda x: x.T,
        ),
        (
            "g (float[N,T,6] x) => (float[N,T,4] y) <float[1] w = {0}> { y = MatMul(x, w) }",
            (6, 4),
            (2, 5, 6),
            lambda x: x.reshape(-1, 6),
        ),
        ("g (float[6] x) => (float[4] y) <float[1] w = {0}> { y = MatMul(x, w) }", (6, 4), (6,), lambda x: x[None]),
    ],
)
def test_gemm_and_matmul_moments(text, weight, shape, unroll):
    model, rng = linear(text, weight)
    data = [{"x": rng.standard_normal(shape, np.float32)} for _ in range(7)]
    moment = moments.collect(model, ["fc"], resolve(data, model), max_rows_per_feed=100)["fc"]
    rows = np.concatenate([unroll(f["x"]) for f in data]).astype(np.float64)
    np.testing.assert_allclose(moment.second, rows.T @ rows / len(rows), atol=1e-6)
    np.testing.assert_allclose(moment.mean, rows.mean(0), atol=1e-7)
    geo = unfold.geometry(model.graph.nodes[0])
    y = Session(model).run(data[0])["y"]
    total = unfold.count(geo, data[0]["x"].shape)
    matrix = model.graph.nodes[0].inputs[1].values
    matrix = matrix.T if model.graph.nodes[0].attrs.get("transB") else matrix
    picked = np.arange(total)
    np.testing.assert_allclose(
        unfold.rows(geo, data[0]["x"], picked) @ matrix, unfold.targets(geo, y, picked), atol=1e-5
    )


def test_few_rows_are_kept_as_a_thin_factor():
    model, data, _ = conv(2, 16, 4, (3, 3), {}, (5, 5), batch=1)  # 144 columns, 3 · 9 rows
    moment = moments.collect(model, ["conv"], resolve(data, model))["conv"]
    assert moment.H is None and moment.X.shape == (27, 144) and moment.X.dtype == np.float32
    full = moments.collect(model, ["conv"], resolve(data * 20, model))["conv"]
    assert full.X is None and full.H.shape == (144, 144)
    np.testing.assert_allclose(full.H, moment.second, atol=1e-4)


def test_rows_that_wait_are_joined_in_their_order():
    rng = np.random.default_rng(0)
    parts = [rng.standard_normal((3, n, 5)).astype(np.float32) for n in (4, 0, 2, 6)]
    rows = moments.Rows(12)
    for part in parts:
        rows.add(part, part[:, :, :2])
    whole, less = rows.take()
    np.testing.assert_array_equal(whole, np.concatenate(parts, axis=1))
    np.testing.assert_array_equal(less, np.concatenate(parts, axis=1)[:, :, :2])
    rows.add(parts[0], parts[0])
    assert rows.held == 4
    np.testing.assert_array_equal(rows.take()[0], parts[0])
    np.testing.assert_array_equal(whole, np.concatenate(parts, axis=1))  # what was taken is not written to again


def test_an_h_beyond_the_budget_is_thin():
    model, rng = linear("g (float[N,600] x) => (float[N,4] y) <float[1] w = {0}> { y = Gemm(x, w) }", (600, 4))
    data = [{"x": rng.standard_normal((200, 600), np.float32)} for _ in range(4)]
    moment = moments.collect(model, ["fc"], resolve(data, model), memory_mb=1)["fc"]
    assert moment.H is None and moment.X.nbytes <= 1 << 19
    wide = moments.collect(model, ["fc"], resolve(data, model), memory_mb=100)["fc"]
    assert wide.X is None and wide.H.shape == (600, 600)


def test_sampling_is_seeded_and_waves_change_nothing(monkeypatch):
    text = (
        "g (float[N,3,H,W] x) => (float[N,4,A,B] y) <float[4,3,3,3] w = {" + ",".join(map(str, range(108))) + "},"
        " float[4,4,1,1] v = {" + ",".join(map(str, range(16))) + "}> { a = Conv(x, w) r = Relu(a) y = Conv(r, v) }"
    )
    model = ir.text.parse(text)
    names = [n.name for n in model.graph.nodes if n.op == "Conv"]
    rng = np.random.default_rng(0)
    feeds = resolve([{"x": rng.standard_normal((1, 3, 12, 12 + k), np.float32)} for k in range(5)], model)
    base = moments.collect(model, names, feeds, max_rows_per_feed=20, seed=3)
    assert list(base) == names and all(m.samples == 100 for m in base.values())
    for split in (False, True):
        if split:  # a wave for every layer
            monkeypatch.setattr(moments, "waves", lambda names, sizes, budget: [[n] for n in names])
        again = moments.collect(model, names[::-1], feeds, max_rows_per_feed=20, seed=3)
        assert list(again) == names[::-1]
        for name in names:
            np.testing.assert_allclose(again[name].second, base[name].second, rtol=1e-6)
    other = moments.collect(model, names, feeds, max_rows_per_feed=20, seed=4)
    assert not np.allclose(other[names[0]].second, base[names[0]].second, rtol=1e-6)
    assert [n for n, _ in moments.stream(model, names[::-1], feeds)] == names


def test_nodes_that_are_not_linear_are_refused():
    model = ir.text.parse("g (float[N,4] x, float[4,4] z) => (float[N,4] y) { a = Relu(x) y = MatMul(a, z) }")
    feeds = resolve([{"x": np.ones((1, 4), np.float32), "z": np.ones((4, 4), np.float32)}], model)
    with pytest.raises(PassError, match="Relu"):
        moments.collect(model, [model.graph.nodes[0].name], feeds)
    with pytest.raises(PassError, match="no node 'nope'"):
        moments.collect(model, ["nope"], feeds)


# ---------------------------------------------------------------- pairs


def two_layers(keep):
    """Conv - Relu - Conv, and the same with only the channels `keep` between."""
    rng = np.random.default_rng(2)
    w, v = rng.standard_normal((6, 3, 3, 3), np.float32), rng.standard_normal((5, 6, 3, 3), np.float32)

    def build(w, v):
        nodes = [
            helper.make_node("Conv", ["x", "w"], ["a"], name="first", pads=[1, 1, 1, 1]),
            helper.make_node("Relu", ["a"], ["r"], name="relu"),
            helper.make_node("Conv", ["r", "v"], ["y"], name="second", strides=[2, 2]),
        ]
        info = [helper.make_tensor_value_info(n, onnx.TensorProto.FLOAT, [None] * 4) for n in "xy"]
        tensors = [numpy_helper.from_array(w, "w"), numpy_helper.from_array(v, "v")]
        graph = helper.make_graph(nodes, "g", info[:1], info[1:], tensors)
        return ir.from_proto(helper.make_model(graph, opset_imports=[helper.make_opsetid("", 17)], ir_version=8))

    data = [{"x": rng.standard_normal((2, 3, 8, 9), np.float32)} for _ in range(4)]
    return build(w, v), build(w[keep], v[:, keep]), data


@pytest.mark.parametrize("target", ["x", "y"])
@pytest.mark.parametrize("memory_mb", [0, 512])
def test_pairs_match_dense_sums(target, memory_mb):
    original, small, data = two_layers([0, 2, 3, 5])
    feeds = resolve(data, original)
    found = pairs.collect_pairs(
        original, small, [Pair("second", "second", target)], feeds, max_rows_per_feed=13, memory_mb=memory_mb
    )["second"]
    geo, geo_small = unfold.geometry(original.graph.nodes[2]), unfold.geometry(small.graph.nodes[2])
    xs, ts = [], []
    for k, feed in enumerate(data):
        ours = Session(original, outputs=["r", "y"]).run(feed)
        theirs = Session(small, outputs=["r"]).run(feed)["r"]
        picked = unfold.choose(unfold.count(geo, ours["r"].shape), 13, 0, "second", k)
        xs.append(unfold.rows(geo_small, theirs, picked)[0])
        ts.append(
            unfold.rows(geo, ours["r"], picked)[0] if target == "x" else unfold.targets(geo, ours["y"], picked)[0]
        )
    x, t = np.concatenate(xs).astype(np.float64), np.concatenate(ts).astype(np.float64)
    assert found.samples == len(x) == 52
    np.testing.assert_allclose(found.H, x.T @ x / len(x), atol=1e-5)
    np.testing.assert_allclose(found.G, t.T @ x / len(x), atol=1e-4)
    np.testing.assert_allclose(found.mean, x.mean(0), atol=1e-6)
    np.testing.assert_allclose(found.mean_target, t.mean(0), atol=1e-5)
    assert found.energy == pytest.approx((t**2).sum(1).mean(), rel=1e-6)


def test_refit_by_pairs_is_least_squares():
    original, small, data = two_layers([0, 2, 3, 5])
    feeds = resolve(data * 3, original)
    found = pairs.collect_pairs(original, small, [Pair("second", "second")], feeds, max_rows_per_feed=1000)["second"]
    weight = small.graph.nodes[2].inputs[1]
    refit = np.linalg.solve(found.H, found.G.T).T

    def error():
        return sum(float(((Session(original).run(f)["y"] - Session(small).run(f)["y"]) ** 2).sum()) for f in data)

    before = error()
    weight.values = refit.reshape(weight.shape).astype(np.float32)
    after = error()
    rows = found.samples
    assert after * 3 == pytest.approx((found.energy - np.einsum("ij,ij->", refit, found.G)) * rows, rel=1e-3)
    assert after < 0.7 * before
    for step in (0.99, 1.01):  # no scaling of the optimum is better
        weight.values = (step * refit).reshape(weight.shape).astype(np.float32)
        assert error() > after


def test_pairs_that_do_not_belong_together():
    original, small, data = two_layers([0, 1])
    feeds = resolve(data, original)
    with pytest.raises(PassError, match="do not run over the same positions"):
        pairs.collect_pairs(original, small, [Pair("first", "second")], feeds)
    with pytest.raises(PassError, match="no node 'nope'"):
        pairs.collect_pairs(original, small, [Pair("nope", "second")], feeds)


# ---------------------------------------------------------------- probing


def test_shapes_and_values_by_running():
    model = ir.text.parse(
        "g (float[N,T] x) => (float[N,T] y, int64[K,2] n) { a = NonZero(x) n = Transpose(a) s = SequenceConstruct(x, x)"
        " c = ConcatFromSequence<axis=0>(s) y = Relu(x) }"
    )
    feed = {"x": np.float32([[0, 1, 2], [0, 0, 3]])}
    assert probe.shapes(model, feed) == {"x": (2, 3), "a": (2, 3), "n": (3, 2), "c": (4, 3), "y": (2, 3)}
    assert probe.shapes(model, feed, ["y"]) == {"y": (2, 3)}
    assert probe.sizes(model, feed, ["a", "y"]) == {"a": 48, "y": 24}
    np.testing.assert_array_equal(probe.values(model, ["y", "x"], feed)["y"], feed["x"])


@pytest.mark.skipif(not SHARED.exists(), reason="the shared models are not here")
@pytest.mark.parametrize("name", ["squeezenet1_1", "vit_pgd_2_3_16", "kwt1", "silero_vad", "mnist"])
def test_shapes_of_real_models(name):
    model = ir.load(SHARED / "models" / f"{name}.onnx")
    feed = resolve(None, model, DataOptions(samples=1)).first()
    found = probe.shapes(model, feed)
    names = list(itertools.islice((n for n in found if n not in feed), 20))
    for tensor, value in probe.values(model, names, feed).items():
        assert found[tensor] == np.shape(value)
