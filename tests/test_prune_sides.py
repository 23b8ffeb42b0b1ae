"""What operators read beside data and weights: its channels stay or go with the others, and the twin is the judge."""

from __future__ import annotations

import numpy as np
import pytest
from onnxslim_opt.passes.prune import groups
from prune_nets import Net, image
from prune_sides import SIDES, Feeds
from prune_twin import check


def given(shapes: Feeds) -> dict[str, np.ndarray]:
    rng = np.random.default_rng(7)
    return {k: rng.standard_normal(s).astype(np.float32) for k, s in shapes.items()}


@pytest.mark.parametrize("norms", ["pin", "allow"])
@pytest.mark.parametrize("ratio", [0.1, 0.5, 0.9])
@pytest.mark.parametrize("name", SIDES)
def test_pruned_equals_its_twin(name: str, ratio: float, norms: str) -> None:
    make, shapes = SIDES[name]
    for seed in range(3):
        check(make(), given(shapes), ratio, seed, norms=norms)


def test_what_a_rule_does_not_look_at_stays() -> None:
    """How often a tensor is repeated: two numbers, though a linear layer makes them."""
    n = Net(x=[3, 6])
    nothing, once = n.weight(), n.weight()
    n.weights[nothing], n.weights[once] = np.float32(0), np.float32(1)
    made = n.op("MatMul", n.op("ReduceMean", "x", axes=[0], keepdims=0), n.weight(6, 2))
    times = n.op("Cast", n.op("Add", n.op("Mul", made, nothing), once), to=7)
    n.linear(n.op("Tile", n.op("Relu", n.linear("x", 6, 8)), times), 8, 4)
    found, *_ = check(n.model(), image(3, 6))
    assert {r.pinned for r in found.describe()} >= {f"nothing says what Tile '{n.nodes[-3].name}' does with it"}


@pytest.mark.parametrize("kind", ["LSTM", "GRU", "RNN"])
def test_no_direction_goes(kind: str) -> None:
    """A weight alone that is stored in few bits: its first axis counts directions, which are no channels."""
    n = Net(x=[7, 2, 3])
    gates = {"LSTM": 4, "GRU": 3, "RNN": 1}[kind]
    weight, scale = n.weight(2, gates * 6, 5), n.weight()
    n.weights[weight] = np.clip(np.round(n.weights[weight] * 60), -127, 127).astype(np.int8)
    n.weights[scale] = np.float32(0.02)
    a = n.op("Tanh", n.linear("x", 3, 5))
    a = n.op(
        kind,
        a,
        n.op("DequantizeLinear", weight, scale),
        n.weight(2, gates * 6, 6),
        hidden_size=6,
        direction="bidirectional",
    )
    n.linear(n.op("Reshape", n.op("Transpose", a, perm=[0, 2, 1, 3]), n.ints(7, 2, 12)), 12, 4)
    for ratio in (0.1, 0.5, 0.9):
        for seed in range(3):
            found, *_ = check(n.model(), image(7, 2, 3), ratio, seed)
    assert len(found.units) == 11  # inputs and units


def test_statistics_of_a_trained_norm_run_over_samples() -> None:
    """Samples that a product makes stay where a norm takes its statistics over them."""
    n = Net(x=[3, 5])
    h = n.op(
        "BatchNormalization",
        n.op("MatMul", n.weight(6, 3), "x"),
        *(n.weight(5) for _ in range(4)),
        outputs=3,
        training_mode=1,
    )
    n.op("MatMul", n.weight(2, 6), h[0])
    assert {r.pinned for r in groups(n.model(), image(3, 5)).describe()} >= {
        "statistics of BatchNormalization 'BatchNormalization_1' run over it"
    }
