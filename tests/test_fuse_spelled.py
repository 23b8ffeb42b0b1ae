"""Every way in which exporters write an activation: each becomes the one operator, with the same values."""

import casefiles
import numpy as np
import onnx
import onnxruntime as ort
import pytest
import suite

from onnxslim_opt import ir

GELU = {
    "divided, halved last": "a = Div(x, root)\n f = Erf(a)\n b = Add(f, one)\n g = Mul(x, b)\n y = Mul(g, half)",
    "halved first": "h = Mul(x, half)\n a = Mul(x, inverse)\n f = Erf(a)\n b = Add(one, f)\n y = Mul(h, b)",
    "half the sum": "a = Div(x, root)\n f = Erf(a)\n b = Add(f, one)\n g = Mul(half, b)\n y = Mul(x, g)",
    "halved by two": "a = Div(x, root)\n f = Erf(a)\n b = Add(f, one)\n g = Mul(x, b)\n y = Div(g, two)",
    "half plus half": "a = Div(x, root)\n f = Erf(a)\n h = Mul(f, half)\n b = Add(h, half)\n y = Mul(b, x)",
}
TANH = {
    "cubed by Pow": "p = Pow(x, three)\n q = Mul(p, k)\n r = Add(x, q)\n s = Mul(r, c)",
    "cubed by products": "p = Mul(x, x)\n p3 = Mul(p, x)\n q = Mul(k, p3)\n r = Add(q, x)\n s = Mul(c, r)",
    "one plus the square": "xc = Mul(x, c)\n p = Mul(x, x)\n q = Mul(p, k)\n r = Add(q, one)\n s = Mul(xc, r)",
    "coefficient first": "kx = Mul(x, k)\n kx2 = Mul(kx, x)\n q = Mul(kx2, x)\n r = Add(x, q)\n s = Mul(r, c)",
}
HARD_SWISH = {
    "x · (clip / 6)": "a = Add(x, three)\n b = Clip(a, zero, six)\n c1 = Div(b, six)\n y = Mul(x, c1)",
    "(x · clip) / 6": "a = Add(x, three)\n b = Clip(a, zero, six)\n c1 = Mul(x, b)\n y = Div(c1, six)",
    "(x · clip) · 1/6": "a = Add(three, x)\n b = Clip(a, zero, six)\n c1 = Mul(b, x)\n y = Mul(c1, sixth)",
    "(x / 6) · clip": "a = Add(x, three)\n b = Clip(a, zero, six)\n c1 = Div(x, six)\n y = Mul(c1, b)",
    "HardSigmoid": "a = HardSigmoid<alpha = 0.16666667, beta = 0.5>(x)\n y = Mul(a, x)",
    "min and max": "a = Add(x, three)\n b = Max(a, zero)\n d = Min(b, six)\n f = Div(d, six)\n y = Mul(x, f)",
    "clip of x/6 + 1/2": "a = Mul(x, sixth)\n b = Add(a, half)\n d = Clip(b, zero, one)\n y = Mul(d, x)",
}
SPREAD = (
    "m = ReduceMean(x, ax)\n d = Sub(x, m)\n p = Mul(d, d)\n v = ReduceMean(p, ax)\n e1 = Add(e, v)\n r = Sqrt(e1)\n"
)
AFFINE = " s = Mul(n, w)\n y = Add(s, w2)"
NORM = {
    "square by Mul": SPREAD + " n = Div(d, r)" + AFFINE,
    "square by Pow": SPREAD.replace("Mul(d, d)", "Pow(d, two)") + " n = Div(d, r)" + AFFINE,
    "scale and bias first": SPREAD + " n = Div(d, r)\n s = Mul(w, n)\n y = Add(w2, s)",
    "subtracted twice": SPREAD.replace("Mul(d, d)", "Pow(d2, two)").replace("p =", "d2 = Sub(x, m)\n p =")
    + " n = Div(d, r)"
    + AFFINE,
    "reciprocal": SPREAD + " i = Reciprocal(r)\n n = Mul(d, i)" + AFFINE,
    "one over the root": SPREAD + " i = Div(one, r)\n n = Mul(d, i)" + AFFINE,
    "scale over root": SPREAD + " i = Div(w, r)\n n = Mul(d, i)\n y = Add(n, w2)",
    "power of a half": SPREAD.replace("Sqrt(e1)", "Pow(e1, half)") + " n = Div(d, r)" + AFFINE,
    "power of minus a half": SPREAD.replace("Sqrt(e1)", "Pow(e1, minus)") + " n = Mul(d, r)" + AFFINE,
}
CONSTANTS = """<float root = {1.4142135}, float inverse = {0.70710677}, float one = {1.0}, float half = {0.5},
 float two = {2.0}, float three = {3.0}, float k = {0.044715}, float c = {0.7978846}, float zero = {0.0},
 float six = {6.0}, float sixth = {0.16666667}, float minus = {-0.5}, float e = {0.01}, int64[1] ax = {-1},
 float[5] w = {1.0, 2.0, -0.5, 0.25, 3.0}, float[5] w2 = {0.0, 1.0, -1.0, 0.5, 2.0}>"""


def _becomes(body, op, opset):
    _become(body, [op], opset)


def _become(body, ops, opset):
    """The operators that are left, with the same values; returns the model."""
    source = f"g (float[N,5] x) => (float[N,5] y) {CONSTANTS} {{ {body} }}"
    before = ir.to_bytes(casefiles.parse(source, str(opset)))
    model = casefiles.apply(casefiles.parse(source, str(opset)), "clean,fuse,fold,fuse")
    assert [n.op for n in model.nodes()] == ops
    one, two = suite.session(before), suite.session(ir.to_bytes(model))
    for seed in range(2):
        x = {"x": 3 * casefiles.random_feeds(one, seed)["x"]}
        np.testing.assert_allclose(two.run(None, x)[0], one.run(None, x)[0], rtol=1e-5, atol=2e-6)
    return model


@pytest.mark.parametrize("body", GELU.values(), ids=GELU)
def test_gelu(body):
    _becomes(body, "Gelu", 20)


@pytest.mark.parametrize("body", GELU.values(), ids=GELU)
def test_gelu_of_older_opsets_is_one_kernel_of_onnx_runtime(body, tmp_path):
    model = _become(body, ["Div", "Erf", "Add", "Mul", "Mul"], 17)
    options = ort.SessionOptions()
    options.optimized_model_filepath = str(tmp_path / "loaded.onnx")
    options.log_severity_level = 4
    ort.InferenceSession(ir.to_bytes(model), options, providers=["CPUExecutionProvider"])
    assert [n.op_type for n in onnx.load(tmp_path / "loaded.onnx").graph.node] == ["Gelu"]


@pytest.mark.parametrize("body", TANH.values(), ids=TANH)
def test_gelu_by_tanh(body):
    _becomes(f"{body}\n t = Tanh(s)\n b = Add(t, one)\n m = Mul(x, b)\n y = Mul(m, half)", "Gelu", 20)


@pytest.mark.parametrize("body", HARD_SWISH.values(), ids=HARD_SWISH)
def test_hard_swish(body):
    _becomes(body, "HardSwish", 17)


@pytest.mark.parametrize("body", NORM.values(), ids=NORM)
def test_layer_normalization(body):
    _becomes(body, "LayerNormalization", 18)


@pytest.mark.parametrize("number", ["0.4", "0.6"])
def test_almost_a_gelu_is_none(number):
    body = GELU["halved first"].replace("half)", "almost)")
    source = f"g (float[N,5] x) => (float[N,5] y) {CONSTANTS[:-1]}, float almost = {{{number}}}> {{ {body} }}"
    model = casefiles.apply(casefiles.parse(source, "20"), "clean,fuse")
    assert "Gelu" not in {n.op for n in model.nodes()}
