"""`fuse`: every case file, and what text cannot show."""

import dataclasses
import types

import casefiles
import numpy as np
import pytest
import suite
from onnxslim_opt.ir import cost, edit, shapes, text
from onnxslim_opt.passes import fuse
from onnxslim_opt.passes.fuse import Fuse
from onnxslim_opt.passes.target import Target

from onnxslim_opt import ir


@pytest.mark.parametrize("path", casefiles.found("fuse"), ids=lambda p: p.stem)
def test_case(path):
    casefiles.check(path)


def test_every_rule_has_a_case(monkeypatch):
    done, last = set(), (fuse.attention, fuse.contrib, fuse.sums)
    rules = (*fuse.RULES, *fuse.COMPACT, *(r for family in last for r in family.RULES))

    def watched(rule):
        def apply(rw, node):
            outcome = rule.apply(rw, node)
            if outcome is True:
                done.add(rule.apply)
            return outcome

        return dataclasses.replace(rule, apply=apply)

    for name in ("RULES", "COMPACT"):
        monkeypatch.setattr(fuse, name, tuple(map(watched, getattr(fuse, name))))
    for family in last:
        monkeypatch.setattr(family, "RULES", tuple(map(watched, family.RULES)))
    for path in casefiles.found("fuse"):
        parts = casefiles.sections(path)
        casefiles.apply(casefiles.parse(parts["before"], parts.get("opset", "17")), parts["pipeline"])
    assert {f"{r.apply.__module__}.{r.apply.__name__}" for r in rules if r.apply not in done} == set()


@pytest.mark.parametrize(("follows", "left"), [((), 1), (("simplify",), 1), (("prune", "quant"), 5)])
def test_attention_stays_spelled_out_for_lossy_passes(follows, left):
    parts = casefiles.sections(casefiles.FOLDER / "fuse" / "attention.onnxtxt")
    model = casefiles.parse(parts["before"], parts["opset"])
    shapes.refresh(model)
    macs = cost.of(model).macs
    fuse.Fuse().run(model, types.SimpleNamespace(follows=follows))
    assert len(list(model.nodes())) == left
    shapes.refresh(model)
    assert cost.of(model).macs == macs > 0


@pytest.mark.parametrize(("follows", "left"), [((), ["MatMul", "Sum"]), (("quant",), ["MatMul", "Add", "Add"])])
def test_sums_are_taken_apart_for_lossy_passes(follows, left):
    model = text.parse("""
        g (float[N,4,2] x) => (float[N,4,2] y) <float[2,2] w = {1.0, 2.0, 3.0, -4.0}, float[2] b = {1.0, 2.0}> {
          a = MatMul(x, w)
          y = Sum(a, b, x)
        }""")
    before = ir.to_bytes(model)
    shapes.refresh(model)
    Fuse().run(model, types.SimpleNamespace(follows=follows))
    assert [n.op for n in model.nodes()] == left
    one, two = suite.session(before), suite.session(ir.to_bytes(model))
    x = casefiles.random_feeds(one, 0)
    np.testing.assert_array_equal(one.run(None, x)[0], two.run(None, x)[0])


def test_own_operators_only_for_the_runtime_that_has_them():
    parts = casefiles.sections(casefiles.FOLDER / "fuse" / "contrib_gelu.onnxtxt")
    model = casefiles.parse(parts["before"], parts.get("opset", "17"))
    shapes.refresh(model)
    elsewhere = types.SimpleNamespace(follows=(), target=Target("openvino", runtime="openvino"))
    result = Fuse(contrib=True).run(model, elsewhere)
    assert not any(n.domain for n in model.nodes())
    assert "openvino has no such operators" in result.skipped[0].reason


def _fuse(source):
    model = text.parse(source)
    shapes.refresh(model)
    return model, Fuse().run(model)


def test_a_refusal_has_a_reason():
    _, result = _fuse("""
        g (float[1,1,2,2] x) => (float[1,1,2,2] y, float[1,1,2,2] c)
        <float[1,1,1,1] w = {2.0}, float[1,1,1] s = {3.0}> {
          c = Conv(x, w)
          y = Mul(c, s)
        }""")
    assert not result.changed
    assert "used elsewhere" in result.skipped[0].reason


def test_a_shared_weight_is_not_copied():
    model, result = _fuse("""
        g (float[N,32,2,2] x) => (float[N,32,2,2] y, float[N,32,2,2] z) <int64[4] s = {32, 32, 1, 1}, float k = {3.0}> {
          w = ConstantOfShape(s)
          a = Conv(x, w)
          y = Mul(a, k)
          z = Conv(x, w)
        }""")
    assert not result.changed  # the weight is no constant yet
    shapes.refresh(model)
    from onnxslim_opt.passes.fold import Fold

    Fold(growth=1e4).run(model)
    result = Fuse().run(model)
    assert any("shared" in s.reason for s in result.skipped)


def test_infinite_weights_are_refused():
    _, result = _fuse("""
        g (float[N,1,2,2] x) => (float[N,1,2,2] y)
        <float[1,1,1,1] w = {2.0}, float[1] g = {1e30}, float[1] b = {0.0}, float[1] m = {0.0}, float[1] v = {0.0}> {
          a = Conv(x, w)
          y = BatchNormalization<epsilon = 1e-30>(a, g, b, m, v)
        }""")
    assert any("finite" in s.reason for s in result.skipped)


@pytest.mark.parametrize("seed", range(4))
def test_random_affine_stacks(seed):
    """Conv stacks with groups, padding, BatchNormalization, scales and shifts in random order."""
    rng = np.random.default_rng(seed)
    channels = 4
    model = text.parse("g (float[N,4,9,9] x) => (float[N,4,a,b] y) { y = Relu(x) }")
    graph = model.graph
    graph.nodes.clear()
    x, out = graph.inputs[0], graph.outputs[0]
    out.inputs.clear()
    for k in range(12):
        kind = rng.integers(4)
        c = lambda *s: edit.constant(model, "c", rng.standard_normal(s).astype(np.float32))  # noqa: E731
        if kind == 0:
            group = int(rng.choice([1, 2, 4]))
            pads = int(rng.integers(2))
            args = [x, c(channels, channels // group, 3, 3)] + ([c(channels)] if rng.integers(2) else [])
            node = edit.node(model, "Conv", args, {"group": group, "pads": [pads] * 4})
        elif kind == 1:
            v = edit.constant(model, "v", rng.random(channels).astype(np.float32) + 0.5)
            node = edit.node(model, "BatchNormalization", [x, c(channels), c(channels), c(channels), v])
        else:
            op = str(rng.choice(["Mul", "Add", "Sub", "Div"]))
            side = [x, c(channels, 1, 1)]
            node = edit.node(model, op, side if op == "Div" or rng.integers(2) else side[::-1])
        edit.add(graph, node)
        x = node.outputs[0]
        if k in (3, 7):
            edit.add(graph, relu := edit.node(model, "Relu", [x]))
            x = relu.outputs[0]
    edit.add(graph, edit.node(model, "Identity", [x], outputs=[out]))
    before = ir.to_bytes(model)
    shapes.refresh(model)
    Fuse().run(model)
    ir.order.sort(model)
    ir.verify.check(model)
    one, two = casefiles.suite.session(before), casefiles.suite.session(ir.to_bytes(model))
    feeds = casefiles.random_feeds(one, seed)
    a, b = one.run(None, feeds)[0], two.run(None, feeds)[0]
    np.testing.assert_allclose(b, a, rtol=0, atol=2e-5 * np.abs(a).max())


@pytest.mark.parametrize(
    "change", [("x) =>", "x) =>", "[N,1,5,6]"), ("{100, 100}", "{3, 100}", ""), ("s3 = {1, 1}", "s3 = {1, 2}", "")]
)
def test_a_focus_that_does_not_take_all_of_an_even_image_stays(change):
    source = """
        g (float[N,1,4,6] x) => (float[N,1,A,B] y)
        <float[1,2,1,1] w = {1.0, 2.0}, int64[2] a = {2, 3}, int64[2] st = {2, 2}, int64[2] e = {100, 100},
         int64[2] s0 = {0, 1}, int64[2] s3 = {1, 1}> {
          p0 = Slice(x, s0, e, a, st)
          p3 = Slice(x, s3, e, a, st)
          f = Concat<axis = 1>(p0, p3)
          y = Conv(f, w)
        }"""
    _, result = _fuse(source)
    assert result.did == {"space to depth folded into convolutions": 1}
    old, new, size = change
    _, result = _fuse(source.replace(old, new).replace("[N,1,4,6]", size or "[N,1,4,6]"))
    assert "space to depth folded into convolutions" not in result.did
