"""`fold`: every case file, and what text cannot show."""

import casefiles
import numpy as np
import pytest
from onnxslim_opt.ir import edit, shapes, text
from onnxslim_opt.passes.fold import Fold

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
