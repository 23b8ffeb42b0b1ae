"""Label propagation and cutting, topology by topology: every pruned network equals its masked twin."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
from onnx import helper
from onnxslim_opt.passes.prune import groups
from prune_twin import build, check, run

from onnxslim_opt import ir

RATIOS = (0.1, 0.5, 0.9)


class Net:
    """Grows a network with random weights."""

    def __init__(self, seed: int = 0, opset: int = 17, **inputs: list[Any]):
        self.rng, self.opset = np.random.default_rng(seed), opset
        self.inputs, self.nodes, self.weights = inputs, [], {}

    def weight(self, *shape: int) -> str:
        name = f"w{len(self.weights)}"
        fan = max(1, int(np.prod(shape[1:]))) if len(shape) > 1 else 1
        self.weights[name] = (self.rng.standard_normal(shape) / np.sqrt(fan)).astype(np.float32)
        return name

    def ints(self, *values: int) -> str:
        name = f"i{len(self.weights)}"
        self.weights[name] = np.array(values, np.int64)
        return name

    def op(self, kind: str, *inputs: str, outputs: int = 1, **attrs: Any) -> Any:
        names = [f"t{len(self.nodes)}_{k}" for k in range(outputs)]
        self.nodes.append(helper.make_node(kind, list(inputs), names, name=f"{kind}_{len(self.nodes)}", **attrs))
        return names[0] if outputs == 1 else names

    def conv(self, x: str, cin: int, cout: int, k: int = 3, group: int = 1, **attrs: Any) -> str:
        w, b = self.weight(cout, cin // group, k, k), self.weight(cout)
        pads = attrs.pop("pads", [k // 2] * 4)
        return self.op("Conv", x, w, b, group=group, pads=pads, kernel_shape=[k, k], **attrs)

    def linear(self, x: str, cin: int, cout: int) -> str:
        return self.op("Add", self.op("MatMul", x, self.weight(cin, cout)), self.weight(cout))

    def norm(self, x: str, c: int) -> str:
        scale = self.weight(c)
        bias, mean, var = self.weight(c), self.weight(c), self.weight(c)
        self.weights[var] = np.abs(self.weights[var]) + 0.5
        return self.op("BatchNormalization", x, scale, bias, mean, var)

    def head(self, x: str, c: int) -> ir.Model:
        pooled = self.op("Flatten", self.op("GlobalAveragePool", x))
        self.op("Gemm", pooled, self.weight(5, c), self.weight(5), transB=1)
        return self.model()

    def model(self) -> ir.Model:
        return build(self.nodes, self.inputs, self.weights, self.opset)


def image(*shape: int) -> dict[str, np.ndarray]:
    return {"x": np.random.default_rng(7).standard_normal(shape).astype(np.float32)}


def residual() -> ir.Model:
    n = Net(x=["N", 3, 8, 8])
    a = n.op("Relu", n.norm(n.conv("x", 3, 8), 8))
    b = n.conv(n.op("Relu", n.conv(a, 8, 6)), 6, 8)
    return n.head(n.op("Relu", n.op("Add", a, b)), 8)


def concat() -> ir.Model:
    n = Net(x=["N", 3, 8, 8])
    a, b = n.conv("x", 3, 6), n.conv("x", 3, 4, k=1)
    c = n.op("Concat", a, b, a, axis=1)
    return n.head(n.conv(n.op("Relu", c), 16, 7), 7)


def depthwise() -> ir.Model:
    n = Net(x=["N", 3, 8, 8])
    a = n.op("Relu", n.conv("x", 3, 6))
    a = n.op("Relu", n.conv(a, 6, 12, group=6))
    return n.head(n.conv(a, 12, 8, k=1), 8)


def grouped() -> ir.Model:
    n = Net(x=["N", 3, 8, 8])
    a = n.op("Relu", n.conv("x", 3, 12))
    a = n.op("Relu", n.conv(a, 12, 24, group=4))
    return n.head(n.op("Relu", n.conv(a, 24, 12, group=2)), 12)


def shuffled() -> ir.Model:
    n = Net(x=[1, 3, 8, 8])
    a = n.conv("x", 3, 12)
    a = n.op("Reshape", a, n.ints(1, 2, 6, 8, 8))
    a = n.op("Transpose", a, perm=[0, 2, 1, 3, 4])
    a = n.op("Reshape", a, n.ints(1, 12, 8, 8))
    left, right = n.op("Split", a, outputs=2, axis=1)
    right = n.conv(n.op("Relu", right), 6, 6)
    return n.head(n.op("Relu", n.op("Concat", left, right, axis=1)), 12)


def gated() -> ir.Model:
    n = Net(x=["N", 3, 8, 8])
    a = n.op("Relu", n.conv("x", 3, 8))
    s = n.op("Relu", n.conv(n.op("GlobalAveragePool", a), 8, 4, k=1))
    s = n.op("HardSigmoid", n.conv(s, 4, 8, k=1))
    return n.head(n.conv(n.op("Mul", a, s), 8, 6), 6)


def flattened() -> ir.Model:
    n = Net(x=["N", 3, 4, 4])
    a = n.op("PRelu", n.conv("x", 3, 6), n.weight(6, 1, 1))
    f = n.op("Reshape", a, n.ints(-1, 96))
    f = n.op("Tanh", n.op("Gemm", f, n.weight(96, 10), n.weight(10)))
    n.op("Gemm", f, n.weight(5, 10), transB=1)
    return n.model()


def shortcut() -> ir.Model:
    n = Net(x=["N", 3, 8, 8])
    a = n.op("Relu", n.conv("x", 3, 8))
    thin = n.op("Slice", a, n.ints(0, 0), n.ints(2**31, 2**31), n.ints(2, 3), n.ints(2, 2))
    wide = n.op("Pad", thin, n.ints(0, 4, 0, 0, 0, 4, 0, 0))
    b = n.conv(n.op("Relu", n.conv(a, 8, 5, strides=[2, 2])), 5, 16)
    part = n.op("Slice", n.op("Relu", n.op("Add", wide, b)), n.ints(3), n.ints(13), n.ints(1))
    return n.head(n.conv(part, 10, 6), 6)


def attention(batch: Any = "N") -> ir.Model:
    n = Net(x=[batch, 5, 6])
    h = n.linear("x", 6, 12)
    q, k, v = (n.op("Reshape", n.linear(h, 12, 12), n.ints(0, -1, 3, 4)) for _ in range(3))
    q, v = (n.op("Transpose", t, perm=[0, 2, 1, 3]) for t in (q, v))
    scores = n.op("Mul", n.op("MatMul", q, n.op("Transpose", k, perm=[0, 2, 3, 1])), n.weight(1))
    mixed = n.op("MatMul", n.op("Softmax", scores, axis=-1), v)
    joined = n.op("Reshape", n.op("Transpose", mixed, perm=[0, 2, 1, 3]), n.ints(0, -1, 12))
    h = n.op("Add", h, n.linear(joined, 12, 12))
    h = n.op("Add", h, n.linear(n.op("Relu", n.linear(h, 12, 16)), 16, 12))
    n.linear(n.op("ReduceMean", h, axes=[1], keepdims=0), 12, 4)
    return n.model()


def transposed() -> ir.Model:
    n = Net(x=["N", 3, 5, 5])
    a = n.op("Relu", n.conv("x", 3, 8))
    a = n.op("ConvTranspose", a, n.weight(8, 6, 2, 2), n.weight(6), strides=[2, 2])
    a = n.op("ConvTranspose", n.op("Relu", a), n.weight(6, 2, 2, 2), group=3, strides=[2, 2])
    return n.head(n.op("Relu", a), 6)


def channels_last() -> ir.Model:
    n = Net(x=["N", 6, 6, 3])
    a = n.conv(n.op("Transpose", "x", perm=[0, 3, 1, 2]), 3, 8)
    a = n.op("Transpose", a, perm=[0, 2, 3, 1])
    a = n.op("Add", n.op("Mul", a, n.weight(8)), n.weight(1, 1, 8))
    return n.head(n.conv(n.op("Transpose", n.op("Tanh", a), perm=[0, 3, 1, 2]), 8, 6), 6)


def pixels() -> ir.Model:
    n = Net(x=["N", 3, 4, 4])
    a = n.op("DepthToSpace", n.conv("x", 3, 24), blocksize=2)
    a = n.op("DepthToSpace", n.conv(a, 6, 16), blocksize=2, mode="CRD")
    a = n.op("SpaceToDepth", n.op("Relu", a), blocksize=2)
    return n.head(n.conv(a, 16, 6), 6)


def normalised_groups() -> ir.Model:
    n = Net(x=["N", 3, 6, 6])
    a = n.op("Reshape", n.conv("x", 3, 12), n.ints(0, 4, -1))
    a = n.op("Reshape", n.op("InstanceNormalization", a, n.weight(4), n.weight(4)), n.ints(0, 12, 6, 6))
    return n.head(n.conv(n.op("Mul", a, n.weight(12, 1, 1)), 12, 6), 6)


def summed() -> ir.Model:
    n = Net(x=["N", 5, 6])
    h = n.op("Einsum", "x", n.weight(6, 2, 4), equation="bsi,ihd->bshd")
    h = n.op("Einsum", n.op("Relu", h), n.weight(2, 4, 7), equation="bshd,hdo->bso")
    n.op("Einsum", h, n.weight(7, 3), equation="bso,oc->bsc")
    return n.model()


def split() -> ir.Model:
    n = Net(x=["N", 3, 6, 6])
    a, b, c = n.op("Split", n.conv("x", 3, 12), n.ints(3, 4, 5), outputs=3, axis=1)
    d = n.op("Concat", n.op("Relu", c), n.op("Sigmoid", a), axis=1)
    picked = n.op("Gather", b, n.ints(3, 1, -2), axis=1)
    return n.head(n.conv(n.op("Concat", d, picked, axis=1), 11, 6), 6)


NETS: dict[str, tuple[Any, tuple[int, ...]]] = {
    "residual": (residual, (2, 3, 8, 8)),
    "concat": (concat, (2, 3, 8, 8)),
    "depthwise": (depthwise, (2, 3, 8, 8)),
    "grouped": (grouped, (2, 3, 8, 8)),
    "shuffled": (shuffled, (1, 3, 8, 8)),
    "gated": (gated, (2, 3, 8, 8)),
    "flattened": (flattened, (2, 3, 4, 4)),
    "shortcut": (shortcut, (2, 3, 8, 8)),
    "attention": (attention, (2, 5, 6)),
    "transposed": (transposed, (2, 3, 5, 5)),
    "channels_last": (channels_last, (2, 6, 6, 3)),
    "pixels": (pixels, (2, 3, 4, 4)),
    "normalised_groups": (normalised_groups, (2, 3, 6, 6)),
    "summed": (summed, (2, 5, 6)),
    "split": (split, (2, 3, 6, 6)),
}


@pytest.mark.parametrize("ratio", RATIOS)
@pytest.mark.parametrize("name", NETS)
def test_pruned_equals_its_twin(name: str, ratio: float) -> None:
    make, shape = NETS[name]
    for seed in range(3):
        check(make(), image(*shape), ratio, seed)


@pytest.mark.parametrize("name", NETS)
def test_every_batch_size_still_runs(name: str) -> None:
    make, shape = NETS[name]
    model = make()
    if model.inputs[0].shape[0] != "N":
        pytest.skip("fixed batch")
    _, small, _ = check(model, image(*shape))
    for batch in (1, 4):
        (out,) = run(ir.to_proto(small), image(batch, *shape[1:]))
        assert out.shape[0] == batch


def sizes(model: ir.Model, op: str, index: int = 1) -> list[tuple[int, ...]]:
    return [tuple(n.inputs[index].shape) for n in model.nodes() if n.op == op]


def test_heads_and_head_dimensions_go_separately() -> None:
    found = groups(attention(), image(2, 5, 6))
    counts = sorted(len(f.units) for f in found.families)
    # 3 heads, 4 dimensions of q/k, 4 of v, 16 neurons, 12 channels of the stream
    assert counts == [3, 4, 4, 12, 16]


def test_all_but_one_channel() -> None:
    model = residual()
    _, small, _ = check(model, image(2, 3, 8, 8), 1.0)
    assert {s[0] for s in sizes(small, "Conv")} == {1}


def test_a_constant_is_copied_only_where_cuts_differ() -> None:
    n = Net(x=["N", 3, 6, 6])
    a, b = n.op("Relu", n.conv("x", 3, 8)), n.op("Relu", n.conv("x", 3, 8))
    shared = n.weight(8, 1, 1)
    c = n.op("Concat", n.op("Mul", a, shared), n.op("Mul", b, shared), axis=1)
    check(n.head(n.conv(c, 16, 6), 6), image(2, 3, 6, 6))


def test_users_of_a_shared_weight_lose_the_same_columns() -> None:
    n = Net(x=["N", 4, 6])
    table, back = n.weight(6, 8), n.weight(8, 6)
    h = n.op("MatMul", n.op("Tanh", n.op("MatMul", "x", table)), back)
    n.op("MatMul", n.op("Tanh", n.op("MatMul", h, table)), n.weight(8, 3))
    model = n.model()
    _, small, _ = check(model, image(2, 4, 6))
    first, _, third, _ = sizes(small, "MatMul")
    assert first[0] == 6 and first[1] == third[1] < 8


PINS = {
    "graph output": lambda n, a: n.op("Relu", a),
    "Softmax": lambda n, a: n.op("Softmax", a, axis=1),
    "ReduceSum": lambda n, a: n.op("ReduceSum", a, n.ints(1)),
    "statistics of LRN": lambda n, a: n.op("LRN", a, size=3),
    "no facts for op Det": lambda n, a: n.op("Det", a),
}


@pytest.mark.parametrize("reason", PINS)
def test_pins_have_a_reason(reason: str) -> None:
    n = Net(x=["N", 3, 6, 6])
    PINS[reason](n, n.conv("x", 3, 6))
    found = groups(n.model(), image(2, 3, 6, 6))
    rows = found.describe()
    assert not len(found.units)
    assert len(rows) == 1 and rows[0].channels == 6 and reason in (rows[0].pinned or "")


def test_excluded_nodes_keep_their_sizes() -> None:
    model = residual()
    found = groups(model, image(2, 3, 8, 8), keep=lambda node: node.name == "Conv_5")
    assert not any(node == "Conv_5" for f in found.families for node, _, _ in f.members)
    assert {r.pinned for r in found.describe()} >= {"'Conv_5' is excluded"}


def test_describe_says_what_is_tied_and_what_it_carries() -> None:
    rows = groups(residual(), image(2, 3, 8, 8)).describe()
    stream = next(r for r in rows if r.channels == 8)
    assert ("Gemm_9", 1) in stream.members or any(node.startswith("Gemm") for node, _ in stream.members)
    assert stream.params > 0 and stream.macs > 0 and stream.pinned is None
    assert rows[-1].pinned is not None and rows[-1].pinned.startswith("graph output")
