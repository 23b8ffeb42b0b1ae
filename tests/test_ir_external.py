"""External data wherever a tensor may stand: it is read from the model's folder alone, or refused with a reason."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import onnx
import pytest
import suite
from commands import onnxslim
from onnx import TensorProto, helper, numpy_helper
from onnxslim_opt.ir import external, importing, wire
from onnxslim_opt.ir.errors import DataError, ModelError
from onnxslim_opt.runtime import protobufs

from onnxslim_opt import ir

FLOAT = TensorProto.FLOAT
VALUES = np.arange(1, 5, dtype=np.float32)
DENSE = np.diag(VALUES)


def outside(array: np.ndarray, name: str, location: str, folder: Path | None = None) -> TensorProto:
    """A tensor that names a file for its data; the file is written into `folder`."""
    tensor = numpy_helper.from_array(array, name)
    if folder is not None:
        (folder / location).write_bytes(tensor.raw_data)
    tensor.ClearField("raw_data")
    tensor.data_location = TensorProto.EXTERNAL
    tensor.external_data.add(key="location", value=location)
    return tensor


def sparse(values: TensorProto, indices: TensorProto) -> onnx.SparseTensorProto:
    return onnx.SparseTensorProto(values=values, indices=indices, dims=[4, 4])


def product(nodes, functions=(), initializers=(), sparse=()) -> onnx.ModelProto:
    """A model of x: [2, 4] whose nodes make y of the same shape."""
    ends = [helper.make_tensor_value_info(n, FLOAT, [2, 4]) for n in "xy"]
    graph = helper.make_graph(nodes, "g", ends[:1], ends[1:], initializers, sparse_initializer=sparse)
    opsets = [helper.make_opsetid("", 17), helper.make_opsetid("own", 1)]
    return helper.make_model(graph, functions=list(functions), opset_imports=opsets, ir_version=10)


MATMUL = helper.make_node("MatMul", ["x", "w"], ["y"])


def initializer(location: str, folder: Path | None = None) -> onnx.ModelProto:
    return product([MATMUL], initializers=[outside(DENSE, "w", location, folder)])


def sparse_values(location: str, folder: Path | None = None) -> onnx.ModelProto:
    indices = numpy_helper.from_array(np.arange(4, dtype=np.int64) * 5)
    return product([MATMUL], sparse=[sparse(outside(VALUES, "w", location, folder), indices)])


def sparse_indices(location: str, folder: Path | None = None) -> onnx.ModelProto:
    indices = outside(np.arange(4, dtype=np.int64) * 5, "i", location, folder)
    return product([MATMUL], sparse=[sparse(numpy_helper.from_array(VALUES, "w"), indices)])


def constant(location: str, folder: Path | None = None) -> onnx.ModelProto:
    node = helper.make_node("Constant", [], ["w"], value=outside(DENSE, "v", location, folder))
    return product([node, MATMUL])


def sparse_constant(location: str, folder: Path | None = None) -> onnx.ModelProto:
    indices = numpy_helper.from_array(np.arange(4, dtype=np.int64) * 5)
    held = sparse(outside(VALUES, "v", location, folder), indices)
    return product([helper.make_node("Constant", [], ["w"], sparse_value=held), MATMUL])


def function(location: str, folder: Path | None = None) -> onnx.ModelProto:
    nodes = [helper.make_node("Constant", [], ["w"], value=outside(DENSE, "v", location, folder)), MATMUL]
    body = helper.make_function("own", "F", ["x"], ["y"], nodes, [helper.make_opsetid("", 17)])
    return product([helper.make_node("F", ["x"], ["y"], domain="own")], [body])


def branch_of_a_function(location: str, folder: Path | None = None) -> onnx.ModelProto:
    output = [helper.make_tensor_value_info("y", FLOAT, [2, 4])]
    then = helper.make_graph([MATMUL], "then", [], output, [outside(DENSE, "w", location, folder)])
    other = helper.make_graph([helper.make_node("Identity", ["x"], ["y"])], "else", [], output)
    true = helper.make_node("Constant", [], ["c"], value=numpy_helper.from_array(np.array(True)))
    nodes = [true, helper.make_node("If", ["c"], ["y"], then_branch=then, else_branch=other)]
    body = helper.make_function("own", "F", ["x"], ["y"], nodes, [helper.make_opsetid("", 17)])
    return product([helper.make_node("F", ["x"], ["y"], domain="own")], [body])


def default_of_a_function(location: str, folder: Path | None = None) -> onnx.ModelProto:
    value = helper.make_node("Constant", [], ["w"])
    value.attribute.add(name="value", ref_attr_name="held", type=onnx.AttributeProto.TENSOR)
    body = helper.make_function("own", "F", ["x"], ["y"], [value, MATMUL], [helper.make_opsetid("", 17)])
    body.attribute_proto.append(helper.make_attribute("held", outside(DENSE, "v", location, folder)))
    return product([helper.make_node("F", ["x"], ["y"], domain="own")], [body])


def training(location: str, folder: Path | None = None) -> onnx.ModelProto:
    model = product([MATMUL], initializers=[numpy_helper.from_array(DENSE, "w")])
    model.training_info.add().initialization.initializer.append(outside(VALUES, "t", location, folder))
    return model


PLACES = (
    initializer, sparse_values, sparse_indices, constant, sparse_constant, function, branch_of_a_function,
    default_of_a_function, training,
)  # fmt: skip
places = pytest.mark.parametrize("place", PLACES)


def write(proto: onnx.ModelProto, folder: Path) -> Path:
    folder.mkdir(exist_ok=True)
    (folder / "m.onnx").write_bytes(proto.SerializeToString())
    return folder / "m.onnx"


@places
@pytest.mark.parametrize("passes", ["simplify", "fold"])
def test_the_result_needs_no_file_of_the_original(capsys, tmp_path, monkeypatch, place, passes):
    monkeypatch.chdir(tmp_path)
    (tmp_path / "in").mkdir()
    (tmp_path / "out").mkdir()
    source, out = write(place("d.bin", tmp_path / "in"), tmp_path / "in"), tmp_path / "out" / "m.onnx"
    assert ir.load(source).header.data_files == (str(tmp_path / "in" / "d.bin"),)
    assert wire.data_files(source) == [tmp_path / "in" / "d.bin"]
    done = onnxslim(capsys, "opt", source, "-o", out, "-p", passes)
    assert done.code == 0, done.err
    assert [p.name for p in out.parent.iterdir()] == ["m.onnx"]  # weights this small stay in the model file
    x = np.ones((2, 4), np.float32)
    np.testing.assert_array_equal(suite.session(str(out)).run(None, {"x": x})[0], x @ DENSE)
    assert not list(external.external_tensors(onnx.load(out, load_external_data=False)))


@places
@pytest.mark.parametrize(
    ("location", "says"), [("../secret", "leaves the model's folder"), ("link", "leaves"), ("secret", "is missing")]
)
def test_no_file_but_those_of_the_models_folder_is_read(capsys, tmp_path, monkeypatch, place, location, says):
    monkeypatch.chdir(tmp_path)
    (tmp_path / "secret").write_bytes(bytes(64))
    source = write(place(location), tmp_path / "in")
    (tmp_path / "in" / "link").symlink_to(tmp_path / "secret")
    done = onnxslim(capsys, "opt", source, "-o", tmp_path / "out.onnx")
    assert done.code == 1
    assert f"external data {'file ' * (location == 'secret')}'{location}' {says}" in done.errors[0]


@places
def test_a_model_without_a_folder_has_no_files(place):
    with pytest.raises(ModelError, match="has no folder"):
        ir.from_proto(place("d.bin"))


def test_the_proto_that_is_imported_stays_as_it_is(tmp_path):
    proto = function("d.bin", tmp_path)
    before = proto.SerializeToString(deterministic=True)
    ir.from_proto(proto, tmp_path)
    assert proto.SerializeToString(deterministic=True) == before


def test_functions_are_held_in_one_message_which_has_a_limit(tmp_path, monkeypatch):
    monkeypatch.setattr(importing, "INLINE_LIMIT", 63)
    with pytest.raises(ModelError, match="exceeds 2 GiB"):
        ir.load(write(function("d.bin", tmp_path), tmp_path))


def test_names_that_are_too_long_and_strings_are_refused(tmp_path):
    with pytest.raises(ModelError, match="missing beside the model"):
        ir.load(write(initializer("n" * 300), tmp_path))
    text = outside(DENSE, "w", "d.bin", tmp_path)
    text.data_type = TensorProto.STRING
    with pytest.raises(ModelError, match="holds strings"):
        ir.load(write(product([MATMUL], initializers=[text]), tmp_path))


def test_a_sparse_initializer_that_no_memory_holds_is_refused():
    proto = product([MATMUL], sparse=[sparse(numpy_helper.from_array(VALUES, "w"), TensorProto(data_type=7, dims=[4]))])
    proto.graph.sparse_initializer[0].dims[:] = [10**7, 10**7]
    proto.graph.sparse_initializer[0].indices.raw_data = bytes(32)
    with pytest.raises(ModelError, match=r"'w' of shape \[10000000, 10000000\] does not fit into memory"):
        ir.from_proto(proto)


def test_every_field_that_leads_to_a_tensor_is_known():
    """What `wire` steps through is all that onnx.proto has."""
    kinds = {
        "model": onnx.ModelProto, "training": onnx.TrainingInfoProto, "function": onnx.FunctionProto,
        "graph": onnx.GraphProto, "node": onnx.NodeProto, "attribute": onnx.AttributeProto,
        "sparse": onnx.SparseTensorProto, "tensor": TensorProto,
    }  # fmt: skip
    names = {proto.DESCRIPTOR.name: kind for kind, proto in kinds.items()}
    for kind, proto in kinds.items():
        inner = {f.number: f.message_type.name for f in proto.DESCRIPTOR.fields if f.message_type is not None}
        if kind != "tensor":
            assert wire._INNER[kind] == {n: names[name] for n, name in inner.items() if name in names}


def test_data_in_protos_lies_in_no_other_file(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    tensor = outside(DENSE, "x", "d.bin", tmp_path)
    (tmp_path / "input_0.pb").write_bytes(tensor.SerializeToString())
    with pytest.raises(DataError, match=r"input_0\.pb keeps its values in another file"):
        protobufs.read(tmp_path / "input_0.pb")
