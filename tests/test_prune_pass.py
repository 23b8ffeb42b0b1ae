"""The pass: what it promises about amounts, strengths, refusals and recovery, on models that ship with the project."""

from __future__ import annotations

import re
from functools import cache
from pathlib import Path
from typing import Any

import numpy as np
import onnx_graphsurgeon as gs
import pytest
from onnx import helper
from onnxslim_opt.ir.errors import OptionError
from onnxslim_opt.model_zoo import tasks
from onnxslim_opt.passes.base import Context
from onnxslim_opt.passes.optimize import optimize
from onnxslim_opt.passes.prune import Prune, groups, synthetic
from onnxslim_opt.passes.simplify import Simplify
from onnxslim_opt.passes.target import Target
from onnxslim_opt.runtime import feeds
from onnxslim_opt.runtime.session import Session
from prune_nets import Net
from prune_twin import build, distance, run

from onnxslim_opt import ir

ZOO = Path(__file__).resolve().parents[1] / "model_zoo"


@cache
def simplified(name: str) -> ir.Model:
    model = ir.load(ZOO / f"{name}.onnx")
    Simplify().run(model, context(model, "random"))
    return finish(model)


def load(name: str) -> ir.Model:
    return simplified(name).copy()


def context(model: ir.Model, data: Any = None, **more: Any) -> Context:
    found = feeds.resolve(data, model)
    fit, check = found.split()
    return Context(Target(), fit, check, found.source, model, None, **more)  # type: ignore[arg-type]


@cache
def digits() -> list[dict[str, np.ndarray]]:
    return list(tasks.digits_data())


def accuracy(model: ir.Model) -> float:
    return tasks.digits_metric(Session(model).run)


def finish(model: ir.Model) -> ir.Model:
    ir.order.sort(model)
    ir.shapes.refresh(model)
    ir.verify.check(model)
    return model


def prune(name: str, source: Any = None, **options: Any) -> tuple[ir.Model, ir.Model]:
    model = load(name)
    ctx = context(model, digits() if source is None else source)
    small = model.copy()
    Prune(**options).run(small, ctx)
    return model, finish(small)


@pytest.mark.parametrize("name", ["digits_resnet", "digits_mobilenet", "digits_vit"])
def test_a_quarter_of_the_macs_goes_and_accuracy_stays(name: str) -> None:
    model, small = prune(name, macs=0.25, round_to=1)
    assert ir.cost.of(small).macs <= 0.76 * ir.cost.of(model).macs
    assert accuracy(small) >= accuracy(model) - 0.03


def test_the_refit_recovers_what_the_cut_broke() -> None:
    _, raw = prune("digits_resnet", macs=0.5, round_to=1, refit=False)
    model, fitted = prune("digits_resnet", macs=0.5, round_to=1)
    assert accuracy(fitted) > accuracy(raw) + 0.05
    assert accuracy(fitted) >= accuracy(model) - 0.1


def test_strength_takes_more_and_more_of_one_plan() -> None:
    model = load("digits_resnet")
    ctx, wanted = context(model, digits()), Prune(macs=0.4)
    plan, costs = wanted.plan(model, ctx), []
    before = ir.to_bytes(model)
    for strength in (0.1, 0.4, 0.7, 1.0):
        small = model.copy()
        wanted.apply(small, plan, strength, ctx)
        costs.append(ir.cost.of(finish(small)).macs)
    assert ir.to_bytes(model) == before, "planning and applying to copies edits the model"
    assert costs == sorted(costs, reverse=True) and costs[-1] <= 0.6 * ir.cost.of(model).macs


@pytest.mark.parametrize("counts", ["macs", "params"])
def test_an_amount_counts_what_is_pinned_and_is_told_where_it_cannot_be_met(counts: str) -> None:
    """Half of the model is excluded: the other half has to make up for it, as far as it can."""
    n = Net(x=[1, 8, 6, 6])
    x = n.op("Relu", n.conv(n.op("Relu", n.conv("x", 8, 16)), 16, 8))
    model = n.head(n.op("Relu", n.conv(n.op("Relu", n.conv(x, 8, 16)), 16, 8)), 8)
    before = getattr(ir.cost.of(model), counts)
    for wanted, met in ((0.25, True), (0.9, False)):
        ctx, small, said = context(model, exclude=re.compile("Conv_[02]$")), model.copy(), []
        ctx.on_note = said.append
        Prune(**{counts: wanted}, criterion="l1", round_to=1).run(small, ctx)
        gone = 1 - getattr(ir.cost.of(finish(small)), counts) / before
        told = [s for s in said if "all that may go" in s]
        assert (gone >= wanted) == met and len(told) == (not met)
        assert all(f"only {gone:.1%} of the" in s and "(asked for 90.0%)" in s for s in told)


@pytest.mark.parametrize(
    ("options", "says"),
    [
        ({"ratio": 0.5, "min_channels": 100}, "nothing may go (asked for 50.0%): min_channels=100 keeps every channel"),
        ({"ratio": 0.5, "shares": ".=0.25"}, "(asked for 50.0%): shares decides for every group"),
        (
            {"ratio": 0.9, "min_channels": 6},
            "only 50.0% of the channels (asked for 90.0%): the few that every layer keeps (min_channels=6)",
        ),
        ({"ratio": 0.7, "round_to": 6}, "only 50.0% of the channels (asked for 70.0%): channel counts are kept round"),
        (
            {"ratio": 0.1, "shares": ("conv_a=0.9",), "min_channels": 6},
            "of the 12 channels that conv_a makes only 6 may go (asked for 11)",
        ),
        ({"ratio": 0.5}, ""),
        ({"ratio": 0.1, "shares": ("conv_a=0.5",)}, ""),
    ],
)
def test_what_cannot_be_had_is_told_with_the_reason(options: dict[str, Any], says: str) -> None:
    n = Net(x=[1, 3, 6, 6])
    model = n.head(n.op("Relu", n.conv("x", 3, 12)), 12)
    next(x for x in model.graph.nodes if x.op == "Conv").name = "conv_a"
    ctx, said = context(model), []
    ctx.on_note = said.append
    Prune(**{"round_to": 1, "criterion": "l1", "scope": "local", **options}).run(model.copy(), ctx)
    told = [s for s in said if "asked for" in s]
    assert [says in s for s in told] == [True] * bool(says)


def test_where_nothing_may_go_the_commonest_reasons_are_told() -> None:
    """Global response normalization: its statistics are a reduction that norms=allow frees."""
    n = Net(x=["N", 5, 5, 6])
    h = "x"
    for _ in range(2):
        up = n.op("Relu", n.linear(h, 6, 24))
        felt = n.op("ReduceL2", up, axes=[1, 2])
        share = n.op("Div", felt, n.op("Add", n.op("ReduceMean", felt, axes=[-1]), n.weight()))
        h = n.op("Add", "x", n.linear(n.op("Mul", up, share), 24, 6))
    model = n.model()
    feed = [{"x": x} for x in np.random.default_rng(0).standard_normal((8, 2, 5, 5, 6)).astype(np.float32)]
    (skip,) = Prune(ratio=0.3).run(model.copy(), context(model, feed)).skipped
    assert skip.reason.startswith(
        "nothing that may go was found (48 of 60 channels: statistics of ReduceMean '…' run over it; 12 of 60 channels"
    )
    assert "inspect --groups lists all reasons, norms=allow" in skip.reason
    assert Prune(ratio=0.3, norms="allow").run(model.copy(), context(model, feed)).changed


def test_where_everything_lies_in_branches_that_is_the_reason() -> None:
    branch = "b () => (float[2,4] {}) <float[6,4] {} = {{{}}}> {{ {} = MatMul(x, {}) }}"
    then, other = (branch.format(y, w, ", ".join(["1.0"] * 24), y, w) for y, w in (("p", "w"), ("q", "v")))
    text = f"g (float[2,6] x, bool c) => (float[2,4] y) {{ y = If(c) <then_branch = {then}, else_branch = {other}> }}"
    model = ir.text.parse(text)
    data = [{"x": np.ones((2, 6), np.float32), "c": np.array(True)} for _ in range(4)]
    *layers, why = Prune(ratio=0.3).run(model.copy(), context(model, data)).skipped
    assert [s.reason for s in layers] == ["it stands in a branch or the body of a loop"] * 2
    assert "found (2 layers: it stands in a branch or the body of a loop; inspect" in why.reason


def test_an_amount_that_ruins_the_model_and_is_not_met_is_not_called_as_asked() -> None:
    done = optimize(load("digits_resnet"), "prune:ratio=0.95:min_channels=4:refit=false", data=digits()[:8])
    notes = done.report.notes
    assert any("asked for 95.0%" in s for s in notes) and any("far from the original" in s for s in notes)
    assert not any("as asked" in s for s in notes)


def test_the_refit_leaves_excluded_layers_and_biases_alone() -> None:
    rng = np.random.default_rng(0)
    w = {n: rng.standard_normal((12, 12)).astype(np.float32) for n in "pqrs"}
    w["c"] = rng.standard_normal(12).astype(np.float32)
    nodes = [
        helper.make_node("MatMul", ["x", "p"], ["a"], name="first"),
        helper.make_node("Relu", ["a"], ["b"]),
        helper.make_node("MatMul", ["b", "q"], ["d"], name="second"),
        helper.make_node("Relu", ["d"], ["e"]),
        helper.make_node("MatMul", ["e", "r"], ["f"], name="third"),
        helper.make_node("Add", ["f", "c"], ["g"], name="bias"),
        helper.make_node("MatMul", ["g", "s"], ["out"], name="last"),
    ]
    model = build(nodes, {"x": [1, 12]}, w)
    data = [{"x": rng.standard_normal((1, 12)).astype(np.float32)} for _ in range(40)]
    small = model.copy()
    pattern = re.compile("bias|last")
    done = Prune(ratio=0.3, round_to=1).run(small, context(model, data, exclude=pattern))
    at = {n.name: n for n in finish(small).graph.nodes}
    assert done.did["channels removed"] and done.did["layers refitted"] == 2
    assert np.array_equal(at["bias"].inputs[1].values, w["c"]) and np.array_equal(at["last"].inputs[1].values, w["s"])


def test_two_runs_give_the_same_bytes() -> None:
    first, second = (prune("digits_resnet", ratio=0.3)[1] for _ in range(2))
    assert ir.to_bytes(first) == ir.to_bytes(second)


@pytest.mark.parametrize(
    ("criterion", "scope"),
    [
        *((c, "global") for c in ("obs", "l1", "l2", "fpgm", "activation", "random")),
        *((c, s) for c in ("obs", "l1") for s in ("local", "isomorphic")),
    ],
)
def test_every_criterion_removes_the_share_that_was_asked_for(criterion: str, scope: str) -> None:
    model = load("digits_resnet")
    small = model.copy()
    wanted = Prune(ratio=0.3, criterion=criterion, scope=scope, round_to=1, refit=False)
    did = wanted.run(small, context(model, digits())).did
    assert did["channels removed"] == round(0.3 * int(did["of"]))


def test_counts_are_multiples_and_layers_keep_their_minimum() -> None:
    _, small = prune("digits_resnet", ratio=0.6, round_to=4)
    widths = [n.inputs[1].shape[0] for n in small.nodes() if n.op == "Conv"]
    assert all(w % 4 == 0 for w in widths), widths
    _, small = prune("digits_resnet", ratio=0.9, round_to=1, min_channels=5)
    assert min(n.inputs[1].shape[0] for n in small.nodes() if n.op == "Conv") >= 5


def test_excluded_nodes_are_left_alone() -> None:
    model = load("digits_resnet")
    names = [n.name for n in model.nodes() if n.op == "Conv"]
    ctx = context(model, digits(), exclude=re.compile(f"^{re.escape(names[1])}$"))
    small = model.copy()
    result = Prune(ratio=0.5, round_to=1).run(small, ctx)
    shapes = {n.name: tuple(n.inputs[1].shape) for n in small.nodes() if n.op == "Conv"}
    before = {n.name: tuple(n.inputs[1].shape) for n in model.nodes() if n.op == "Conv"}
    assert shapes[names[1]] == before[names[1]] and shapes != before
    assert any(s.node == names[1] and s.reason == "excluded" for s in result.skipped)


def test_without_data_nothing_goes_unless_it_is_dead() -> None:
    said: list[str] = []
    model = load("digits_resnet")
    small = model.copy()
    result = Prune().run(small, context(model, "random", on_note=said.append))
    assert not result.changed and any("no real data" in s for s in said)
    assert any("no real data" in s.reason for s in result.skipped)


def test_without_data_an_explicit_amount_goes_by_magnitude_and_says_so() -> None:
    said: list[str] = []
    model = load("digits_resnet")
    small = model.copy()
    result = Prune(ratio=0.2).run(small, context(model, "random", on_note=said.append))
    assert result.changed and result.did["layers refitted"] > 0 and any("damage" in s for s in said)
    finish(small)


def test_a_fit_on_made_up_noise_is_better_than_none() -> None:
    model = load("digits_resnet")
    ctx = context(model, "random")
    wanted = Session(model)

    def apart(**options: Any) -> float:
        small = model.copy()
        Prune(macs=0.3, round_to=1, **options).run(small, ctx)
        session = Session(small)
        pairs = [(next(iter(s.run(f).values())) for s in (wanted, session)) for f in list(digits())[:8]]
        return float(np.mean([np.square(a - b).mean() for a, b in pairs]))

    assert apart() < 0.7 * apart(refit=False)


def test_made_up_noise_falls_with_frequency_and_keeps_mean_and_spread() -> None:
    like = np.random.default_rng(0).standard_normal((1000, 2, 16, 16)).astype(np.float32) * 2 + 1
    found = synthetic.noise(like.shape, like, np.random.default_rng(1))
    assert found.dtype == np.float32 and found.mean() == pytest.approx(like.mean(), abs=1e-3)
    assert found.std() == pytest.approx(like.std(), rel=1e-3)
    power = np.square(np.abs(np.fft.fft2(found))).mean((0, 1))
    assert power[0, 2] / power[0, 4] == pytest.approx(4, rel=0.15)  # amplitudes with 1/f, powers with 1/f²
    assert np.corrcoef(found[:, 0].ravel(), found[:, 1].ravel())[0, 1] == pytest.approx(0.81, abs=0.05)


def test_lossless_takes_channels_that_nobody_reads_and_nothing_else() -> None:
    rng = np.random.default_rng(0)
    w = {k: rng.standard_normal(s).astype(np.float32) for k, s in {"a": (8, 3, 3, 3), "b": (6, 8, 3, 3)}.items()}
    w["b"][:, [1, 4, 5]] = 0
    nodes = [
        helper.make_node("Conv", ["x", "a"], ["y"], name="first"),
        helper.make_node("Relu", ["y"], ["z"]),
        helper.make_node("Conv", ["z", "b"], ["out"], name="second"),
    ]
    model = build(nodes, {"x": [1, 3, 8, 8]}, w)
    small = model.copy()
    assert Prune(lossless=True).run(small, context(model, "random")).changed
    x = {"x": rng.standard_normal((1, 3, 8, 8)).astype(np.float32)}
    assert distance(run(ir.to_proto(model), x), run(ir.to_proto(finish(small)), x)) < 1e-6
    assert [tuple(n.inputs[1].shape[:2]) for n in small.nodes() if n.op == "Conv"] == [(5, 3), (6, 5)]


IDLE: list[dict[str, Any]] = [{"criterion": "l1"}, {"scope": "local"}, {"norms": "allow"}, {"round_to": 8}]
IDLE += [{"shares": ("conv=0.5",)}, {"params": 0.2}]


@pytest.mark.parametrize("options", IDLE)
def test_lossless_refuses_options_that_say_what_to_remove_of_what_lives(options: dict[str, Any]) -> None:
    with pytest.raises(
        OptionError, match=f"lossless removes what is dead and nothing else; leave out {next(iter(options))}"
    ):
        Prune(lossless=True, **options)


@pytest.mark.parametrize("options", [{"ratio": 0.3, "macs": 0.3}, {"lossless": True, "params": 0.2}])
def test_contradicting_amounts_are_refused(options: dict[str, Any]) -> None:
    with pytest.raises(OptionError, match="prune"):
        Prune(**options)


def repeated(own: bool) -> ir.Model:
    """Two residual blocks of one matrix each way, with biases of their own or shared like the matrices."""
    n = Net(x=[4, 5, 12])
    into, shift, back, y = n.weight(12, 24), n.weight(24), n.weight(24, 12), "x"
    outer = [n.weight(12)] * 2 if not own else [n.weight(12), n.weight(12)]
    for bias in outer:
        hidden = n.op("Relu", n.op("Add", n.op("MatMul", y, into), shift))
        z = n.op("MatMul", hidden, back)
        y = n.op("Tanh", n.op("Add", y, n.op("Add", z, bias)))
    n.linear(y, 12, 5)
    return n.model()


@pytest.mark.parametrize("own", [False, True])
def test_weights_that_several_nodes_read_stay_one_constant(own: bool) -> None:
    """Fitted, each would be a copy of its own; only biases that are no others' follow what the layer lost."""
    model, rng = repeated(own), np.random.default_rng(0)
    small, ctx = (
        model.copy(),
        context(model, [{"x": rng.standard_normal((4, 5, 12)).astype(np.float32)} for _ in range(16)]),
    )
    result = Prune(ratio=0.3, round_to=1).run(small, ctx)
    finish(small)
    products = [n for n in small.graph.nodes if n.op == "MatMul"]
    assert products[0].inputs[1] is products[2].inputs[1] and products[1].inputs[1] is products[3].inputs[1]
    assert ir.cost.of(small).params < ir.cost.of(model).params
    reasons = {s.node: s.reason for s in result.skipped if "refitted" in s.reason}
    assert {products[k].name for k in (1, 3)} <= set(reasons)
    assert set(reasons.values()) == {"not refitted: the weight is shared by several nodes"}
    adds = {n.inputs[1].name: n for n in small.graph.nodes if n.op == "Add" and isinstance(n.inputs[1], gs.Constant)}
    before = {
        n.name: n.inputs[1].values for n in model.graph.nodes if n.op == "Add" and isinstance(n.inputs[1], gs.Constant)
    }
    moved = [
        a.name
        for a in adds.values()
        if a.inputs[1].shape == (12,) and not np.array_equal(a.inputs[1].values, before[a.name])
    ]
    assert len(moved) == (2 if own else 0)


def test_small_weights_that_several_nodes_read_are_fitted_one_by_one() -> None:
    """A gate of 72 parameters read twice, beside 13,000 others: its copy costs half a percent."""
    n, y = Net(x=[8, 5, 60]), "x"
    gate = n.weight(4, 18)
    for _ in range(2):
        hidden = n.op("Relu", n.linear(y, 60, 4))
        up = n.op("Relu", n.op("MatMul", hidden, gate))
        y = n.op("Add", y, n.linear(n.op("Relu", n.linear(up, 18, 75)), 75, 60))
    n.linear(y, 60, 5)
    model, rng = n.model(), np.random.default_rng(0)
    data = [{"x": rng.standard_normal((8, 5, 60)).astype(np.float32)} for _ in range(16)]
    ctx, small = context(model, data), model.copy()
    result = Prune(ratio=0.3, round_to=1).run(small, ctx)
    assert not [s for s in result.skipped if "refitted" in s.reason]
    gates = [x.inputs[1] for x in finish(small).graph.nodes if x.op == "MatMul"][1::4]
    assert gates[0] is not gates[1] and gates[0].shape == gates[1].shape
    assert ir.cost.of(small).params < ir.cost.of(model).params


def test_heads_neurons_and_head_dimensions_of_a_transformer_are_groups() -> None:
    rows = [r for r in groups(load("digits_vit")).describe() if r.pinned is None]
    assert {r.channels for r in rows} == {4, 16, 160}


def test_only_given_amounts_are_explicit() -> None:
    assert Prune(ratio=0.3).explicit and Prune(lossless=True).explicit and not Prune(round_to=8).explicit


@pytest.mark.parametrize("dtype", [np.float16, np.float64])
def test_layers_in_half_and_double_precision_are_pruned_with_data(dtype: Any) -> None:
    rng = np.random.default_rng(0)
    kind = "float16" if dtype is np.float16 else "double"
    takes = f"{kind}[2,7,6] x, {kind}[6,8] w, {kind}[8,4] v"
    model = ir.text.parse(f"g ({takes}) => ({kind}[2,7,4] y) {{ a = MatMul(x, w) b = Relu(a) y = MatMul(b, v) }}")
    weak = np.concatenate([np.ones(4), np.full(4, 0.01)])  # half of the units hardly count
    values = {"w": rng.standard_normal((6, 8)), "v": rng.standard_normal((8, 4)) * weak[:, None]}
    for node, name in zip((model.graph.nodes[0], model.graph.nodes[2]), values):
        ir.edit.set_input(node, 1, ir.edit.constant(model, name, values[name].astype(dtype)))
    del model.graph.inputs[1:]
    data = [{"x": rng.standard_normal((2, 7, 6)).astype(dtype)} for _ in range(16)]
    found = optimize(model, "prune:ratio=0.5:round_to=1", data=data)
    assert found.report.verdict == "ok"
    small = found.model.graph.nodes[0].inputs[1]
    assert np.array_equal(small.values, values["w"].astype(dtype)[:, :4])
