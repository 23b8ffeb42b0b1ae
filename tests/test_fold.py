"""`fold`: every case file, and what text cannot show."""

import casefiles
import numpy as np
import onnx
import onnxruntime as ort
import pytest
import suite
from onnxslim_opt.ir import edit, order, shapes, text
from onnxslim_opt.passes.fold import Fold, candidates, endless
from onnxslim_opt.passes.fold.partial import Follower
from onnxslim_opt.passes.simplify import Simplify

from onnxslim_opt import ir


@pytest.mark.parametrize("path", casefiles.found("fold"), ids=lambda p: p.stem)
def test_case(path):
    casefiles.check(path)


def _fold(model, **options):
    shapes.refresh(model)
    return Fold(**options).run(model)


def test_a_failing_node_is_skipped_with_its_reason_and_the_others_fold():
    model = text.parse("""
        g (float[2] x) => (float[2] y, float[4] z)
        <float[2] a = {1.0, 2.0}, float[6] b = {1.0, 2.0, 3.0, 4.0, 5.0, 6.0}, int64[1] s = {4}> {
          c = Exp(a)
          y = Mul(x, c)
          d = Neg(b)
          z = Reshape(d, s)
        }""")
    result = _fold(model)
    assert [n.op for n in model.nodes()] == ["Mul", "Reshape"]
    assert any("could not be computed" in s.reason for s in result.skipped)


COUNT = "r = Add(s, one)\n d = Less(r, seven)"
LOOPS = {  # limit of the loop, condition before it, body, and why it stays ("": it folds)
    "for ever": ("", "yes", "r = Add(s, one)\n d = Or(c, yes)", "more trips than are tried"),
    "no condition": ("", "", "r = Add(s, one)\n d = Identity(c)", "more trips than are tried"),
    "too long": ("long", "yes", "r = Add(s, one)\n d = Or(c, yes)", "more trips than are tried"),
    "long": ("short", "yes", "r = Add(s, one)\n d = Or(c, yes)", ""),
    "until": ("", "yes", COUNT, ""),
    "until, of a computed limit": ("twice", "yes", COUNT, ""),
    "not at all": ("", "no", COUNT, ""),
    "inside, for ever": (
        "seven",
        "yes",
        """d = Identity(c)
          r = Loop(, yes, s) <body = inner (int64 j, bool e, int64 v) => (bool f, int64 u) {
            u = Add(v, one)
            f = Or(e, yes) }>""",
        "a loop inside it may take more than",
    ),
    "inside, a few": (
        "short",
        "yes",
        """d = Less(s, seven)
          r = Loop(one, , s) <body = inner (int64 j, bool e, int64 v) => (bool f, int64 u) {
            u = Add(v, one)
            f = Identity(e) }>""",
        "",
    ),
}


@pytest.mark.parametrize(("limit", "before", "body", "stays"), LOOPS.values(), ids=LOOPS)
def test_a_loop_of_constants_folds_only_where_it_ends(limit, before, body, stays):
    source = f"""
        g (float[2] x, bool b) => (float[2] y)
        <int64 one = {{1}}, int64 seven = {{7}}, int64 short = {{5000}}, int64 long = {{20000}}, bool yes = {{1}}> {{
          y = If(b) <then_branch = t () => (float[2] p) {{
            twice = Add(long, long)
            no = Not(yes)
            w, all = Loop({limit}, {before}, one)
              <body = trip (int64 i, bool c, int64 s) => (bool d, int64 r, int64 k) {{
              {body}
              k = Mul(i, seven) }}>
            last = ReduceSum(all)
            both = Add(w, last)
            z = Cast <to = 1> (both)
            p = Add(x, z)
          }}, else_branch = e () => (float[2] q) {{ q = Neg(x) }}>
        }}"""
    model = casefiles.parse(source, "17")
    sessions = [suite.session(ir.to_bytes(model))]
    result = _fold(model)
    left = {n.name for n in model.nodes() if n.op == "Loop" and n.inputs[2].name == "one"}
    reasons = [s.reason for s in result.skipped if s.node in left]
    assert len(left) == len(reasons) == bool(stays) and all(stays in reason for reason in reasons)
    sessions.append(suite.session(ir.to_bytes(model)))
    for taken in (False,) if stays else (False, True):
        feeds = {"x": np.ones(2, np.float32), "b": np.array(taken)}
        one, two = (s.run(None, feeds)[0] for s in sessions)
        np.testing.assert_array_equal(two, one)


def test_a_loop_that_puts_much_together_is_tried_for_fewer_trips():
    model = text.parse("""
        g (float[2] x) => (float[n] y) <float[1000] big = {0.0}, int64 one = {1}> {
          last, y = Loop(, , one) <body = b (int64 i, bool c, int64 s) => (bool d, int64 r, float[1000,1000] k) {
            d = Identity(c)
            r = Identity(s)
            k = Expand(big, s) }> }""")
    assert endless.allowed(model.graph.nodes[0], candidates.size_of) == (1 << 30) // 4_000_000


def test_growth_is_bounded_in_total_and_said():
    model = text.parse("""
        g (float[128,128] x) => (float[128,128] y) <float one = {1.5}, int64[2] s = {128, 128}> {
          e = Expand(one, s)
          y = Add(x, e)
        }""")
    result = _fold(model.copy())
    assert not result.changed
    assert "would grow by 65536 bytes" in result.skipped[0].reason
    assert _fold(model, growth=1e4).did["nodes folded"] == 1


def test_a_result_too_large_is_never_computed():
    model = text.parse("""
        g (float[2] x) => (float[2] y) <int64[2] s = {1000000, 1000000}> {
          e = ConstantOfShape(s)
          f = ReduceSum<keepdims = 0>(e)
          y = Add(x, f)
        }""")
    result = _fold(model)
    assert any("too large" in s.reason for s in result.skipped)


def test_arrays_are_not_written_in_place_and_the_copy_stays():
    model = text.parse("g (float[2] x) => (float[2] y) <float[2] a = {1.0, 4.0}> { b = Sqrt(a)\n y = Add(x, b) }")
    before = model.copy()
    _fold(model)
    assert [n.op for n in before.nodes()] == ["Sqrt", "Add"]
    np.testing.assert_array_equal(edit.const(next(before.nodes()), 0), [1, 4])


def test_a_long_chain_is_one_batch():
    lines = "\n".join(f"c{k + 1} = Add(c{k}, x0)" for k in range(1500))
    model = text.parse(f"""
        g (float[2] x) => (float[2] y) <float[2] c0 = {{0.0, 0.0}}, float[2] x0 = {{1.0, 2.0}}> {{ {lines}
          y = Add(x, c1500) }}""")
    _fold(model)
    (node,) = model.nodes()
    np.testing.assert_array_equal(edit.const(node, 1), [1500, 3000])


def test_a_constant_output_keeps_its_declared_symbolic_shape():
    model = text.parse("g (float[2] x) => (float[N] y) <float[2] a = {1.0, 4.0}> { y = Sqrt(a) }")
    _fold(model)
    assert not list(model.nodes())
    assert ir.to_proto(model).graph.output[0].type.tensor_type.shape.dim[0].dim_param == "N"


FILLED = """
    g (float[1,64,5,5] x) => (float[1,64,5,5] y)
    <int64[4] ws = {64, 64, 3, 3}, int64[1] cs = {64}, int64[1] big = {20}, float[3000] other = {OTHER}> {
      w = ConstantOfShape<value = float[1] {0.02}>(ws)
      b = ConstantOfShape<value = float[1] {0.5}>(cs)
      c = Conv<pads = [1, 1, 1, 1]>(x, w, b)
      v = ConstantOfShape<value = float[1] {4.0}>(cs)
      n = BatchNormalization<epsilon = 0.0>(c, b, v, b, v)
      d = Conv<pads = [1, 1, 1, 1]>(n, w, b)
      e = ReduceMax<keepdims = 0>(other)
      y = Mul(d, e)
    }"""


def _ran(model, x):
    return suite.session(ir.to_bytes(model)).run(None, {"x": x})[0]


@pytest.mark.parametrize("others", [1, 3000])
def test_weights_of_one_value_fuse_and_stay_small(others):
    source = FILLED.replace("OTHER", ", ".join(["0.5"] * others)).replace("float[3000]", f"float[{others}]")
    model = text.parse(source)
    x = np.random.default_rng(0).standard_normal((1, 64, 5, 5)).astype(np.float32)
    before, size = _ran(model, x), len(ir.to_bytes(model))
    Simplify().run(model)
    ops = [n.op for n in model.nodes()]
    # ReduceMax folds into a factor and all factors into the weights: two different ones, each still one value
    assert ops.count("Conv") == 2 and not {"BatchNormalization", "Mul", "ReduceMax"} & set(ops)
    # biases of 64 equal numbers are stored where the file has become that much smaller
    assert ops.count("ConstantOfShape") == (2 if others == 3000 else 4)
    assert len(ir.to_bytes(model)) <= size
    np.testing.assert_allclose(_ran(model, x), before, rtol=1e-5)


def test_a_weight_of_one_value_is_not_stored_in_full_for_a_fusion():
    model = text.parse(f"""
        g (float[N,64] x) => (float[N,64] y)
        <int64[2] ws = {{64, 64}}, float[64] s = {{{", ".join(str(k + 1.0) for k in range(64))}}}> {{
          w = ConstantOfShape<value = float[1] {{0.02}}>(ws)
          h = MatMul(x, w)
          y = Mul(h, s)
        }}""")
    result = Simplify().run(model)
    assert sorted(n.op for n in model.nodes()) == ["ConstantOfShape", "MatMul", "Mul"]
    assert any("stored in full" in s.reason for s in result.skipped)


def _loop(body, count=2, scans="", results="", stay="w = Add(v, x)"):
    return text.parse(f"""
        g (float[2] x) => (float[2] y{scans}) <int64 n = {{{count}}}> {{
          y{results} = Loop(n, , x) <body = b (int64 i, bool c, float[2] v) => (bool d, float[2] w{body}) {{
            d = Identity(c)
            {stay} }}>
        }}""")


@pytest.mark.parametrize(
    ("model", "says"),
    [
        (_loop("", stay="w = RandomUniformLike<seed = 1.0>(v)"), "draws random numbers"),
        (_loop("", count=33), "33 trips are not spelled out"),
        (_loop("", count=4), "4 trips of it would take more than the 3 nodes"),
        (_loop(", float[2] o", 0, ", float[?,2] z", ", z", "w = Add(v, x)\n o = Neg(v)"), "for the runtime to say"),
    ],
)
def test_a_loop_that_stays_says_why(model, says):
    before = text.show(model)
    result = _fold(model)
    assert not result.changed and text.show(model) == before
    assert [says in s.reason for s in result.skipped] == [True]


def test_trips_share_the_weights_and_the_first_keeps_the_names():
    model = _loop("", count=3)
    result = _fold(model)
    assert result.did["loops unrolled"] == 1
    assert [n.op for n in model.nodes()] == ["Add"] * 3
    assert [n.outputs[0].name for n in model.nodes()] == ["w", "w_1", "y"]
    assert all(n.inputs[1] is model.graph.inputs[0] for n in model.nodes())


def test_a_branch_that_puts_out_a_constant_keeps_one_of_its_own_in_each_trip():
    model = text.parse("""
        g (float[2] x, bool p) => (float[2] y) <int64 n = {2}, float[2] k = {1.0, -2.0}> {
          y = Loop(n, , x) <body = b (int64 i, bool c, float[2] v) => (bool d, float[2] w) {
            d = Identity(c)
            w = If(p) <then_branch = s () => (float[2] r) { r = Relu(v) },
                       else_branch = t () => (float[2] e) { e = Neg(k) }>
          }>
        }""")
    before = ir.to_bytes(model)
    # the branch is a constant before the trips are spelled out
    _fold(model)
    order.sort(model)
    assert [n.op for n in model.nodes()].count("If") == 2
    one, two = suite.session(before), suite.session(ir.to_bytes(model))
    for p in (True, False):
        feed = {"x": np.array([3.0, -4.0], np.float32), "p": np.array(p)}
        np.testing.assert_array_equal(two.run(None, feed)[0], one.run(None, feed)[0])


# Bodies over int64 a = {-7, 4, 9}, b = {3, -2, 3} and m = {{1, 2, 3}, {4, 5, 6}}: what the follower makes of them.
STEPS = [
    "y = Mod(a, b)",
    "y = Div(a, b)",
    "y = Less(a, b)",
    "y = LessOrEqual(a, b)",
    "y = Greater(a, b)",
    "y = GreaterOrEqual(a, b)",
    "y = Equal(a, b)",
    "y = Add(m, a)",
    "y = Gather<axis = 1>(m, one)",
    "y = Gather<axis = -1>(m, ones)",
    "y = Transpose(m)",
    "y = Concat<axis = 1>(m, m)",
    "y = Unsqueeze(m, ones)",
    "u = Unsqueeze(m, ones) y = Squeeze(u)",
    "y = Slice(m, ones, low, ones, down)",
    "y = Reshape(m, down)",
    "y = Expand(a, wide)",
    "y = Range(one, nine, two)",
    "y = Neg(m)",
    "f = Cast<to = 1>(a) h = Mul(f, half) g = Floor(h) y = Cast<to = 7>(g)",
    "f = Cast<to = 1>(a) h = Mul(f, half) g = Ceil(h) y = Cast<to = 7>(g)",
    "c = Less(a, b) y = Where(c, m, a)",
    "y = ConstantOfShape<value = int64[1] v {5}>(wide)",
]


@pytest.mark.parametrize("body", STEPS)
def test_what_is_followed_is_what_the_runtime_computes(body):
    model = text.parse(f"""
        <ir_version: 8, opset_import: ["" : 17]>
        g (float[1] x) => (float y)
        <int64[3] a = {{-7, 4, 9}}, int64[3] b = {{3, -2, 3}}, int64[2,3] m = {{1, 2, 3, 4, 5, 6}}, int64 one = {{1}},
         int64[1] ones = {{1}}, int64[1] low = {{-9}}, int64[1] down = {{-1}}, int64[2] wide = {{2, 3}},
         int64 nine = {{9}}, int64 two = {{2}}, float half = {{0.3}}> {{ {body} }}""")
    output = model.graph.outputs[0]
    proto = ir.to_proto(model)
    proto.graph.output[0].CopyFrom(onnx.ValueInfoProto(name="y"))
    want = ort.InferenceSession(proto.SerializeToString()).run(None, {"x": np.zeros(1, np.float32)})[0]
    follower = Follower(model)
    for node in model.graph.nodes:
        follower.step(node)
    found = follower.known[id(output)].array()
    assert found.dtype == want.dtype and found.shape == want.shape
    np.testing.assert_array_equal(found, want)


def _squeezed(depth):
    """A chain as the script exporter writes squeeze where it lost the rank: an If of which each decides the next."""
    lines, last = [], "x"
    for k in range(depth):
        lines.append(f"""
            s{k} = Shape({last})
            r{k} = Shape(s{k})
            k{k} = Gather<axis = 0>(r{k}, zero)
            c{k} = Equal(k{k}, three)
            o{k} = If(c{k}) <then_branch = then{k} () => (t{k}) {{ t{k} = Squeeze({last}, axis) }},
                             else_branch = else{k} () => (e{k}) {{ e{k} = Identity({last}) }}>
            q{k} = Relu(o{k})
            u{k} = Unsqueeze(q{k}, axis)
            v{k} = Tanh(u{k})""")
        last = f"v{k}"
    return f"""
        <ir_version: 8, opset_import: ["" : 17]>
        g (float[1,N,4] x) => (float[1,N,4] v{depth - 1})
        <int64 three = {{3}}, int64 zero = {{0}}, int64[1] axis = {{0}}> {{ {"".join(lines)} }}"""


def test_ifs_that_each_decide_the_next_are_followed_in_one_walk():
    model = text.parse(_squeezed(20))
    before = ir.to_bytes(model)
    _fold(model)
    order.sort(model)
    assert [n.op for n in model.nodes()] == ["Squeeze", "Relu", "Unsqueeze", "Tanh"] * 20
    feed = {"x": np.random.default_rng(0).standard_normal((1, 3, 4)).astype(np.float32)}
    want, found = (suite.session(data).run(None, feed)[0] for data in (before, ir.to_bytes(model)))
    np.testing.assert_array_equal(found, want)
