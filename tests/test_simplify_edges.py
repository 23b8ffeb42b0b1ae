"""`simplify` where operators are picky: open sizes, types, defaults, masks, numbers that are not finite."""

import casefiles
import numpy as np
import onnx
import pytest
import suite
from onnxslim_opt.ir import text, verify
from onnxslim_opt.passes.simplify import Simplify

from onnxslim_opt import ir


def _left(source, feeds, opset=17, raised=0):
    """The operators that `simplify` leaves; values (those that are not finite as well) and interface stay the same."""
    model = casefiles.parse(source, str(opset))
    data = ir.to_bytes(model)
    Simplify(opset=raised).run(model)
    verify.check(model)
    result = ir.to_bytes(model)
    declared = [list(onnx.ModelProto.FromString(d).graph.output) for d in (data, result)]
    assert declared[0] == declared[1]
    one, two = suite.session(data), suite.session(result)
    assert suite.interface(one)[:2] == suite.interface(two)[:2]
    for x, y in zip(one.run(None, feeds), two.run(None, feeds)):
        assert x.shape == y.shape and x.dtype == y.dtype
        np.testing.assert_allclose(y, x, rtol=1e-5, atol=1e-6)
    return [n.op for n in model.nodes()]


def _numbers(*shape, kind=np.float32, name="x"):
    return {name: np.random.default_rng(0).normal(size=shape).astype(kind)}


PIECES = {
    "a slice": ("S", "a,b,c", "a = Slice(p, one, far, one)\n y = Mul(a, half)"),
    "a slice of a known size": ("3", "a,b,c", "a = Slice(p, one, far, one)\n y = Mul(a, half)"),
    "another reader": (
        "S",
        "a,b,c",
        "a = Gather<axis = 1>(p, first)\n h = Mul(a, half)\n b = Slice(p, one, far, one)\n y = Sub(h, b)",
    ),
    "beyond a size of one": ("S", "a,b", "a = Gather<axis = 1>(p, second)\n y = Mul(a, half)"),
    "rows of other sizes": (
        "S",
        "a",
        "r = Reshape(p, rows)\n a = Gather(r, first)\n h = Mul(a, half)\n b = Gather(r, second)\n y = Sub(h, b)",
    ),
}


@pytest.mark.parametrize(("size", "shape", "body"), PIECES.values(), ids=PIECES)
def test_factors_stay_behind_pieces_of_an_open_size(size, shape, body):
    columns = ", ".join(str(k % 7 - 3.5) for k in range(24))
    source = f"""
        g (float[2,{size},4] x) => (float[{shape}] y)
        <float[4,6] w = {{{columns}}}, float half = {{0.5}}, int64 first = {{0}}, int64 second = {{1}},
         int64[1] one = {{1}}, int64[1] far = {{99}}, int64[2] rows = {{4, -1}}> {{
          p = MatMul(x, w)
          {body} }}"""
    assert ("Mul" in _left(source, _numbers(2, 3, 4))) == (size == "S")


CALLS = {
    "graph": "y = d.f(x)\n z = d.f<slope = 0.5>(x)",
    "branch": """z = Neg(x)
      y = If(c) <then_branch = t () => (float[2] a) { a = d.f(x) },
                 else_branch = e () => (float[2] b) { b = Exp(x) }>""",
    "function": "y = d.outer(x)\n z = Neg(x)",
}


@pytest.mark.parametrize("calls", CALLS.values(), ids=CALLS)
def test_attributes_of_functions_keep_their_defaults(calls):
    model = text.parse(f"""
        <ir_version: 8, opset_import: ["" : 17, "d" : 1]>
        g (float[2] x, bool c) => (float[2] y, float[2] z) {{ {calls} }}
        <domain: "d", opset_import: ["" : 17]>
        f <slope: float = 0.2> (v) => (w) {{ w = LeakyRelu<alpha: float = @slope>(v) }}
        <domain: "d", opset_import: ["" : 17, "d" : 1]>
        outer (v) => (w) {{ w = d.f(v) }}""")
    Simplify().run(model)
    slopes = sorted(round(n.attrs["alpha"], 6) for n in model.nodes() if n.op == "LeakyRelu")
    assert slopes == ([0.2, 0.5] if "slope" in calls else [0.2])


MASKED = """
    g (float[1,2,3,4] q, float[1,2,3,4] k, float[1,2,3,4] v, bool[3,3] b) => (float[1,2,3,4] y)
    <float zero = {0.0}, float far = {-1e30}, float low = {-3.4028235e38},
     float[3,3] some = {0.0, -3.4028235e38, -3.4028235e38, 0.0, 0.0, -3.4028235e38, 0.0, 0.0, 0.0},
     float[3,3] none = {-3.4028235e38, -3.4028235e38, -3.4028235e38, 0.0, 0.0, 0.0, 0.0, 0.0, 0.0}> {
      m = MASK
      t = Transpose<perm = [0, 1, 3, 2]>(k)
      p = MatMul(q, t)
      s = Add(p, m)
      a = Softmax<axis = -1>(s)
      y = MatMul(a, v)
    }"""


@pytest.mark.parametrize(
    ("mask", "fused"),
    [
        ("Where(b, zero, far)", True),
        ("Where(b, zero, low)", False),
        ("Identity(some)", True),
        ("Identity(none)", False),
    ],
)
def test_rows_hidden_by_the_lowest_float_stay_means(mask, fused):
    feeds = {name: value for k in "qkv" for name, value in _numbers(1, 2, 3, 4, name=k).items()}
    feeds["b"] = np.array([[1, 0, 0], [0, 0, 0], [1, 1, 1]], bool)
    assert ("Attention" in _left(MASKED.replace("MASK", mask), feeds, 23)) == fused


def test_outputs_that_an_operator_demands_stay():
    normal = """
        g (float[2,3] x) => (float[2,3] y) <float[3] s = {1.0, 2.0, 3.0}> {
          y, mean, variance = BatchNormalization<training_mode = 1>(x, s, s, s, s) }"""
    cached = """
        g (float[1,2,3,4] x, float[1,2,5,4] p) => (float[1,2,3,4] y) { y, keys, values = Attention(x, x, x, , p, p) }"""
    assert _left(normal, _numbers(2, 3), 15) == ["BatchNormalization"]
    feeds = {**_numbers(1, 2, 3, 4), **_numbers(1, 2, 5, 4, name="p")}
    assert _left(cached, feeds, 23) == ["Attention"]
    assert _left(cached.replace(", , p, p", ""), feeds, 23) == ["Attention"]


@pytest.mark.parametrize(
    ("body", "opset", "ops"),
    [
        ("y = ReduceMean<axes = [2, 3]>(x)", 17, ["ReduceMean"]),
        ("t = Add(x, three)\n c = Clip(t, zero, six)\n y = Div(c, six)", 17, ["Add", "Clip", "Div"]),
        ("t = Max(x, zero)\n y = Min(t, six)", 10, ["Max", "Min"]),
        ("t = Max(x, zero)\n y = Min(t, six)", 11, ["Max", "Min"]),
        ("t = Max(x, zero)\n y = Min(t, six)", 12, ["Clip"]),
    ],
)
def test_doubles_stay_where_onnx_runtime_has_no_operator(body, opset, ops):
    source = f"""
        g (double[1,2,3,3] x) => (double[a,b,c,d] y)
        <double zero = {{0.0}}, double three = {{3.0}}, double six = {{6.0}}> {{ {body} }}"""
    assert _left(source, _numbers(1, 2, 3, 3, kind=np.float64), opset) == ops


def test_pooling_of_four_axes_stays_a_reduction():
    source = "g (float[1,2,2,2,2,2] x) => (float[1,2,1,1,1,1] y) { y = ReduceMean<axes = [2, 3, 4, 5]>(x) }"
    assert _left(source, _numbers(1, 2, 2, 2, 2, 2)) == ["ReduceMean"]


def test_means_of_integers_are_rounded_each_time():
    source = """
        g (int32[2,2] x) => (int32[1,1] y) { a = ReduceMean<axes = [1]>(x)
          y = ReduceMean<axes = [0]>(a) }"""
    assert _left(source, {"x": np.array([[0, 1], [1, 2]], np.int32)}) == ["ReduceMean"] * 2
    assert _left(source.replace("int32", "float"), _numbers(2, 2)) == ["ReduceMean"]


@pytest.mark.parametrize(("first", "second", "count"), [("12582912.0", "-12582912.0", 2), ("0.5", "-0.25", 1)])
def test_terms_that_cancel_round(first, second, count):
    source = f"""
        g (float[4] x) => (float[4] y) <float a = {{{first}}}, float b = {{{second}}}> {{ t = Add(x, a)
          y = Add(t, b) }}"""
    assert _left(source, {"x": np.array([0.3, 1.7, 2.2, -0.6], np.float32)}) == ["Add"] * count


SHIFTS = {  # what stands before a product, how large its shift is, the type, and what is left
    "small": ("Sub(x, t)", 100.0, "float", ["Gemm"]),
    "large": ("Sub(x, t)", 1e6, "float", ["Sub", "MatMul"]),
    "large, and negative": ("Sub(t, x)", 1e6, "float", ["Sub", "MatMul"]),
    "large, of few bits": ("Add(x, t)", -100.0, "float16", ["Add", "MatMul"]),
    "small, of few bits": ("Add(x, t)", -2.0, "float16", ["Gemm"]),
    "large, of many bits": ("Sub(x, t)", 1e6, "double", ["Gemm"]),
    "a norm of a small mean": ("BatchNormalization(x, g, b, t, v)", 20.0, "float", ["Conv"]),
    "a norm of a large mean": ("BatchNormalization(x, g, b, t, v)", 1e4, "float", ["BatchNormalization", "Conv"]),
}


@pytest.mark.parametrize(("before", "shift", "kind", "ops"), SHIFTS.values(), ids=SHIFTS)
def test_a_shift_that_dwarfs_what_it_leaves_stays_before_the_product(before, shift, kind, ops):
    norm = before.startswith("Batch")
    shape, result, weight, product = (
        ("1,4,3,3", "1,5,3,3", "5,4,1,1", "Conv") if norm else ("6,4", "6,5", "4,5", "MatMul")
    )
    dtype, number = {"float": (np.float32, 1), "float16": (np.float16, 10), "double": (np.float64, 11)}[kind]
    rng = np.random.default_rng(0)
    values = {"w": [round(float(v), 4) for v in rng.normal(size=20)], "t": [shift] * 4}
    values |= {"g": [0.5] * 4, "b": [0.1] * 4, "v": [2.0] * 4} if norm else {}
    given, casts = [], []
    for name, numbers in values.items():  # the text knows no numbers of float16
        given.append(f"float[{weight if name == 'w' else 4}] {name}_ = {{{', '.join(map(str, numbers))}}}")
        casts.append(f"{name} = Cast<to = {number}>({name}_)")
    source = f"""
        g ({kind}[{shape}] x) => ({kind}[{result}] y) <{", ".join(given)}> {{
          {" ".join(casts)}
          a = {before}
          y = {product}(a, w) }}"""
    model = casefiles.parse(source, "17")
    data = ir.to_bytes(model)
    Simplify().run(model)
    assert [n.op for n in model.nodes()] == ops
    x = (abs(shift) + rng.normal(size=[int(d) for d in shape.split(",")])).astype(dtype)
    one, two = (suite.session(d).run(None, {"x": x})[0] for d in (data, ir.to_bytes(model)))
    assert np.abs(one - two).max() <= (5e-3 if kind == "float16" else 1e-5) * np.abs(one).max()


def test_maxima_that_are_not_finite_stay():
    x = np.ones((1, 2, 2, 2), np.float32)
    x[0, 0], x[0, 1, 1, 1] = -np.inf, np.nan
    source = "g (float[1,2,2,2] x) => (float[1,2,1,1] y) { y = ReduceMax<axes = [2, 3]>(x) }"
    assert _left(source, {"x": x}) == ["ReduceMax"]


@pytest.mark.parametrize("opset", [6, 11, 17])
@pytest.mark.parametrize(
    ("body", "ops"),
    [
        ("y = Clip(x)", ["Clip"]),
        ("a = Relu(x)\n y = Clip(a)", ["Clip"]),
        ("a = Clip(x)\n y = Relu(a)", ["Clip"]),
        ("a = Clip(x)\n y = Clip(a)", ["Clip"]),
        ("a = {above}\n y = Relu(a)", ["Clip"]),
        ("a = {above}\n y = Clip(a)", ["Clip"]),
        ("a = {open}\n y = Relu(a)", ["Relu"]),
        ("a = Sigmoid(x)\n y = Clip(a)", ["Sigmoid"]),
    ],
)
def test_a_clip_without_bounds_stops_what_is_infinite(opset, body, ops):
    above, wide = ("Clip<min = -2.0>(x)", "Clip<min = 0.0, max = inf>(x)") if opset < 11 else ("Clip(x, low)", "")
    wide = wide or "Clip(x, zero, far)"
    source = f"""
        g (float[6] x) => (float[6] y) <float low = {{-2.0}}, float zero = {{0.0}}, float far = {{inf}}> {{
          {body.format(above=above, open=wide)} }}"""
    x = np.array([np.inf, -np.inf, np.nan, 3e38, -3e38, 1], np.float32)
    assert _left(source, {"x": x}, opset) == ops


def test_a_clip_of_integers_without_bounds_does_nothing():
    source = "g (int32[2] x) => (int32[2] y) { a = Clip(x)\n y = Add(a, x) }"
    assert _left(source, {"x": np.array([2**31 - 1, -(2**31)], np.int32)}) == ["Add"]


def test_raising_the_opset_keeps_the_declared_outputs():
    source = """
        g (float[N,1,3] x) => (float[a,b] y) { s = Squeeze<axes = [1]>(x)
          y = Neg(s) }"""
    assert _left(source, _numbers(2, 1, 3), 11, raised=21) == ["Squeeze", "Neg"]


def test_no_axes_squeeze_all():
    source = """
        g (float[2,1,3] x) => (float[a,b] y) <int64[0] none = {}, int64[1] first = {0}> { u = Unsqueeze(x, first)
          s = Squeeze(u, none)
          y = Relu(s) }"""
    assert _left(source, _numbers(2, 1, 3))[-1] == "Relu"


@pytest.mark.parametrize(
    ("outputs", "rest", "flushed"),
    [
        ("float[2,2] y, float[2,2] w", "", False),
        ("float[2,2] y, float[2,2] z", "z = Div(x, w)", False),
        ("float[2,2] y, float[2,2] z", "z = MatMul(y, w)", True),
    ],
    ids=["an output", "another reader", "two products"],
)
def test_vanishing_weights_that_others_see_stay(outputs, rest, flushed):
    source = (
        f"g (float[2,2] x) => ({outputs}) <float[2,2] w = {{1.0, 1e-32, 1.0, 1.0}}> {{ y = MatMul(x, w)\n {rest} }}"
    )
    model = casefiles.parse(source, "17")
    result = Simplify().run(model)
    assert result.did == ({"vanishing weights set to zero": 1} if flushed else {})


def test_a_dilated_pool_keeps_its_pad():
    source = """
        g (float[1,1,1] x) => (float[a,b,c] y) <int64[6] p = {0, 0, 1, 0, 0, 1}> { r = Relu(x)
          q = Pad(r, p)
          y = MaxPool<kernel_shape = [2], dilations = [2]>(q) }"""
    assert _left(source, {"x": np.ones((1, 1, 1), np.float32)}) == ["Relu", "Pad", "MaxPool"]


def test_constants_of_one_axis_stay_where_the_rank_is_unknown():
    source = """
        g (float[1] x, int64[K] shape) => (float[a] y) <float[1] three = {3.0}, float zero = {0.0}, float six = {6.0}> {
          q = Reshape(x, shape)
          t = Add(q, three)
          c = Clip(t, zero, six)
          y = Div(c, six) }"""
    feeds = {"x": np.ones(1, np.float32), "shape": np.array([], np.int64)}
    assert _left(source, feeds) == ["Reshape", "Add", "Clip", "Div"]


def test_an_index_out_of_range_in_a_branch_not_taken():
    source = """
        g (bool c, float[2,3] x) => (float[K] y) {
          y = If(c) <then_branch = a () => (float[2] u) { i = Constant<value = int64 {7}>()
            t = Transpose(x)
            u = Gather(t, i) }, else_branch = b () => (float[2] v) { j = Constant<value = int64 {1}>()
            v = Gather<axis = 1>(x, j) }> }"""
    assert "If" in _left(source, {"c": np.array(False), **_numbers(2, 3)})
