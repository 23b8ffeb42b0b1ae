"""Label propagation and cutting, topology by topology: every pruned network equals its masked twin."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
from onnxslim_opt.passes.prune import Prune, dead, groups
from onnxslim_opt.passes.prune import sizes as prune_sizes
from onnxslim_opt.passes.prune.cut import cut
from prune_contrib import CONTRIB
from prune_nets import NETS, NORMED, Net, attention, branched, image, pyramid, residual
from prune_twin import check, distance, run, twin
from test_prune_pass import context

from onnxslim_opt import ir

RATIOS = (0.1, 0.5, 0.9)
EVERY = {**NETS, **CONTRIB}


@pytest.mark.parametrize("ratio", RATIOS)
@pytest.mark.parametrize("name", NORMED)
def test_pruned_through_norms_equals_its_twin(name: str, ratio: float) -> None:
    make, shape, least = NORMED[name]
    pinned = groups(make(), image(*shape))
    for seed in range(3):
        found, *_ = check(make(), image(*shape), ratio, seed, norms="allow")
        assert len(found.units) >= least > len(pinned.units)


@pytest.mark.parametrize("ratio", RATIOS)
@pytest.mark.parametrize("name", EVERY)
def test_pruned_equals_its_twin(name: str, ratio: float) -> None:
    make, shape = EVERY[name]
    for seed in range(3):
        check(make(), image(*shape), ratio, seed)


@pytest.mark.parametrize("name", EVERY)
def test_every_batch_size_still_runs(name: str) -> None:
    make, shape = EVERY[name]
    model = make()
    if model.inputs[0].shape[0] != "N":
        pytest.skip("fixed batch")
    _, small, _ = check(model, image(*shape))
    for batch in (1, 4):
        (out,) = run(ir.to_proto(small), image(batch, *shape[1:]))
        assert out.shape[0] == batch


@pytest.mark.parametrize("ratio", RATIOS)
def test_every_height_and_width_still_runs(ratio: float) -> None:
    model = pyramid()
    found, small, gone = check(model, image(2, 3, 8, 10), ratio)
    masked = twin(model, found, gone)
    for shape in ((1, 3, 12, 6), (3, 3, 9, 15)):
        assert distance(run(masked, image(*shape)), run(ir.to_proto(small), image(*shape))) < 1e-4


def sizes(model: ir.Model, op: str, index: int = 1) -> list[tuple[int, ...]]:
    return [tuple(n.inputs[index].shape) for n in model.nodes() if n.op == op]


def test_heads_and_head_dimensions_go_separately() -> None:
    found = groups(attention(), image(2, 5, 6))
    counts = sorted(len(f.units) for f in found.families)
    # 3 heads, 4 dimensions of q/k, 4 of v, 16 neurons, 12 channels of the stream
    assert counts == [3, 4, 4, 12, 16]


def test_what_a_branch_reads_stays_and_its_weights_are_copied() -> None:
    model, given = branched(), image(2, 3, 6, 6)
    found, small, _ = check(model, given, 1.0)
    why = {r.pinned for r in found.describe() if r.pinned}
    assert any("read inside a subgraph of If" in reason for reason in why)
    assert "it stands in a branch or the body of a loop" in why  # the weights of the branch itself
    inside = [n for g in small.graphs() if g is not small.graph for n in g.nodes if n.op == "Conv"]
    assert tuple(inside[0].inputs[1].shape) == (8, 8, 1, 1)
    assert sizes(small, "Conv")[1] != (8, 8, 1, 1)


def test_heads_of_fused_attention_go_separately() -> None:
    shapes = {"attention_4d": [4, 4, 8], "attention_3d": [4, 4, 8], "attention_3d_grouped": [2, 2, 4, 8]}
    for name, counts in shapes.items():  # heads (or keys' heads and queries of each), pairs of q/k, dimensions of v
        make, shape = EVERY[name]
        assert sorted(len(f.units) for f in groups(make(), image(*shape)).families) == counts


MASKS: dict[str, Any] = {  # of 4 heads over 5 tokens
    "stored": lambda n: n.weight(4, 5, 5),
    "relative": lambda n: n.op("Transpose", n.op("Gather", n.weight(9, 4), n.array(near()), axis=0), perm=[2, 0, 1]),
    "slopes": lambda n: n.op("Mul", n.weight(1, 4, 1, 1), n.weight(5, 5)),
    "samples": lambda n: n.op("Reshape", n.linear("x", 6, 20), n.ints(2, 4, 5, 5)),
}


def near() -> np.ndarray:
    """Distances of 5 tokens from each other, from 0 on."""
    return np.arange(5)[:, None] - np.arange(5) + 4


def biased(mask: Any, four: bool, keys: int) -> ir.Model:
    """Fused attention with a mask that has heads."""
    n = Net(x=[2, 5, 6], m=[2, 4, 5, 5], opset=23)
    q, k, v = (n.linear("x", 6, 8 * h) for h in (4, keys, keys))
    heads: dict[str, Any] = {"q_num_heads": 4, "kv_num_heads": keys}
    if four:
        q, k, v = (n.op("Reshape", t, n.ints(0, 0, -1, 8)) for t in (q, k, v))
        q, k, v = (n.op("Transpose", t, perm=[0, 2, 1, 3]) for t in (q, k, v))
        heads = {}
    y = n.op("Attention", q, k, v, mask(n), **heads)
    y = n.op("Reshape", n.op("Transpose", y, perm=[0, 2, 1, 3]), n.ints(0, 0, 32)) if four else y
    n.linear(y, 32, 4)
    return n.model()


@pytest.mark.parametrize("ratio", RATIOS)
@pytest.mark.parametrize(("four", "keys"), [(False, 4), (True, 4), (False, 2), (True, 2)])
@pytest.mark.parametrize("name", [k for k in MASKS if k != "samples"])
def test_heads_of_a_mask_go_with_those_of_attention(name: str, four: bool, keys: int, ratio: float) -> None:
    rng = np.random.default_rng(0)
    feed = {k: rng.standard_normal(s).astype(np.float32) for k, s in (("x", (2, 5, 6)), ("m", (2, 4, 5, 5)))}
    found, _, _ = check(biased(MASKS[name], four, keys), feed, ratio, seed=1)
    families = sorted(len(f.units) for f in found.families)
    assert families == ([4, 8, 8] if keys == 4 else [2, 2, 8, 8])


@pytest.mark.parametrize("mask", [lambda n: "m", MASKS["samples"]])
@pytest.mark.parametrize("four", [False, True])
def test_dimensions_go_beside_a_mask_whose_heads_stay(four: bool, mask: Any) -> None:
    rng = np.random.default_rng(0)
    feed = {k: rng.standard_normal(s).astype(np.float32) for k, s in (("x", (2, 5, 6)), ("m", (2, 4, 5, 5)))}
    found, small, _ = check(biased(mask, four, 4), feed, 1.0)
    assert sorted(len(f.units) for f in found.families) == [8, 8]
    assert sizes(small, "MatMul")[-1] == (4, 4)  # one dimension of every head


@pytest.mark.parametrize("interleaved", [0, 1])
def test_dimensions_of_heads_of_four_go_with_the_one_they_turn_with(interleaved: int) -> None:
    n = Net(x=[2, 5, 6], opset=23)
    heads = n.op("Transpose", n.op("Reshape", n.linear("x", 6, 16), n.ints(0, 0, 4, 4)), perm=[0, 2, 1, 3])
    turned = n.op("RotaryEmbedding", heads, n.weight(2, 5, 2), n.weight(2, 5, 2), interleaved=interleaved)
    n.linear(n.op("Reshape", n.op("Transpose", turned, perm=[0, 2, 1, 3]), n.ints(0, 0, 16)), 16, 4)
    model = n.model()
    assert sorted(len(f.units) for f in groups(model, image(2, 5, 6)).families) == [2, 4]  # pairs, heads
    for seed in range(3):
        check(model, image(2, 5, 6), seed=seed)


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


def _spelled_group_norm(side: int) -> ir.Model:
    n = Net(x=[2, 3, side, side])
    h = n.conv("x", 3, 12)
    inner = n.op("InstanceNormalization", n.op("Reshape", h, n.ints(0, 4, -1)), n.weight(4), n.weight(4))
    h = n.op("Mul", n.op("Reshape", inner, n.op("Shape", h)), n.weight(12, 1, 1))
    return n.head(n.conv(n.op("Relu", n.op("Add", h, n.weight(12, 1, 1))), 12, 6), 6)


@pytest.mark.parametrize("norms", ["pin", "allow"])
def test_groups_of_channels_are_found_without_their_space(norms: str) -> None:
    """A Reshape that merges channels and space makes atoms for the channels, not one for every pixel."""
    small, large = (groups(_spelled_group_norm(side), norms=norms) for side in (5, 40))
    assert [(r.channels, r.members, r.params, r.pinned) for r in small.describe()] == [
        (r.channels, r.members, r.params, r.pinned) for r in large.describe()
    ]
    assert large.flow.atoms.count == small.flow.atoms.count < 100
    check(_spelled_group_norm(5), image(2, 3, 5, 5), 0.5)


def test_users_of_a_shared_weight_lose_the_same_columns() -> None:
    n = Net(x=["N", 4, 6])
    table, back = n.weight(6, 8), n.weight(8, 6)
    h = n.op("MatMul", n.op("Tanh", n.op("MatMul", "x", table)), back)
    n.op("MatMul", n.op("Tanh", n.op("MatMul", h, table)), n.weight(8, 3))
    model = n.model()
    _, small, _ = check(model, image(2, 4, 6))
    first, _, third, _ = sizes(small, "MatMul")
    assert first[0] == 6 and first[1] == third[1] < 8


def test_only_what_tells_a_size_is_run(monkeypatch: pytest.MonkeyPatch) -> None:
    n = Net(x=["N", 3, 6, 6])
    shape = n.op("Shape", "x")
    target = n.op("Where", n.op("Greater", shape, n.ints(0)), shape, shape)
    a = n.op("Concat", "x", n.op("Expand", n.weight(1, 3, 1, 1), target), axis=1)
    model = n.head(n.conv(n.conv(a, 6, 8), 8, 8), 8)
    ran: list[int] = []

    class Counting(prune_sizes.Session):
        def __init__(self, part: ir.Model, **options: Any) -> None:
            ran.append(sum(1 for _ in part.nodes()))
            super().__init__(part, **options)

    monkeypatch.setattr(prune_sizes, "Session", Counting)
    found = groups(model, image(2, 3, 6, 6))
    assert ran and max(ran) <= 5
    assert len(found.units) == 16


PINS = {
    "graph output": lambda n, a: n.op("Relu", a),
    "Softmax": lambda n, a: n.op("Softmax", a, axis=1),
    "ReduceSum": lambda n, a: n.op("ReduceSum", a, n.ints(1)),
    "statistics of LRN": lambda n, a: n.op("LRN", a, size=3),
    "statistics of Mean": lambda n, a: n.op("MeanVarianceNormalization", a, axes=[-3, -2, -1]),
    "summed by Einsum": lambda n, a: n.op("Einsum", a, equation="bchw->bhw"),
    "by Einsum": lambda n, a: n.op("Einsum", a, n.weight(6), a, equation="bchw,c,bchw->bhw"),
    "Trilu": lambda n, a: n.op("Trilu", n.op("Transpose", a, perm=[0, 2, 3, 1])),
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


def test_sizes_that_the_model_puts_out_stay() -> None:
    n = Net(x=["N", 3, 6, 6])
    a, b = n.conv("x", 3, 6), n.conv("x", 3, 6)
    channels, batch = n.op("Shape", a, start=1), n.op("Shape", b, end=1)
    model = n.head(n.op("Concat", a, n.conv(b, 6, 6), axis=1), 12)
    model.graph.outputs += [model.tensors()[t] for t in (channels, batch)]
    found, small, _ = check(model, image(2, 3, 6, 6), 1.0)
    assert {r.pinned for r in found.describe()} >= {"size put out by Shape 'Shape_2'"}
    assert [s[0] for s in sizes(small, "Conv")] == [6, 1, 1]


def test_excluded_nodes_keep_their_sizes() -> None:
    model = residual()
    found = groups(model, image(2, 3, 8, 8), keep=lambda node: node.name == "Conv_5")
    assert not any(node == "Conv_5" for f in found.families for node, _, _ in f.members)
    assert {r.pinned for r in found.describe()} >= {"'Conv_5' is excluded"}


def test_channels_that_no_axis_can_spare_are_pinned() -> None:
    """Each is a position of every axis that two ways of repeating it are added on."""
    n = Net(x=["N", 3, 8, 8])
    a = n.op("Relu", n.conv("x", 3, 4))
    twice = n.op("Reshape", n.op("Tile", n.op("Unsqueeze", a, n.ints(2)), n.ints(1, 1, 2, 1, 1)), n.ints(0, 8, 8, 8))
    model = n.head(n.conv(n.op("Add", n.op("Tile", a, n.ints(1, 2, 1, 1)), twice), 8, 6), 6)
    rows = groups(model, image(2, 3, 8, 8)).describe()
    (row,) = [r for r in rows if ("Conv_0", 0) in r.members]
    assert row.channels == 4 and row.pinned == "without it nothing is left of 't0_0'"
    rows = groups(residual(), image(2, 3, 8, 8), min_channels=6).describe()
    assert "without it fewer than 6 channels are left of 't3_0'" in {r.pinned for r in rows}


def test_what_pins_a_part_of_a_channel_is_told_before_what_needs_another_part() -> None:
    n = Net(x=["N", 3, 8, 8])
    pairs = n.op("Softmax", n.op("Reshape", n.conv("x", 3, 8), n.ints(0, 2, 4, -1)), axis=2)
    model = n.head(n.conv(n.op("Reshape", pairs, n.ints(0, 8, 8, 8)), 8, 6), 6)
    rows = groups(model, image(2, 3, 8, 8), min_channels=2).describe()
    (row,) = [r for r in rows if r.members == (("Conv_0", 0),)]
    assert row.channels == 8 and row.pinned == "Softmax 'Softmax_2' runs over it"


ONE_POSITION: dict[str, Any] = {  # of an axis of 8
    "slice": lambda n, a: n.op("Slice", a, n.ints(3), n.ints(4), n.ints(1)),
    "backward slice": lambda n, a: n.op("Slice", a, n.ints(3), n.ints(2), n.ints(1), n.ints(-1)),
    "scalar": lambda n, a: n.op("Unsqueeze", n.op("Gather", a, n.array(3), axis=1), n.ints(1)),
    "vector": lambda n, a: n.op("Gather", a, n.ints(-5), axis=1),
    "column": lambda n, a: n.op("Reshape", n.op("Gather", a, n.array([[3]]), axis=1), n.ints(0, 1, 6, 6)),
}


@pytest.mark.parametrize("way", ONE_POSITION)
def test_one_position_is_taken_and_the_others_may_go(way: str) -> None:
    n = Net(x=["N", 3, 6, 6])
    a = n.conv("x", 3, 8)
    model = n.head(n.op("Mul", n.conv(a, 8, 6), ONE_POSITION[way](n, a)), 6)
    found, small, _ = check(model, image(2, 3, 6, 6), 1.0)
    assert sizes(small, "Conv")[0][0] == 1
    assert [r.channels for r in found.describe() if r.pinned and r.members == (("Conv_0", 0),)] == [1]


def computed_pads(n: Net, *channels: str) -> str:
    """Amounts as PyTorch writes them, the last axis first: space to a multiple of 4, then those of the channels."""
    width = n.op("Slice", n.op("Shape", "x"), n.ints(3), n.ints(4))
    more = n.op("Mod", n.op("Sub", n.ints(4), n.op("Mod", width, n.ints(4))), n.ints(4))
    pairs = n.op("Concat", n.ints(0), more, n.ints(0), more, *channels, n.ints(0, 0), axis=0)
    first = n.op(
        "Slice", n.op("Reshape", pairs, n.ints(-1, 2)), n.ints(-1), n.ints(-(2**63) + 1), n.ints(0), n.ints(-1)
    )
    return n.op("Cast", n.op("Reshape", n.op("Transpose", first, perm=[1, 0]), n.ints(-1)), to=7)


def test_channels_pass_where_computed_amounts_pad_space() -> None:
    n = Net(x=["N", 3, "H", "W"])
    model = n.head(n.conv(n.op("Pad", n.conv("x", 3, 8), computed_pads(n, n.ints(0), n.ints(0))), 8, 6), 6)
    found, small, gone = check(model, image(2, 3, 6, 6))
    assert len(found.units) == 14
    for size in (5, 8, 11):
        feed = image(1, 3, size, size)
        again = twin(model, groups(model, feed), gone)
        assert distance(run(again, feed), run(ir.to_proto(small), feed)) < 1e-4


@pytest.mark.parametrize("amount", ["one", "nothing so far"])
def test_channels_stay_that_computed_amounts_may_pad(amount: str) -> None:
    n = Net(x=["N", 3, "H", "W"])
    a = n.conv("x", 3, 8)
    if amount == "one":
        pads = computed_pads(n, n.ints(1), n.ints(0))
    else:  # zero at the sizes that are looked at
        channels = n.op("Sub", n.op("Slice", n.op("Shape", "x"), n.ints(3), n.ints(4)), n.ints(2**20))
        channels = n.op("Max", channels, n.ints(0))
        pads = computed_pads(n, channels, channels)
    wide = n.op("Pad", a, pads)
    rows = groups(n.head(n.op("Relu", wide), 9 if amount == "one" else 8), image(2, 3, 6, 6)).describe()
    (row,) = [r for r in rows if ("Conv_0", 0) in r.members]
    assert row.channels == 8 and (row.pinned or "").startswith("amounts of Pad")


def test_a_table_that_is_padded_to_a_computed_length_keeps_its_labels() -> None:
    n = Net(x=["N", 3, "W"])
    length = n.op("Slice", n.op("Shape", "x"), n.ints(2), n.ints(3))
    more = n.op("Sub", length, n.ints(4))
    table = n.op("Pad", n.weight(1, 8, 4), n.op("Concat", n.ints(0, 0, 0, 0, 0), more, axis=0))
    a = n.op("Conv", "x", n.weight(8, 3, 1), n.weight(8))
    model = n.head(n.op("Conv", n.op("Add", a, table), n.weight(6, 8, 1)), 6)
    found, _, _ = check(model, {"x": np.random.default_rng(0).standard_normal((2, 3, 7)).astype(np.float32)})
    assert len(found.units) == 14


PASSED: dict[str, Any] = {  # windows of one position along the hidden axis of [N, 1, 12, 24]
    "Conv": lambda n, a: n.op("Conv", a, n.weight(4, 1, 3, 1), n.weight(4), pads=[1, 0, 1, 0], dilations=[1, 7]),
    "same": lambda n, a: n.op("Conv", a, n.weight(4, 1, 3, 1), auto_pad="SAME_UPPER"),
    "groups": lambda n, a: n.op("Conv", PASSED["Conv"](n, a), n.weight(6, 2, 2, 1), group=2, strides=[2, 1]),
    "depthwise": lambda n, a: n.op("Conv", PASSED["Conv"](n, a), n.weight(4, 1, 1, 1), group=4, auto_pad="VALID"),
    "ConvTranspose": lambda n, a: n.op(
        "ConvTranspose", a, n.weight(1, 3, 2, 1), n.weight(3), strides=[2, 1], output_padding=[1, 0]
    ),
    "AveragePool": lambda n, a: n.op("AveragePool", a, kernel_shape=[2, 1], strides=[2, 1]),
    "MaxPool": lambda n, a: n.op("MaxPool", a, kernel_shape=[3, 1], pads=[1, 0, 1, 0]),
    "LpPool": lambda n, a: n.op("LpPool", a, kernel_shape=[2, 1]),
}
STOPPED: dict[str, Any] = {
    "kernel": lambda n, a: n.op("Conv", a, n.weight(4, 1, 1, 2)),
    "stride": lambda n, a: n.op("Conv", a, n.weight(4, 1, 1, 1), strides=[1, 2]),
    "stride of a pool": lambda n, a: n.op("MaxPool", a, kernel_shape=[2, 1], strides=[1, 2]),
    "border": lambda n, a: n.op("Conv", a, n.weight(4, 1, 1, 1), pads=[0, 0, 0, 1]),
    "border of a pool": lambda n, a: n.op("AveragePool", a, kernel_shape=[1, 2], pads=[0, 1, 0, 1]),
    "output_padding": lambda n, a: n.op(
        "ConvTranspose", a, n.weight(1, 3, 1, 1), strides=[1, 2], output_padding=[0, 1]
    ),
    "output_shape": lambda n, a: n.op("ConvTranspose", a, n.weight(1, 3, 1, 1), output_shape=[12, 24]),
    "everything": lambda n, a: n.op("GlobalMaxPool", a),
}


def windowed(window: Any, size: int = 24) -> ir.Model:
    """A window over the hidden units of a perceptron, which stand where space does."""
    n = Net(x=["N", 12, 8])
    a = n.op("Unsqueeze", n.op("Relu", n.linear("x", 8, 24)), n.ints(1))
    n.linear(n.op("Relu", window(n, a)), size, 5)
    return n.model()


@pytest.mark.parametrize("ratio", [0.3, 1.0])
@pytest.mark.parametrize("name", PASSED)
def test_what_a_window_passes_position_by_position_may_go(name: str, ratio: float) -> None:
    found, small, _ = check(windowed(PASSED[name]), image(2, 12, 8), ratio)
    assert any(("MatMul_0", 1, 1) in f.members and len(f.units) == 24 for f in found.families)
    first, last = sizes(small, "MatMul")
    assert first[1] == last[0] < 24


@pytest.mark.parametrize("name", STOPPED)
def test_what_a_window_mixes_or_moves_stays(name: str) -> None:
    size = {"stride": 12, "stride of a pool": 12, "border": 25, "border of a pool": 25, "kernel": 23, "everything": 1}
    size |= {"output_padding": 48}
    rows = groups(windowed(STOPPED[name], size.get(name, 24)), image(2, 12, 8)).describe()
    assert [(r.pinned or "")[:8] for r in rows if r.members[0] == ("MatMul_0", 1)] == ["space of"]


def test_macs_of_a_convolution_follow_the_positions_that_it_passes() -> None:
    model = windowed(PASSED["Conv"])
    found = groups(model, image(1, 12, 8))
    before = ir.cost.of(model).macs
    _, small, _ = check(model, image(1, 12, 8), 0.5, found=found)
    shares = found.ledger.gone_shares()
    assert shares[1] == pytest.approx(1 - ir.cost.of(small).macs / before)


def mixing(convolved: bool) -> ir.Model:
    """A perceptron with its tokens mixed between its layers, by a convolution or by what is the same."""
    n = Net(x=[2, 16, 8])
    a = n.op("Relu", n.linear(n.op("Relu", n.linear("x", 8, 24)), 24, 24))  # what is mixed has errors of its own
    w, b = n.weight(16, 16, 1), n.weight(16)
    if convolved:
        mixed = n.op("Conv", a, w, b)
    else:
        n.weights[w] = n.weights[w][:, :, 0].T
        product = n.op("Add", n.op("MatMul", n.op("Transpose", a, perm=[0, 2, 1]), w), b)
        mixed = n.op("Transpose", product, perm=[0, 2, 1])
    n.linear(n.op("Relu", mixed), 24, 5)
    return n.model()


@pytest.mark.parametrize("options", [{}, {"criterion": "activation"}, {"scope": "local"}])
def test_a_convolution_whose_space_loses_positions_is_fitted_as_a_product_is(options: dict[str, Any]) -> None:
    data = [{"x": np.random.default_rng(k).standard_normal((2, 16, 8)).astype(np.float32)} for k in range(12)]
    outputs, weights = [], []
    for convolved in (True, False):
        model = mixing(convolved)
        ctx, prune, small = context(model, data), Prune(ratio=0.5, round_to=1, **options), model.copy()
        assert prune.apply(small, prune.plan(model, ctx), 1.0, ctx).changed
        ir.order.sort(small)
        assert ir.cost.of(small).macs < 0.6 * ir.cost.of(model).macs
        outputs.append(run(ir.to_proto(small), data[-1]))
        weights += [t.values.squeeze() for t in small.constants().values() if t.shape[:2] == (16, 16)]
    assert distance(*outputs) < 1e-5
    np.testing.assert_allclose(weights[0], weights[1].T, atol=1e-6)
    assert not np.array_equal(weights[0], mixing(True).tensors()["w4"].values.squeeze())


def test_describe_says_what_is_tied_and_what_it_carries() -> None:
    rows = groups(residual(), image(2, 3, 8, 8)).describe()
    stream = next(r for r in rows if r.channels == 8)
    assert ("Gemm_9", 1) in stream.members or any(node.startswith("Gemm") for node, _ in stream.members)
    assert stream.params > 0 and stream.macs > 0 and stream.pinned is None
    assert rows[-1].pinned is not None and rows[-1].pinned.startswith("graph output")


@pytest.mark.parametrize(
    "name",
    ["quantized", "integers", "attention_4d_grouped", "group_normed", "lstm_both", "tied", "rotated", "layer_normed"]
    + ["attention_3d", "attention_3d_grouped"],
)
def test_the_pass_scores_cuts_and_refits_what_has_labels(name: str) -> None:
    make, shape = {**NETS, **{k: v[:2] for k, v in NORMED.items()}}[name]
    model, rng = make(), np.random.default_rng(0)
    data = [{"x": rng.standard_normal(shape).astype(np.float32)} for _ in range(12)]
    ctx, prune = context(model, data), Prune(ratio=0.4, round_to=1, norms="allow")
    small = model.copy()
    result = prune.apply(small, prune.plan(model, ctx), 1.0, ctx)
    ir.order.sort(small)
    assert result.changed and ir.cost.of(small).params < ir.cost.of(model).params
    before, after = (run(ir.to_proto(m), data[-1]) for m in (model, small))
    assert 0 < distance(before, after) < 2


READERS: dict[str, Any] = {  # what reads 8 channels of an image, and which axis of its weight counts them
    "Conv": lambda n, a: (n.op("Conv", a, n.weight(5, 8, 1, 1)), 1),
    "ConvTranspose": lambda n, a: (n.op("ConvTranspose", a, n.weight(8, 5, 1, 1)), 0),
    "MatMul": lambda n, a: (n.op("MatMul", n.op("Transpose", a, perm=[0, 2, 3, 1]), n.weight(8, 5)), 0),
    "left MatMul": lambda n, a: (n.op("MatMul", n.weight(5, 8), n.op("Reshape", a, n.ints(0, 8, -1))), 1),
    "Einsum": lambda n, a: (n.op("Einsum", n.weight(5, 8), a, equation="oc,nchw->nohw"), 1),
    "LSTM": lambda n, a: (
        n.op("LSTM", n.op("Reshape", n.op("Transpose", a, perm=[2, 0, 3, 1]), n.ints(4, -1, 8)), n.weight(1, 20, 8),
             n.weight(1, 20, 5), hidden_size=5),
        2,
    ),
}  # fmt: skip


@pytest.mark.parametrize("reader", READERS)
def test_channels_that_meet_zeros_are_dead(reader: str) -> None:
    n = Net(x=["N", 3, 4, 4])
    a = n.op("Relu", n.conv("x", 3, 8))
    _, axis = READERS[reader](n, a)
    weight = next(w for node in n.nodes if node.op_type == reader.split()[-1] for w in node.input[:2] if w in n.weights)
    if reader == "Conv":
        weight = n.nodes[-1].input[1]
    values = np.moveaxis(n.weights[weight].copy(), axis, 0)
    values[[2, 5]] = 0
    n.weights[weight] = np.moveaxis(values, 0, axis)
    model = n.model()
    found = groups(model, image(2, 3, 4, 4))
    gone = dead.order(model, found)[0].units
    assert len(gone) == 2
    small = model.copy()
    cut(small, found.flow, np.array(gone))
    assert [t.shape[0] for t in small.constants().values() if "w0" in t.name] == [6]
    assert distance(run(ir.to_proto(model), image(2, 3, 4, 4)), run(ir.to_proto(small), image(2, 3, 4, 4))) < 1e-6
