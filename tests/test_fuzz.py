"""Damaged models: a clear error or a correct result, never a crash, a hang, or an error of somebody else's."""

import time

import fuzzing
import pytest
from onnx import AttributeProto, TensorProto, helper
from onnxslim_opt.ir import shapes, text
from onnxslim_opt.ir.errors import ModelError

from onnxslim_opt import ir


def _all_fine(first, end):
    found = fuzzing.run(first, end)
    assert sorted(found) == list(range(first, end))
    bugs = {number: what for number, what in found.items() if what not in fuzzing.FINE}
    assert not bugs
    assert sum(what == "same" for what in found.values()) > 0.1 * (end - first)  # enough of them still run


def test_some_mutants():
    _all_fine(0, 300)


@pytest.mark.slow
def test_ten_thousand_mutants():
    _all_fine(0, 10_000)


@pytest.mark.parametrize(
    ("body", "says"),
    [
        ("y = Transpose<perm = 1.5>(x)", "'perm' is FLOAT, not INTS"),
        ("y = Div(x)", "has 1 inputs"),
        ("y = Mul(, x)", "lacks its input 0"),
        ("y = Mul(x, x, x)", "has 3 inputs; opset 17 allows 2"),
        ("y = Cast(x)", "lacks attribute 'to'"),
        ("y = Cast<to = 99>(x)", "no element type"),
        ("y, z = Relu(x)", "has 2 outputs"),
    ],
)
def test_a_node_against_its_definition(body, says):
    with pytest.raises(ModelError, match="node 'broken'") as error:
        text.parse(f"g (float[2] x) => (float[2] y) {{ [broken] {body} }}")
    assert says in str(error.value)


def test_operators_of_a_domain_that_is_not_imported():
    with pytest.raises(ModelError, match="does not import"):
        text.parse('<ir_version: 10, opset_import: ["other" : 1]> g (float[2] x) => (float[2] y) { y = Relu(x) }')


@pytest.mark.parametrize(
    "body",
    [
        "w = other.Op(x)\n y = EyeLike(w)",
        "w = other.Op(x)\n y = RegexFullMatch<pattern = \"a\">(w)",
        "w = other.Op(x)\n y = ai.onnx.ml.LabelEncoder<values_int64s = [1], keys_int64s = [2]>(w)",
        "y = LayerNormalization<axis = 2147483648>(x, x)",
        "y = GatherND<batch_dims = -100>(x, i)",
    ],
)  # fmt: skip
def test_inference_that_would_end_the_process(body):
    head = '<ir_version: 10, opset_import: ["" : 20, "other" : 1, "ai.onnx.ml" : 4]>'
    model = text.parse(f"{head} g (float[2,2] x, int64[1] i) => (y) {{ {body}\n r = Relu(x) }}")
    shapes.refresh(model)
    assert model.outputs[0].shape is None
    assert model.tensors()["r"].shape == [2, 2]  # the others keep theirs


@pytest.mark.parametrize(
    "body",
    [
        "y = Slice(x, v, v)",
        "y = Add(v, v)",
        "n = Shape(w)\n k = Gather<axis = 0>(n, one)\n r = Range(one, k, one)\n y = Add(r, r)",
        "r = Range(one, far, one)\n y = Add(r, r)",
        "r = ConstantOfShape<value = int64[1] {1}>(wide)\n y = Add(r, r)",
        "r = Expand(one, wide)\n y = Add(r, r)",
    ],
)
def test_sizes_that_would_keep_the_inference_busy(body):
    model = text.parse(f"""
        <ir_version: 8, opset_import: ["" : 17]>
        g (float[20,10] x, int64[2147483648] v, float[2,1099511627776] w) => (y)
        <int64 one = {{1}}, int64 far = {{1099511627776}}, int64[1] wide = {{1099511627776}}> {{
          {body}
          z = Relu(x) }}""")
    start = time.perf_counter()
    shapes.refresh(model)
    assert time.perf_counter() - start < 5
    assert model.tensors()["z"].shape == [20, 10]


def test_a_trusting_operator_is_inferred_once_its_input_has_a_type():
    model = text.parse("g (float[2,3] x) => (y) { w = Relu(x)\n e = EyeLike(w)\n y = Neg(e) }")
    shapes.refresh(model)
    assert model.tensors()["e"].shape == [2, 3]


def test_a_definition_that_nobody_knows_is_left_alone():
    node = helper.make_node("Relu", ["x"], ["y"], domain="com.example", perm=1.5)
    value = helper.make_tensor_value_info
    graph = helper.make_graph([node], "g", [value("x", TensorProto.FLOAT, [2])], [value("y", TensorProto.FLOAT, [2])])
    proto = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 17), helper.make_opsetid("com.example", 1)])
    assert len(list(ir.from_bytes(proto.SerializeToString()).nodes())) == 1


def test_a_text_attribute_without_a_value_stays_one():
    model = text.parse("g (float[2,3] x, int64[2] t) => (float y) { y = SoftmaxCrossEntropyLoss(x, t) }")
    proto = ir.to_proto(model)
    proto.graph.node[0].attribute.append(AttributeProto(name="reduction", type=AttributeProto.STRING))
    again = ir.to_proto(ir.from_proto(proto)).graph.node[0].attribute[0]
    assert again.name == "reduction" and not again.HasField("s")
