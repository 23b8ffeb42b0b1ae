"""Small networks with random weights, one a topology that labels must understand."""

from __future__ import annotations

from typing import Any

import numpy as np
from onnx import helper
from prune_twin import build

from onnxslim_opt import ir


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
        return self.array(values)

    def array(self, values: Any) -> str:
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


def layer_normed() -> ir.Model:
    n = Net(x=["N", 5, 6])
    h = n.op("LayerNormalization", n.linear("x", 6, 12), n.weight(12), n.weight(12), axis=-1)
    h = n.op("Add", h, n.linear(n.op("Relu", n.linear(h, 12, 16)), 16, 12))
    root = n.op("Sqrt", n.op("Add", n.op("ReduceMean", n.op("Mul", h, h), axes=[-1]), n.weight(1)))
    n.weights["w8"] = np.abs(n.weights["w8"]) + 0.1
    n.linear(n.op("Mul", n.op("Div", h, root), n.weight(12)), 12, 4)
    return n.model()


def rms_normed() -> ir.Model:
    """RMSNormalization of opset 23, over the last axis and over the last two."""
    n = Net(x=["N", 5, 6], opset=23)
    h = n.op("RMSNormalization", n.linear("x", 6, 12), n.weight(12), axis=-1, epsilon=1e-4)
    h = n.op("Add", h, n.linear(n.op("Relu", n.linear(h, 12, 16)), 16, 12))
    h = n.op("RMSNormalization", h, n.weight(5, 12), axis=1, epsilon=1e-4)
    n.linear(h, 12, 4)
    return n.model()


def group_normed(opset: int = 21) -> ir.Model:
    n = Net(x=["N", 3, 6, 6], opset=opset)
    size = 12 if opset >= 21 else 4
    a = n.op("GroupNormalization", n.conv("x", 3, 12), n.weight(size), n.weight(size), num_groups=4, epsilon=1e-3)
    a = n.conv(n.op("Relu", a), 12, 8)
    a = n.op("InstanceNormalization", a, n.weight(8), n.weight(8))
    return n.head(n.conv(a, 8, 6), 6)


def unit_length() -> ir.Model:
    n = Net(x=["N", 5, 6])
    h = n.linear("x", 6, 8)
    length = n.op("Clip", n.op("ReduceL2", h, axes=[-1]), n.weight())
    a = n.op("Div", h, n.op("Expand", length, n.op("Shape", h)))
    b = n.op("LpNormalization", n.linear(a, 8, 9), axis=-1, p=2)
    n.linear(b, 9, 4)
    return n.model()


def recurrent(kind: str, both: bool = False, **attrs: Any) -> ir.Model:
    """A convolution, a recurrent layer with every optional input, its last states, and a linear layer."""
    n = Net(x=["N", 3, 7])
    gates, ways = {"LSTM": 4, "GRU": 3, "RNN": 1}[kind], 2 if both else 1
    a = n.op("Conv", "x", n.weight(5, 3, 3), n.weight(5), pads=[1, 1], kernel_shape=[3])
    a = n.op("Transpose", n.op("Relu", a), perm=[2, 0, 1])
    zero = n.op(
        "Expand", n.weight(ways, 1, 6), n.op("Concat", n.ints(1), n.op("Shape", a, start=1, end=2), n.ints(1), axis=0)
    )
    rest = ["", zero, zero, n.weight(ways, 18)] if kind == "LSTM" else ["", zero]
    weights = [n.weight(ways, gates * 6, 5), n.weight(ways, gates * 6, 6), n.weight(ways, 2 * gates * 6)]
    kinds = {"direction": "bidirectional"} if both else {}
    y, last, *_ = n.op(kind, a, *weights, *rest, outputs=3 if kind == "LSTM" else 2, hidden_size=6, **kinds, **attrs)
    y = n.op("Reshape", n.op("Transpose", y, perm=[0, 2, 1, 3]), n.ints(7, -1, 6 * ways))
    y = n.op("ReduceMean", n.linear(y, 6 * ways, 4), axes=[0], keepdims=0)
    h = n.linear(n.op("Reshape", n.op("Transpose", last, perm=[1, 0, 2]), n.ints(-1, 6 * ways)), 6 * ways, 4)
    n.op("Add", y, h)
    return n.model()


def tied() -> ir.Model:
    """One table embeds and, transposed, gives the logits."""
    n = Net(x=["N", 5])
    table = n.weight(20, 8)
    h = n.op("Gather", table, n.op("Cast", n.op("Mul", n.op("Sigmoid", "x"), n.weight(1)), to=7), axis=0)
    n.weights["w1"] = np.array([19.0], np.float32)
    h = n.op("Add", h, n.linear(n.op("Tanh", n.linear(h, 8, 10)), 10, 8))
    n.op("MatMul", h, n.op("Transpose", table, perm=[1, 0]))
    return n.model()


def quantized() -> ir.Model:
    """Weights and activations through QuantizeLinear and DequantizeLinear, per channel and per tensor."""
    n = Net(x=["N", 3, 8, 8])

    def activation(x: str) -> str:
        scale, zero = n.weight(), n.weight()
        n.weights[scale], n.weights[zero] = np.array(0.05, np.float32), np.array(3, np.int8)
        return n.op("DequantizeLinear", n.op("QuantizeLinear", x, scale, zero), scale, zero)

    def conv(x: str, cin: int, cout: int, group: int = 1) -> str:
        w, zero, scale, b, bias_scale = (
            n.weight(cout, cin // group, 3, 3),
            n.weight(cout),
            n.weight(cout),
            n.weight(cout),
            n.weight(),
        )
        n.weights[w] = np.clip(np.round(n.weights[w] * 60), -127, 127).astype(np.int8)
        n.weights[scale] = np.abs(n.weights[scale]) / 100 + 0.01
        n.weights[zero] = np.zeros(cout, np.int8)
        n.weights[b], n.weights[bias_scale] = np.arange(cout, dtype=np.int32) - 3, np.array(0.01, np.float32)
        weight = n.op("DequantizeLinear", w, scale, zero, axis=0)
        return n.op("Conv", x, weight, n.op("DequantizeLinear", b, bias_scale), pads=[1] * 4, group=group)

    a = activation(n.op("Relu", conv(activation("x"), 3, 8)))
    a = activation(n.op("Relu", conv(a, 8, 16, group=8)))
    a = activation(n.op("Relu", conv(a, 16, 12, group=4)))
    return n.head(conv(a, 12, 6), 6)


def computed_sizes() -> ir.Model:
    """A width that shape arithmetic hides: only looking at two sizes of the input shows that it is a constant."""
    n = Net(x=["N", 3, "H", 8])
    a = n.conv("x", 3, 8)
    shape = n.op("Shape", a)
    batch, channels = (n.op("Gather", shape, n.ints(k), axis=0) for k in (0, 1))
    flat = n.op("Reshape", a, n.op("Concat", batch, n.op("Mul", channels, n.ints(2)), n.ints(-1), axis=0))
    flat = n.op("Reshape", n.op("Relu", flat), n.op("Concat", batch, channels, n.ints(-1, 8), axis=0))
    return n.head(n.conv(flat, 8, 6), 6)


def rotated() -> ir.Model:
    """Even and odd channels apart, backwards, and put together again (rotary positions)."""
    n = Net(x=["N", 5, 6])
    h = n.linear("x", 6, 12)
    angle = n.op("Mul", n.op("ReduceMax", "x", axes=[-1], keepdims=1), n.weight(6))
    even = n.op("Slice", h, n.ints(0, 0), n.ints(5, 12), n.ints(1, 2), n.ints(1, 2))
    odd = n.op("Slice", h, n.ints(-1), n.ints(-(2**63)), n.ints(-1), n.ints(-2))
    turned = n.op("Sub", n.op("Mul", even, n.op("Cos", angle)), n.op("Mul", odd, n.op("Sin", angle)))
    n.linear(n.op("Concat", turned, odd, axis=-1), 12, 4)
    return n.model()


def regathered() -> ir.Model:
    """A grid of constant indices makes an image of a flat tensor, its channels backwards."""
    n = Net(x=[2, 3, 4, 4])
    flat = n.op("Reshape", n.op("Relu", n.conv("x", 3, 6)), n.ints(192))
    index = n.ints(0)
    n.weights[index] = np.arange(192).reshape(2, 6, 4, 4)[:, ::-1].transpose(0, 1, 3, 2)
    return n.head(n.conv(n.op("Gather", flat, index, axis=0), 6, 6), 6)


def integers(dynamic: bool = False) -> ir.Model:
    """QLinearConv (plain, depthwise, grouped), QLinearMatMul; or DynamicQuantizeLinear and MatMulInteger."""
    n = Net(x=[2, 3, 6, 6], opset=21)

    def of(name: str, value: Any) -> str:
        n.weights[name] = np.asarray(value)
        return name

    zero, inside = of("z", np.uint8(120)), of("s", np.float32(0.03))

    def weight(*shape: int) -> tuple[str, str, str]:
        name, k = n.weight(*shape), len(n.weights)
        n.weights[name] = np.clip(np.round(n.weights[name] * 60), -127, 127).astype(np.int8)
        columns = shape[-1] if len(shape) == 2 else shape[0]
        scale = of(f"s{k}", np.linspace(0.01, 0.03, columns, dtype=np.float32))
        return name, scale, of(f"z{k}", np.zeros(columns, np.int8))

    def conv(x: str, cin: int, cout: int, group: int = 1) -> str:
        bias = of(f"b{len(n.weights)}", np.arange(cout, dtype=np.int32) * 9 - 20)
        w = weight(cout, cin // group, 3, 3)
        return n.op("QLinearConv", x, inside, zero, *w, inside, zero, bias, pads=[1] * 4, group=group)

    if dynamic:
        flat = n.op("Transpose", n.op("Relu", n.conv("x", 3, 8)), perm=[0, 2, 3, 1])
        q, scale, z = n.op("DynamicQuantizeLinear", flat, outputs=3)
        w = weight(8, 10)
        product = n.op("Cast", n.op("MatMulInteger", q, w[0], z, w[2]), to=1)
        h = n.op("Mul", n.op("Mul", product, scale), w[1])
        return n.head(n.op("Transpose", n.op("Relu", h), perm=[0, 3, 1, 2]), 10)
    a = conv(n.op("QuantizeLinear", "x", inside, zero), 3, 8)
    a = conv(conv(a, 8, 8, group=8), 8, 12, group=4)
    rows = n.op("Transpose", a, perm=[0, 2, 3, 1])
    w = weight(12, 10)
    h = n.op("QLinearMatMul", rows, inside, zero, *w, inside, zero)
    return n.head(n.op("Transpose", n.op("DequantizeLinear", h, inside, zero), perm=[0, 3, 1, 2]), 10)


def fused_attention(four: bool, grouped: bool = False) -> ir.Model:
    """Attention and RotaryEmbedding of opset 23, heads apart or together, keys for pairs of queries or for each."""
    n = Net(x=[2, 5, 6], opset=23)
    keys = 2 if grouped else 4
    q, k, v = (n.linear("x", 6, 8 * h) for h in (4, keys, keys))
    cache = [n.weight(1, 5, 4), n.weight(1, 5, 4)]
    for name in cache:
        n.weights[name] = np.repeat(n.weights[name], 2, 0)
    if four:
        q, k, v = (n.op("Reshape", t, n.ints(0, 0, h, 8)) for t, h in ((q, 4), (k, keys), (v, keys)))
        q, k, v = (n.op("Transpose", t, perm=[0, 2, 1, 3]) for t in (q, k, v))
        q = n.op("RotaryEmbedding", q, *cache)
        y = n.op("Attention", q, n.op("RotaryEmbedding", k, *cache), v, is_causal=1)
        y = n.op("Reshape", n.op("Transpose", y, perm=[0, 2, 1, 3]), n.ints(0, 0, 32))
    else:
        q = n.op("RotaryEmbedding", q, *cache, num_heads=4, interleaved=1)
        y = n.op("Attention", q, k, v, q_num_heads=4, kv_num_heads=keys)
    n.linear(y, 32, 4)
    return n.model()


def indexed() -> ir.Model:
    """What is indexed stays, the channels beside it go: ScatterND, GatherND, ScatterElements, GatherElements."""
    n = Net(x=["N", 5, 6])
    h = n.op("Transpose", n.linear("x", 6, 8), perm=[1, 0, 2])
    h = n.op(
        "ScatterND",
        h,
        n.op("Reshape", n.ints(1, 3), n.ints(2, 1)),
        n.op("GatherND", h, n.op("Reshape", n.ints(0, 2), n.ints(2, 1))),
    )
    h = n.op("Transpose", n.op("Relu", h), perm=[1, 0, 2])
    order = n.op("Cast", n.op("Greater", n.linear("x", 6, 8), n.weight(1)), to=7)
    picked = n.op("GatherElements", h, order, axis=1)
    h = n.op("ScatterElements", n.op("Tanh", h), order, picked, axis=1)
    n.linear(n.op("Relu", n.linear(h, 8, 7)), 7, 4)
    return n.model()


def sampled() -> ir.Model:
    """Channels pass GridSample and DeformConv."""
    n = Net(x=["N", 3, 6, 6], opset=20)
    a = n.op("Relu", n.conv("x", 3, 8))
    grid = n.op("Tanh", n.op("Transpose", n.conv("x", 3, 2), perm=[0, 2, 3, 1]))
    a = n.conv(n.op("GridSample", a, grid), 8, 7)
    return n.head(n.op("Relu", n.conv(a, 7, 6)), 6)


def ellipsis() -> ir.Model:
    """Einsum with an ellipsis, and with an output that is left out."""
    n = Net(x=["N", 5, 6])
    h = n.op("Einsum", "x", n.weight(6, 8), equation="...i,ij->...j")
    h = n.op("Einsum", n.op("Relu", h), n.weight(8, 7), equation="abc,cd")
    n.op("Einsum", n.op("Tanh", h), n.weight(7, 3), equation="...c,cd->...d")
    return n.model()


def branched() -> ir.Model:
    """The branches of an If read a tensor and a weight from outside: the tensor stays, the weight is copied."""
    n = Net(x=["N", 3, 6, 6])
    a = n.op("Relu", n.conv("x", 3, 8))
    weight = n.weight(8, 8, 1, 1)
    b = n.op("Relu", n.op("Conv", n.op("Relu", n.conv("x", 3, 8)), weight))
    branches = {}
    for name, nodes in (("then_branch", [("Conv", [a, weight])]), ("else_branch", [("Neg", [a])])):
        made = [helper.make_node(kind, inputs, [f"{name}_y"], name=f"{name}_n") for kind, inputs in nodes]
        branches[name] = helper.make_graph(made, name, [], [helper.make_empty_tensor_value_info(f"{name}_y")])
    which = n.op("Greater", n.op("ReduceMean", "x", keepdims=0), n.weight())
    c = n.op("If", which, **branches)
    return n.head(n.op("Concat", n.op("Tanh", c), n.conv(b, 8, 6), axis=1), 14)


def pyramid() -> ir.Model:
    """Dynamic height and width: a Resize to another tensor's size, a shuffle whose shapes are computed."""
    n = Net(x=["N", 3, "H", "W"])
    a = n.op("Relu", n.conv("x", 3, 8))
    b = n.op("Relu", n.conv(a, 8, 12, strides=[2, 2]))
    front = n.op("Slice", n.op("Shape", b), n.ints(0), n.ints(2))
    space = n.op("Slice", n.op("Shape", a), n.ints(2), n.ints(4))
    c = n.op("Concat", a, n.op("Resize", b, "", "", n.op("Concat", front, space, axis=0)), axis=1)
    c = n.conv(n.op("Relu", n.conv(c, 20, 12, k=1)), 12, 12, group=2)
    batch = n.op("Slice", n.op("Shape", c), n.ints(0), n.ints(1))
    c = n.op("Reshape", c, n.op("Concat", batch, n.ints(2, 6), space, axis=0))
    c = n.op("Transpose", c, perm=[0, 2, 1, 3, 4])
    c = n.op("Reshape", c, n.op("Concat", batch, n.ints(12), space, axis=0))
    return n.head(n.conv(n.op("Relu", c), 12, 8), 8)


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
    "rotated": (rotated, (2, 5, 6)),
    "regathered": (regathered, (2, 3, 4, 4)),
    "tied": (tied, (2, 5)),
    "quantized": (quantized, (2, 3, 8, 8)),
    "computed_sizes": (computed_sizes, (2, 3, 10, 8)),
    "lstm": (lambda: recurrent("LSTM"), (2, 3, 7)),
    "lstm_both": (lambda: recurrent("LSTM", True, clip=2.0), (2, 3, 7)),
    "gru": (lambda: recurrent("GRU"), (2, 3, 7)),
    "gru_both": (lambda: recurrent("GRU", True, linear_before_reset=1), (2, 3, 7)),
    "rnn": (lambda: recurrent("RNN", True), (2, 3, 7)),
    "group_normed": (group_normed, (2, 3, 6, 6)),
    "integers": (integers, (2, 3, 6, 6)),
    "attention_4d": (lambda: fused_attention(True), (2, 5, 6)),
    "attention_3d": (lambda: fused_attention(False), (2, 5, 6)),
    "attention_4d_grouped": (lambda: fused_attention(True, True), (2, 5, 6)),
    "attention_3d_grouped": (lambda: fused_attention(False, True), (2, 5, 6)),
    "indexed": (indexed, (2, 5, 6)),
    "sampled": (sampled, (2, 3, 6, 6)),
    "ellipsis": (ellipsis, (2, 5, 6)),
    "pyramid": (pyramid, (2, 3, 8, 10)),
    "branched": (branched, (2, 3, 6, 6)),
}

NORMED: dict[str, tuple[Any, tuple[int, ...], int]] = {  # name: (network, input, units that may go at least)
    "layer_normed": (layer_normed, (2, 5, 6), 28),
    "rms_normed": (rms_normed, (2, 5, 6), 28),
    "group_normed": (group_normed, (2, 3, 6, 6), 20),
    "group_normed_18": (lambda: group_normed(18), (2, 3, 6, 6), 20),
    "normalised_groups": (normalised_groups, (2, 3, 6, 6), 12),
    "unit_length": (unit_length, (2, 5, 6), 17),
    "dynamic_integers": (lambda: integers(True), (2, 3, 6, 6), 18),
}
