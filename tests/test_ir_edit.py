"""Edits, order and verification: by identity, in linear time, refusing what would dangle."""

import numpy as np
import onnx
import onnx_graphsurgeon as gs
import pytest
import suite
from onnx import TensorProto, helper
from onnxslim_opt.ir import Model, edit, from_bytes, from_proto, order, shapes, text, to_bytes, verify
from onnxslim_opt.ir.errors import ModelError, PassError
from onnxslim_opt.ir.model import subgraphs

CHAIN = "agraph (float[N,3] x) => (float[N,3] y) { a = Relu(x)  b = Abs(a)  y = Neg(b) }"


def run(model, **feeds):
    return suite.session(to_bytes(model)).run(None, feeds)


def node(model, op):
    return next(n for n in model.nodes() if n.op == op)


def test_replace_inner_and_drop():
    model = text.parse(CHAIN)
    abs_ = node(model, "Abs")
    edit.replace(model, abs_.outputs[0], abs_.inputs[0])
    edit.drop(model, [abs_])
    verify.check(model)
    assert [n.op for n in model.nodes()] == ["Relu", "Neg"]
    assert run(model, x=np.array([[-1, 2, 3]], np.float32))[0].tolist() == [[-0.0, -2, -3]]


def test_replace_of_an_output_keeps_its_name():
    model = text.parse(CHAIN)
    neg = node(model, "Neg")
    edit.replace(model, neg.outputs[0], neg.inputs[0])
    edit.sweep(model)
    verify.check(model)
    assert [n.op for n in model.nodes()] == ["Relu", "Abs"] and model.outputs[0].name == "y"
    assert run(model, x=np.array([[-1, 2, 3]], np.float32))[0].tolist() == [[0, 2, 3]]


def test_an_output_that_is_an_input_stays_that_input():
    m = text.parse("g (float[2] x) => (float[2] x, float[2] y) { y = Relu(x) }")
    x, relu = m.inputs[0], m.graph.nodes[0]
    neg = edit.node(m, "Neg", [x])
    edit.add(m.graph, neg)
    edit.replace(m, x, neg.outputs[0])
    assert relu.inputs[0] is neg.outputs[0]
    assert m.graph.outputs[0] is m.inputs[0] is x and x.name == "x"


def test_replace_of_an_output_by_an_input_needs_an_identity():
    model = text.parse(CHAIN)
    edit.replace(model, model.outputs[0], model.inputs[0])
    edit.sweep(model)
    order.sort(model)
    verify.check(model)
    assert [n.op for n in model.nodes()] == ["Identity"]
    assert run(model, x=np.ones((1, 3), np.float32))[0].tolist() == [[1, 1, 1]]


def test_drop_refuses_what_is_used():
    model = text.parse(CHAIN)
    with pytest.raises(PassError, match="still used"):
        edit.drop(model, [node(model, "Abs")])


def test_equal_nodes_are_told_apart():
    """graphsurgeon unlinks the first *equal* node; two nameless twins must not be confused."""
    x = helper.make_tensor_value_info("x", TensorProto.FLOAT, [2])
    outs = [helper.make_tensor_value_info(n, TensorProto.FLOAT, [2]) for n in ("p", "q")]
    twins = [helper.make_node("Relu", ["x"], [n]) for n in ("p", "q")]
    model = from_proto(helper.make_model(helper.make_graph(twins, "g", [x], outs), ir_version=8))
    first, second = model.graph.nodes
    assert first.name != second.name
    edit.set_input(second, 0, edit.constant(model, "c", np.ones(2, np.float32)))
    verify.check(model)
    assert [n is first for n in model.inputs[0].outputs] == [True]


def test_sort_is_stable_and_iterative():
    """A reversed chain of 3,000 nodes overflows graphsurgeon's own sort."""
    count = 3000
    nodes = [helper.make_node("Relu", [f"t{k}"], [f"t{k + 1}"]) for k in reversed(range(count))]
    io = [helper.make_tensor_value_info(n, TensorProto.FLOAT, [1]) for n in ("t0", f"t{count}")]
    model = from_proto(helper.make_model(helper.make_graph(nodes, "g", io[:1], io[1:]), ir_version=8))
    verify.check(model)
    assert [n.inputs[0].name for n in model.graph.nodes] == [f"t{k}" for k in range(count)]


IF = """agraph (bool c, float[3] x) => (float[3] y) {
    a = Relu(x)
    dead = Abs(x)
    y = If (c) <
        then_branch = g1 () => (float[3] t) { u = Neg(a)  t = Abs(u) },
        else_branch = g2 () => (float[3] t2) { u = Exp(a)  t2 = Identity(u) }
    >
}"""


def test_subgraphs_capture_and_have_unique_names():
    model = text.parse(IF)
    verify.check(model)
    inner = [n.outputs[0].name for g in subgraphs(node(model, "If")) for n in g.nodes]
    assert len(set(inner)) == 4
    assert edit.sweep(model) == 1
    verify.check(model.copy())
    x = np.array([-1, 0, 1], np.float32)
    assert run(model, c=np.array(True), x=x)[0].tolist() == [0, 0, 1]


def test_sweep_of_a_node_with_subgraphs_unlinks_captures():
    model = text.parse(IF.replace("=> (float[3] y)", "=> (float[3] a)"))
    assert edit.sweep(model) == 2
    assert [n.op for n in model.nodes()] == ["Relu"]


def test_verify_finds_broken_links():
    model = text.parse(CHAIN)
    model.graph.nodes[1].name = model.graph.nodes[0].name
    with pytest.raises(ModelError, match="not unique"):
        verify.check(model)
    model = text.parse(CHAIN)
    model.graph.nodes.reverse()
    with pytest.raises(ModelError, match="not made before"):
        verify.check(model)
    model = text.parse(CHAIN)
    model.graph.nodes.pop(0)
    with pytest.raises(ModelError, match="reads 'a'"):
        verify.check(model)


def test_copy_shares_arrays_and_nothing_else():
    model = text.parse(
        "agraph (float[1,2] x) => (float[1,2] y) <float[2,2] w = {1.0, 2.0, 3.0, 4.0}> { y = MatMul(x, w) }"
    )
    copy = model.copy()
    assert copy.constants()["w"].values is not None
    model.constants()["w"].values = np.zeros((2, 2), np.float32)
    assert copy.constants()["w"].values.sum() == 10
    edit.add(copy.graph, edit.node(copy, "Relu", [copy.outputs[0]]))
    assert len(model.graph.nodes) == 1


def test_shapes_keep_symbols():
    model = text.parse(
        "agraph (float[N,4,H] x) => (float[A,B] y){ t = Transpose <perm = [0, 2, 1]> (x)  u = Relu(t)  y = Flatten(u) }"
    )
    shapes.refresh(model)
    assert shapes.of(node(model, "Relu").outputs[0]) == ("N", "H", 4)


def test_text_round_trip():
    model = text.parse(IF)
    again = text.parse(text.show(model))
    assert text.show(again) == text.show(model)
    with pytest.raises(ModelError, match="cannot be parsed"):
        text.parse("agraph (float[3 x) => () {}")


@pytest.mark.parametrize("dtype", ["BFLOAT16", "FLOAT8E4M3FN", "FLOAT8E5M2FNUZ", "INT4", "UINT4", "FLOAT16", "STRING"])
def test_rare_types_survive_touching(dtype):
    kind = getattr(TensorProto, dtype)
    np_type = helper.tensor_dtype_to_np_dtype(kind)
    values = np.array(["a", "bc", "d"], object) if dtype == "STRING" else np.array([1, 2, 3]).astype(np_type)
    tensor = onnx.numpy_helper.from_array(values, "w")
    out = helper.make_tensor_value_info("w2", kind, [3])
    proto = helper.make_model(
        helper.make_graph([helper.make_node("Identity", ["w"], ["w2"])], "g", [], [out], [tensor]),
        opset_imports=[helper.make_opsetid("", 23)],
        ir_version=11,
    )
    model = from_proto(proto)
    assert isinstance(model, Model)
    assert model.constants()["w"].values.tolist() == values.tolist()
    again = from_bytes(to_bytes(model)).constants()["w"]
    assert isinstance(again, gs.Constant) and again.values.dtype == values.dtype
    assert again.values.tolist() == values.tolist()
