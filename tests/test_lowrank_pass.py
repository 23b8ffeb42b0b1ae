"""The pass as a whole: on networks built here, its options and refusals, replay from timings, and real models."""

from __future__ import annotations

import dataclasses
import importlib
import itertools
import pathlib
import re
import tempfile

import numpy as np
import onnx_graphsurgeon as gs
import onnxruntime as ort
import pytest
from onnxslim_opt.ir import edit
from onnxslim_opt.ir.errors import OptionError
from onnxslim_opt.passes.base import Context
from onnxslim_opt.passes.lowrank import LowRank, assemble, choose, planning
from onnxslim_opt.passes.lowrank.choose import Option
from onnxslim_opt.passes.lowrank.clock import Clock, alone
from onnxslim_opt.passes.lowrank.integers import quantized
from onnxslim_opt.passes.lowrank.layer import Stage, read
from onnxslim_opt.passes.lowrank.lowrank import FORMS
from onnxslim_opt.passes.lowrank.refit import Done, by_level
from onnxslim_opt.passes.target import Target
from onnxslim_opt.runtime import Reference, Session, Timings, latency, resolve
from onnxslim_opt.runtime.sources import DataOptions

from onnxslim_opt import ir

SHARED = pathlib.Path(__file__).resolve().parents[2] / "shared"
CHANNELS = 32


def decaying(rng, outputs, inputs, power=1.0):
    """A matrix whose singular values fall like 1 / k^power, as those of trained layers do."""
    u, _, v = np.linalg.svd(rng.standard_normal((outputs, inputs)), full_matrices=False)
    s = np.arange(1, len(v) + 1.0) ** -power
    return ((u * s) @ v * np.sqrt(outputs / (s**2).sum())).astype(np.float32)


def conv_net(depth=4, seed=0):
    """`depth` 3×3 convolutions with biases and ReLUs, pooling and a Gemm."""
    rng = np.random.default_rng(seed)
    x = gs.Variable("x", np.float32, ["n", CHANNELS, 12, 12])
    nodes, value = [], x
    for k in range(depth):
        weight = decaying(rng, CHANNELS, CHANNELS * 9).reshape(CHANNELS, CHANNELS, 3, 3)
        inputs = [value, gs.Constant(f"w{k}", weight), gs.Constant(f"b{k}", np.full(CHANNELS, 0.1, np.float32))]
        y, z = gs.Variable(f"y{k}", np.float32), gs.Variable(f"z{k}", np.float32)
        nodes += [
            gs.Node("Conv", f"conv{k}", {"pads": [1, 1, 1, 1]}, inputs, [y]),
            gs.Node("Relu", f"relu{k}", {}, [y], [z]),
        ]
        value = z
    pooled, flat, out = (gs.Variable(n, np.float32) for n in ("pooled", "flat", "out"))
    head = gs.Constant("head", decaying(rng, 24, CHANNELS))
    nodes += [
        gs.Node("GlobalAveragePool", "pool", {}, [value], [pooled]),
        gs.Node("Flatten", "flatten", {}, [pooled], [flat]),
        gs.Node("Gemm", "gemm", {"transB": 1}, [flat, head], [out]),
    ]
    return loaded(nodes, x, out)


def mlp(seed=0):
    """MatMul, Add, Relu three times over, wide enough for a split to show on the clock."""
    rng = np.random.default_rng(seed)
    x = gs.Variable("x", np.float32, ["n", 16, 256])
    nodes, value = [], x
    for k in range(3):
        y, s, z = (gs.Variable(f"{n}{k}", np.float32) for n in "ysz")
        weight, bias = decaying(rng, 256, 256), rng.standard_normal(256).astype(np.float32)
        nodes += [
            gs.Node("MatMul", f"matmul{k}", {}, [value, gs.Constant(f"w{k}", weight)], [y]),
            gs.Node("Add", f"add{k}", {}, [y, gs.Constant(f"b{k}", bias)], [s]),
            gs.Node("Relu", f"relu{k}", {}, [s], [z]),
        ]
        value = z
    return loaded(nodes, x, value)


def loaded(nodes, x, out):
    model = ir.from_proto(gs.export_onnx(gs.Graph(nodes, [x], [out], opset=17)))
    ir.shapes.refresh(model)
    return model


def context(model, feeds, source="data", **options):
    fit, check = feeds.split()
    return Context(Target.detect(), fit, check, source, model.copy(), Timings(), **options)


def random_feeds(model, shape, count=16):
    rng = np.random.default_rng(7)
    mixing = rng.standard_normal((shape[-1], shape[-1])) * 0.3
    rows = [{"x": (rng.standard_normal(shape) @ mixing).astype(np.float32)} for _ in range(count)]
    return resolve(rows, model, DataOptions())


def tidy(model):
    ir.order.sort(model)
    ir.shapes.refresh(model)
    ir.verify.check(model)
    return model


def sqnr(before, after, feeds):
    return min(o.sqnr_db for o in Reference(before, feeds).compare(after).outputs)


@pytest.fixture(scope="module")
def conv_case():
    model = conv_net()
    return model, random_feeds(model, (2, CHANNELS, 12, 12))


@pytest.fixture(scope="module")
def deep_case():
    model = conv_net(depth=10, seed=3)
    return model, random_feeds(model, (1, CHANNELS, 12, 12))


@pytest.mark.parametrize("forms", ["svd", "channel", "channel_in", "spatial", "spatial_t", "separable", "tucker2"])
def test_every_form_gives_a_valid_model(conv_case, forms):
    model, feeds = conv_case
    ctx = context(model, feeds)
    copy = model.copy()
    result = LowRank(rank=0.4, forms=(forms,), min_gain=-1).run(copy, ctx)
    tidy(copy)
    assert result.changed
    assert [t.name for t in copy.graph.outputs] == ["out"]
    assert ir.cost.of(copy).macs < ir.cost.of(model).macs
    assert np.isfinite(sqnr(model, copy, ctx.check))
    for row in result.details["layers"]:
        assert ("skipped" in row) != ("form" in row)
        assert row.get("macs_after", 0) < row.get("macs_before", 1)


def test_damage_and_savings_grow_with_strength(conv_case):
    model, feeds = conv_case
    ctx = context(model, feeds)
    p = LowRank(min_gain=-1)
    plan = p.plan(model, ctx)
    macs, errors = [], []
    for strength in (0.3, 0.6, 0.8, 1.0):
        copy = model.copy()
        p.apply(copy, plan, strength, ctx)
        macs.append(ir.cost.of(tidy(copy)).macs)
        errors.append(sqnr(model, copy, ctx.check))
    assert macs == sorted(macs, reverse=True) and macs[-1] < 0.5 * ir.cost.of(model).macs
    assert errors == sorted(errors, reverse=True)


def test_plan_leaves_the_model_alone_and_apply_repeats_to_the_byte(conv_case):
    model, feeds = conv_case
    before = ir.to_bytes(model)
    ctx = context(model, feeds)
    p = LowRank()
    outcomes = []
    for _ in range(2):  # the second plan replays the timings of the first
        plan = p.plan(model, ctx)
        copy = model.copy()
        p.apply(copy, plan, 0.8, ctx)
        outcomes.append(ir.to_bytes(tidy(copy)))
    assert ir.to_bytes(model) == before
    assert outcomes[0] == outcomes[1]


def test_refit_in_a_deep_chain_helps_and_never_blows_up(deep_case):
    """Layers behind one another that are solved at once pile their corrections up: SQNR fell by 75 dB that way."""
    model, feeds = deep_case
    ctx = context(model, feeds)
    p = LowRank(rank=0.3, forms=("channel",), min_gain=-1)
    plan = p.plan(model, ctx)
    found = {}
    for refit in (False, True):
        copy = model.copy()
        result = dataclasses.replace(p, refit=refit).apply(copy, plan, 1.0, ctx)
        assert result.did["layers split"] >= 10
        found[refit] = [sqnr(model, tidy(copy), part) for part in (ctx.fit, ctx.check)]
    assert found[True][0] > found[False][0] + 1
    assert found[True][1] > found[False][1]


def test_a_refit_that_hurts_the_outputs_is_taken_back(deep_case, monkeypatch):
    model, feeds = deep_case
    ctx = context(model, feeds)
    notes = []
    ctx.on_note = notes.append
    p = LowRank(rank=0.3, forms=("channel",), min_gain=-1)
    plan = p.plan(model, ctx)
    plain, spoilt = model.copy(), model.copy()
    p.apply(plain, plan, 1.0, ctx)

    def spoil(model, d, moment):
        weight = d.last.inputs[1].values
        edit.set_input(d.last, 1, edit.constant(model, "spoilt", np.zeros_like(weight)))
        return 0.0  # what it claims is not what is believed

    monkeypatch.setattr(importlib.import_module("onnxslim_opt.passes.lowrank.refit"), "_solve", spoil)
    result = dataclasses.replace(p, refit=True).apply(spoilt, plan, 1.0, ctx)
    assert any("taken back" in n for n in notes)
    assert not any("error_in_place" in r for r in result.details["layers"])
    feed = ctx.check.first()
    a, b = (Session(tidy(m)).run(feed)["out"] for m in (plain, spoilt))
    assert np.array_equal(a, b)


def test_levels_never_hold_a_layer_behind_another(deep_case):
    model, feeds = deep_case
    ctx = context(model, feeds)
    copy = model.copy()
    p = LowRank(rank=0.3, forms=("channel",), min_gain=-1, refit=False)
    result = p.run(copy, ctx)
    tidy(copy)
    split = {r["layer"] for r in result.details["layers"] if "form" in r}
    last = {n.name: n for n in copy.graph.nodes if n.name.endswith(("channel1", "svd1"))}
    done = [Done(n, None, node) for n, node in last.items()]
    levels = by_level(copy, done)
    assert len(last) == len(split) >= 10
    assert [len(level) for level in levels] == [1] * len(last)  # a chain: each behind all others


def test_matmuls_are_split_where_the_clock_says_so():
    model = mlp()
    ctx = context(model, random_feeds(model, (2, 16, 256)))
    copy = model.copy()
    result = LowRank(rank=32).run(copy, ctx)
    rows = [r for r in result.details["layers"] if "form" in r]
    assert rows, [r["skipped"] for r in result.details["layers"]]
    for row in rows:
        assert row["form"] == "svd" and row["rank"] == [32]
        assert row["ms_after"] <= 0.92 * row["ms_before"]
    assert ctx.timings.entries
    assert np.isfinite(sqnr(model, tidy(copy), ctx.check))


def test_nothing_is_split_that_saves_no_time(monkeypatch):
    """The veto: a clock that sees no gain leaves every layer whole, with the reason."""
    model = mlp()
    ctx = context(model, random_feeds(model, (2, 16, 256)))
    monkeypatch.setattr(latency, "time_models", lambda models, *a, **k: [1.0, 0.95])
    notes = []
    ctx.on_note = notes.append
    copy = model.copy()
    result = LowRank(rank=32).run(copy, ctx)
    assert not result.changed and ir.to_bytes(copy) == ir.to_bytes(model)
    assert all("nothing pays here" in r["skipped"] for r in result.details["layers"])
    assert any("nothing pays here" in n for n in notes)


def test_what_loses_in_integers_is_refused_when_quant_follows(monkeypatch):
    model, seen = mlp(), []

    def time_models(models, feeds, **options):
        assert all(Session(m).run(f) for m, f in zip(models, feeds, strict=True))
        ops = {n.op for m in models for n in ir.from_bytes(m).graph.nodes}
        seen.append("QuantizeLinear" in ops)
        return [0.3, 0.29] if "QuantizeLinear" in ops else [1.0, 0.6]

    monkeypatch.setattr(latency, "time_models", time_models)
    feeds = random_feeds(model, (2, 16, 256))
    assert LowRank(rank=32).run(model.copy(), context(model, feeds)).changed
    assert not any(seen)
    assert not LowRank(rank=32).run(model.copy(), context(model, feeds, follows=("quant",))).changed
    assert any(seen)


@pytest.mark.parametrize("form", ["svd", "channel", "spatial", "separable"])
def test_integer_twins_run_on_integers_from_end_to_end(form):
    """ONNX Runtime must fuse every link into an integer kernel, or the timing would be of something else."""
    weight = (64, 64, 1, 1) if form == "svd" else (64, 64, 3, 3)
    layer = read(gs_conv(weight), (1, 64, 8, 8))
    rank = FORMS[form].scaled(layer, 0.3)
    for stages in ([layer.whole], FORMS[form].empty(layer, rank)):
        twin = quantized(alone(layer, stages), Target.detect())
        options = ort.SessionOptions()
        options.log_severity_level = 3
        with tempfile.TemporaryDirectory() as folder:
            options.optimized_model_filepath = f"{folder}/m.onnx"
            session = ort.InferenceSession(ir.to_bytes(twin), options, providers=["CPUExecutionProvider"])
            kinds = [n.op for n in ir.load(f"{folder}/m.onnx").graph.nodes]
        assert session.get_outputs()[0].type == session.get_inputs()[0].type == "tensor(uint8)"
        assert kinds.count("QLinearConv") == len(stages) and not {"Conv", "QuantizeLinear"} & set(kinds)


def test_energy_is_kept():
    model = mlp()
    ctx = context(model, random_feeds(model, (2, 16, 256)))
    result = LowRank(energy=0.9, min_gain=-1, refit=False).run(model.copy(), ctx)
    rows = [r for r in result.details["layers"] if "form" in r]
    assert rows and all(r["error"] <= 0.1 + 1e-3 for r in rows)


@pytest.mark.parametrize("options", [{"energy": 0.999}, {"evbmf": True}])
def test_the_rank_serves_every_group(options):
    """A first group of rank one and a second of rank six."""
    rng = np.random.default_rng(1)
    parts = [rng.standard_normal((20, k)) @ rng.standard_normal((k, 24)) for k in (1, 6)]
    weight = np.concatenate(parts).astype(np.float32)[:, :, None, None]
    x, y = gs.Variable("x", np.float32, [1, 48, 9, 8]), gs.Variable("y", np.float32)
    model = loaded([gs.Node("Conv", "c", {"group": 2}, [x, gs.Constant("w", weight)], [y])], x, y)
    rows = [{"x": rng.standard_normal((1, 48, 9, 8)).astype(np.float32)} for _ in range(16)]
    plan = LowRank(forms=("svd",), min_gain=-1, **options).plan(model, context(model, resolve(rows, model)))
    (split,) = plan.layers["c"].splits
    assert split.option.rank == (6,) and split.option.error < 1e-3


def test_without_data_the_pass_is_held_back_unless_told_how_much(conv_case):
    model, feeds = conv_case
    ctx = context(model, feeds, source="random")
    notes = []
    ctx.on_note = notes.append
    result = LowRank().run(model.copy(), ctx)
    assert not result.changed and "held back" in notes[0]
    assert LowRank(rank=0.4, min_gain=-1).run(model.copy(), ctx).changed
    assert any("no data" in n for n in notes[1:])


def test_excluded_layers_stay(conv_case):
    model, feeds = conv_case
    ctx = context(model, feeds, exclude=re.compile("conv[02]"))
    result = LowRank(rank=0.4, min_gain=-1).run(model.copy(), ctx)
    rows = {r["layer"]: r for r in result.details["layers"]}
    assert rows["conv0"]["skipped"] == rows["conv2"]["skipped"] == "excluded"
    assert "form" in rows["conv1"]
    assert {s.node for s in result.skipped} >= {"conv0", "conv2"}


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"rank": 0.5, "energy": 0.9}, "not both"),
        ({"forms": ("tt",)}, "unknown form 'tt'"),
        ({"min_gain": 1.0}, "never be met"),
        ({"energy": 0.9, "macs": 0.3}, "one of energy and macs"),
    ],
)
def test_impossible_options_are_refused(options, message):
    with pytest.raises(OptionError, match=message):
        LowRank(**options)


def test_explicit_says_whether_an_amount_was_given():
    assert not LowRank().explicit and not LowRank(forms=("svd",)).explicit
    assert LowRank(speedup=1.2).explicit and LowRank(macs=0.1, params=0.1).explicit
    assert LowRank(rank=8).explicit and LowRank(energy=0.9).explicit and LowRank(evbmf=True).explicit


@pytest.mark.parametrize("budget", [{"macs": 0.3}, {"params": 0.45}, {"macs": 0.4, "params": 0.2}])
def test_budgets_are_met_and_little_more_is_split(deep_case, budget):
    model, feeds = deep_case
    ctx = context(model, feeds)
    copy = model.copy()
    LowRank(min_gain=-1, **budget).run(copy, ctx)
    before, after = ir.cost.of(model), ir.cost.of(tidy(copy))
    saved = {"macs": 1 - after.macs / before.macs, "params": 1 - after.params / before.params}
    over = {k: saved[k] - wanted for k, wanted in budget.items()}
    assert min(over.values()) >= 0
    assert min(over.values()) < 0.1  # one step of one layer in ten


def test_a_budget_that_cannot_be_had_is_said(conv_case):
    model, feeds = conv_case
    ctx = context(model, feeds)
    notes = []
    ctx.on_note = notes.append
    result = LowRank(min_gain=-1, macs=0.99).run(model.copy(), ctx)
    assert result.changed
    assert any("saves only" in n and "of the MACs" in n for n in notes)


def test_speedup_takes_the_fewest_steps_that_measure_as_fast(conv_case, monkeypatch):
    """Time is made to be MACs plus a fixed share: the fewest steps are then known without a clock."""
    model, feeds = conv_case
    total = ir.cost.of(model).macs

    def time(m):
        return ir.cost.of(tidy(m.copy())).macs / total + 0.3

    def compare(a, b, *args, **options):
        return latency.Latency(1.3, time(b), 1.3 / time(b), 7, 1)

    monkeypatch.setattr(latency, "compare", compare)
    ctx = context(model, feeds)
    p = LowRank(min_gain=-1, speedup=1.25)
    plan = p.plan(model, ctx)
    everything = LowRank(min_gain=-1, speedup=50).plan(model, ctx)
    assert "saves only a speed-up of" in everything.reason and not plan.reason
    reached = []
    for count in range(len(everything.steps) + 1):
        copy = model.copy()
        assemble.assemble(copy, everything.layers, choose.taken(everything.steps[:count]))
        reached.append(1.3 / time(copy) >= 1.25 * 1.01)
    assert len(plan.steps) == reached.index(True)


def test_a_batch_is_timed_on_few_of_its_samples():
    layer = read(gs_conv((64, 64, 3, 3)), (50, 64, 32, 32))
    seen = []

    def time_models(models, feeds, **options):
        seen.extend(m.inputs[0].shape[0] for m in map(ir.from_bytes, models))
        return [1.0, 0.5]

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(latency, "time_models", time_models)
        before, after = Clock(1, Timings()).pair(layer, [layer.whole])
    assert seen == [3, 3]  # 38 million MACs a sample
    assert (before, after) == (pytest.approx(50 / 3), pytest.approx(25 / 3))


@pytest.mark.parametrize("integers", [None, Target.named("ort-cpu-vnni"), Target.named("ort-cpu-arm")])
@pytest.mark.parametrize("memory_mb", [512, 1], ids=["together", "apart"])
def test_layers_run_on_their_feeds_and_large_ones_one_after_the_other(integers, memory_mb, monkeypatch):
    layer = read(gs_conv((16, 32, 3, 3)), (1, 32, 32, 32))  # 128 KB in, 64 KB out
    loaded = []
    monkeypatch.setattr(latency, "start", lambda model, *a, **k: loaded.append(model) or Session(model))
    wide = Stage(np.eye(16, dtype=np.float32)[:, :, None, None])
    before, after = Clock(1, None, integers, memory_mb).pair(layer, [layer.whole, wide])
    assert before > 0 and after > 0
    runs = 1 if integers is None else 2
    assert len(loaded) == runs * (2 if memory_mb == 512 else 4)


def test_a_large_image_is_timed_on_a_strip():
    layer = read(gs_conv((8, 8, 3, 3)), (1, 8, 2048, 256))  # 16 MB in and out, 128 MB in two sessions
    seen = []

    def time_models(models, feeds, **options):
        seen.extend(feeds[0]["x"].shape[2:] for _ in models)
        return [1.0, 0.5]

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(latency, "time_models", time_models)
        before, after = Clock(1, Timings(), memory_mb=64).pair(layer, [layer.whole])
    assert seen == [(256, 256)] * 2
    assert (before, after) == (pytest.approx(8), pytest.approx(4))


def gs_conv(shape):
    x, y = gs.Variable("x", np.float32), gs.Variable("y", np.float32)
    return gs.Node("Conv", "c", {"pads": [1, 1, 1, 1]}, [x, gs.Constant("w", np.ones(shape, np.float32))], [y])


def test_hull_and_order_are_convex_and_nested():
    rng = np.random.default_rng(0)
    hulls = {}
    for name in "abc":
        points = [Option("svd", (k,), e, s, 0, 0, damage=e) for k, (s, e) in enumerate(rng.random((40, 2)))]
        hulls[name] = choose.hull(points)
        kept = [(0.0, 0.0), *[(o.saved, o.damage) for o in hulls[name]]]
        slopes = [(d2 - d1) / (s2 - s1) for (s1, d1), (s2, d2) in itertools.pairwise(kept)]
        assert slopes == sorted(slopes)
        for p in points:  # nothing lies below the hull
            below = [
                d1 + (p.saved - s1) * (d2 - d1) / (s2 - s1)
                for (s1, d1), (s2, d2) in itertools.pairwise(kept)
                if s1 <= p.saved <= s2
            ]
            assert all(p.damage >= b - 1e-12 for b in below)
    steps = choose.order(hulls)
    assert choose.prefix(steps, 1.0) == {n: len(h) - 1 for n, h in hulls.items()}
    previous: dict[str, int] = {}
    for strength in np.linspace(0.05, 1, 20):
        chosen = choose.prefix(steps, float(strength))
        assert all(chosen.get(n, -1) >= k for n, k in previous.items())
        previous = chosen


def test_an_empty_plan_changes_nothing(conv_case):
    model, feeds = conv_case
    assert not LowRank().apply(model.copy(), planning.nothing("x"), 1.0, context(model, feeds)).changed


REAL = [("kwt1", 16), ("squeezenet1_1", 24), ("dnsmos_sig_bak_ovr", 8)]


@pytest.mark.slow
@pytest.mark.parametrize(("name", "samples"), REAL)
def test_real_models_improve_or_say_that_nothing_pays(name, samples):
    path = SHARED / "models" / f"{name}.onnx"
    if not path.exists():
        pytest.skip("shared models are not here")
    model = ir.load(path)
    ctx = context(model, resolve(f"{SHARED / 'tasks.py'}:{name}_data", model, DataOptions(samples=samples)))
    p = LowRank()
    plan = p.plan(model, ctx)
    copy = model.copy()
    result = p.apply(copy, plan, 0.5, ctx)
    tidy(copy)
    if not result.changed:
        assert all("skipped" in r for r in result.details["layers"])
        return
    assert Session(copy).outputs == Session(model).outputs
    known = Reference(model, ctx.check).compare(copy)
    assert min(o.sqnr_db for o in known.outputs) > 10
    assert latency.compare(model, copy, ctx.check).speedup > 0.97
