"""`simplify` on random graphs that hypothesis draws, so that what fails shrinks to a few nodes.

The generator is that of `randomgraphs`, over more than ninety operators: every choice it makes is hypothesis's.
"""

import os

import numpy as np
import pytest
import randomblocks
import randomgraphs
import randomsteps
import suite
from hypothesis import HealthCheck, Phase, assume, given, note, settings
from hypothesis import strategies as st
from onnxslim_opt.ir import text, verify
from onnxslim_opt.passes.simplify import Simplify

from onnxslim_opt import ir

STEPS = [*randomgraphs.STEPS, *randomsteps.MORE, *randomblocks.BLOCKS]
OPSETS = [13, 15, 17, 18, 20, 21, 23, 24]


class Drawn:
    """What the generator asks of numpy, drawn by hypothesis. Weights come from one seed: they need not shrink."""

    def __init__(self, data):
        self.data, self.weights = data, None

    def integers(self, low, high=None, size=None):
        low, high = (0, low) if high is None else (low, high)
        if size is not None:
            return self._numbers().integers(low, high, size=size)
        return self.data.draw(st.integers(low, high - 1))

    def random(self, size=None):
        if size is not None:
            return self._numbers().random(size)
        return self.data.draw(st.integers(0, 99)) / 100

    def standard_normal(self, size):
        return self._numbers().standard_normal(size)

    def permutation(self, count):
        return self.data.draw(st.permutations(range(count)))

    def _numbers(self):
        if self.weights is None:
            self.weights = np.random.default_rng(self.data.draw(st.integers(0, 1 << 16)))
        return self.weights


def _runs(proto, feeds):
    """What the model gives; None where ONNX Runtime refuses it (some of the drawn graphs divide by a size of none)."""
    try:
        return suite.session(proto.SerializeToString()).run(None, feeds)
    except Exception:
        return None


def _same(x, y):
    assert x.shape == y.shape and x.dtype == y.dtype
    finite = np.isfinite(x)
    np.testing.assert_array_equal(finite, np.isfinite(y))
    scale = float(np.abs(x[finite]).max(initial=1))
    np.testing.assert_allclose(y[finite], x[finite], rtol=0, atol=1e-4 * scale)


def _holds(data, compact):
    builder = randomgraphs.Builder(Drawn(data), data.draw(st.sampled_from(OPSETS)))
    proto = randomgraphs.grow(builder, 5, 60, STEPS)
    feeds = randomgraphs.feeds(0)
    expected = _runs(proto, feeds)
    assume(expected is not None and all(np.abs(x[np.isfinite(x)]).max(initial=0) < 1e6 for x in expected))
    model = ir.from_proto(proto)
    note(text.show(model))
    Simplify(compact=compact).run(model)
    verify.check(model)
    note(text.show(model))
    result = ir.to_proto(model)
    assert list(result.graph.input) == list(proto.graph.input)
    assert list(result.graph.output) == list(proto.graph.output)
    assert result.opset_import == proto.opset_import
    for x, y in zip(expected, suite.session(result.SerializeToString()).run(None, feeds)):
        _same(x, y)


COMMON = {
    "deadline": None,
    "database": None,
    "derandomize": True,
    "suppress_health_check": list(HealthCheck),
    "phases": [Phase.generate, Phase.shrink],
}


@settings(max_examples=60, **COMMON)
@given(st.data(), st.booleans())
def test_simplify_keeps_what_a_graph_computes(data, compact):
    _holds(data, compact)


@pytest.mark.slow
@settings(max_examples=int(os.environ.get("EXAMPLES", "4000")), **{**COMMON, "derandomize": False})
@given(st.data(), st.booleans())
def test_simplify_keeps_what_many_graphs_compute(data, compact):
    _holds(data, compact)


def test_the_generator_knows_ninety_operators():
    found = set()
    for seed in range(150):
        builder = randomgraphs.Builder(np.random.default_rng(seed), OPSETS[seed % len(OPSETS)])
        found |= {n.op_type for n in randomgraphs.grow(builder, 5, 60, STEPS).graph.node}
    assert len(found) >= 90
