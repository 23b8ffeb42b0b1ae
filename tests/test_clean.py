"""`clean`: every case file, and what text cannot show."""

import casefiles
import numpy as np
import pytest
from onnx import helper
from onnxslim_opt.ir import shapes, text
from onnxslim_opt.passes.clean import Clean
from prune_twin import build, distance, run

from onnxslim_opt import ir


@pytest.mark.parametrize("path", casefiles.found("clean"), ids=lambda p: p.stem)
def test_case(path):
    casefiles.check(path)


def _clean(source):
    model = text.parse(source)
    shapes.refresh(model)
    return model, Clean().run(model)


def test_counts():
    _, result = _clean("""
        g (float[2] x) => (float[2] y) <float[2] a = {1.0, 2.0}, float[2] b = {1.0, 2.0}> {
          dead = Exp(x)
          c = Mul(x, a)
          d = Mul(x, b)
          e = Identity(c)
          y = Add(e, d)
        }""")
    assert result.did == {
        "dead nodes removed": 1,
        "duplicate constants merged": 1,
        "duplicate nodes merged": 1,
        "identities removed": 1,
    }


def test_nothing_to_do_changes_nothing():
    model, result = _clean("g (float[2] x) => (float[2] y) { a = Exp(x)\n y = Log(a) }")
    assert not result.changed
    assert len(list(model.nodes())) == 2


@pytest.mark.parametrize(
    ("opset", "attrs", "more"), [(7, {}, 4), (9, {}, 4), (13, {}, 4), (15, {"training_mode": 1}, 2)]
)
def test_a_norm_that_trains_keeps_outputs_that_nobody_reads(opset, attrs, more):
    """Before opset 14 they are what says that it trains, and there are five of them or one."""
    rng = np.random.default_rng(0)
    weights = {k: np.abs(rng.standard_normal(3)).astype(np.float32) for k in "stmv"}
    outputs = ["y", *(f"idle{k}" for k in range(more))]
    norm = helper.make_node("BatchNormalization", ["x", *"stmv"], outputs, name="norm", **attrs)
    model = build([norm], {"x": [2, 3, 4, 4]}, weights, opset)
    small = model.copy()
    Clean().run(small)
    x = {"x": rng.standard_normal((2, 3, 4, 4)).astype(np.float32)}
    ir.verify.check(small)
    assert distance(run(ir.to_proto(model), x), run(ir.to_proto(small), x)) == 0


def test_outputs_without_names_train_nothing():
    norm = helper.make_node("BatchNormalization", ["x", *"stmv"], ["y", "", "", "", ""], name="norm")
    model = build([norm], {"x": [2, 3, 4, 4]}, {k: np.ones(3, np.float32) for k in "stmv"}, 9)
    assert not ir.ops.trains(next(iter(model.nodes())))


def test_an_output_takes_its_name_along():
    model, _ = _clean("g (float[2] x) => (float[2] y) { a = Exp(x)\n y = Identity(a) }")
    (node,) = model.nodes()
    assert node.op == "Exp"
    assert node.outputs[0].name == "y"


def test_a_loop_value_that_passes_through_stays():
    source = """
        g (float[1] x, int64 n) => (float[1] y, float[1] z) <bool go = {1}> {
          y, z = Loop(n, go, x, x) <body = b (int64 i, bool c, float[1] v, float[1] u)
            => (bool d, float[1] w, float[1] t) { d = Identity(c)
            t = Identity(u)
            w = Add(v, v) }>
        }"""
    model, _ = _clean(source)
    session = casefiles.suite.session(ir.to_bytes(model))
    y, z = session.run(None, {"x": np.ones(1, np.float32), "n": np.asarray(3)})
    np.testing.assert_array_equal([y[0], z[0]], [8, 1])


@pytest.mark.parametrize("kind", ["float", "float16", "int64"])
def test_equal_bytes_of_another_type_are_not_equal(kind):
    _, result = _clean(f"""
        g (float[2] x, {kind}[2] v) => (float[2] y, {kind}[2] z) <float[2] a = {{0.0, 0.0}}, {kind}[2] b = {{0, 0}}> {{
          y = Sub(a, x)
          z = Sub(b, v)
        }}""")
    assert result.changed == (kind == "float")


def test_types_reach_the_bodies_of_scans():
    model = text.parse("""
        g (float[2] s0, float[3,2] x) => (float[2] s, float[3,2] y) {
          s, y = Scan<num_scan_inputs = 1, body = step (state, item) => (next, out) {
            wide = Cast<to = 1>(item)
            next = Add(state, wide)
            out = Neg(wide)
          }>(s0, x)
        }""")
    shapes.refresh(model)
    shapes.refresh(model)
    Clean().run(model)
    assert [n.op for n in model.nodes()] == ["Scan", "Add", "Neg"]
