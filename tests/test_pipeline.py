"""The pipeline: transactions, roll-back, order, errors, and the whole job of `optimize`."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from types import SimpleNamespace
from typing import Any, ClassVar

import numpy as np
import onnx
import pytest
import toys
from onnxslim_opt.ir.errors import DataError, OptionError, PassError
from onnxslim_opt.passes import pace, registry, spec
from onnxslim_opt.passes.base import Context, Pass, PassResult, Skip
from onnxslim_opt.passes.optimize import optimize
from onnxslim_opt.passes.pipeline import Dump, Event, Pipeline, arrange, merge
from onnxslim_opt.runtime.feeds import resolve
from onnxslim_opt.runtime.latency import Latency
from onnxslim_opt.runtime.session import Session
from toys import Breaks, Lies, Noise, Nothing, Raises, Rename

import onnxslim_opt
from onnxslim_opt import ir


def context(m: ir.Model) -> Context:
    """A context for passes that look at nothing."""
    return SimpleNamespace(follows=(), original=m)  # type: ignore[return-value]


@pytest.fixture
def steady(monkeypatch: pytest.MonkeyPatch) -> None:
    """Latency by the number of nodes, so that no test depends on a clock."""
    monkeypatch.setattr(pace.Pace, "compare", by_nodes)


def by_nodes(self, before, after):
    """For `Pace.compare`: 1 ms and 0.1 ms a node."""
    a, b = (1 + 0.1 * ir.cost.of(m if isinstance(m, ir.Model) else ir.load(m)).nodes for m in (before, after))
    return Latency(a, b, a / b, 7, 1)


# ---------------------------------------------------------------- Pipeline, the plain form


def test_pipeline_is_a_pass_and_nests():
    m = toys.model()
    inner = Pipeline((Rename("a_"), Nothing()))
    result = Pipeline((inner, Rename("b_"))).run(m, context(m))
    assert result.changed
    assert result.did == {"nodes renamed": 10}
    assert [n.name for n in m.graph.nodes][:2] == ["b_a_matmul0", "b_a_add0"]
    assert result.skipped == (Skip("add0", "there is nothing to do"),)


def test_repeat_ends_when_nothing_changes():
    @dataclass(frozen=True)
    class Thrice(Pass):
        """Changes three times."""

        name: ClassVar[str] = "thrice"

        def run(self, model, ctx):
            calls.append(1)
            return PassResult(len(calls) <= 3)

    calls: list[int] = []
    Pipeline((Thrice(),), repeat=10).run(toys.model(), context(toys.model()))
    assert len(calls) == 4


@pytest.mark.parametrize("bad", [Raises(), Breaks()])
def test_a_failing_pass_is_rolled_back_and_named(bad):
    m = toys.model()
    before = ir.to_bytes(toys.model())
    renamed = toys.model()
    Rename().run(renamed, context(renamed))
    with pytest.raises(PassError, match=rf"pass {bad.name}.* failed after rename:prefix=x_"):
        Pipeline((Rename("x_"), bad)).run(m, context(m))
    assert ir.to_bytes(m) != before, "what was done before the failure stays"
    ir.verify.check(m)
    assert [n.name for n in m.graph.nodes] == ["x_matmul0", "x_add0", "x_relu0", "x_matmul1", "x_add1"]


def test_names_are_fresh_after_a_step():
    @dataclass(frozen=True)
    class Adds(Pass):
        """Adds an Identity with a fresh name."""

        name: ClassVar[str] = "adds"

        def run(self, model, ctx):
            toys.slow_down(model)
            return PassResult(True)

    m = toys.model()
    ir.edit.fresh(m, "slow")  # the model's memory of names exists before the first snapshot
    Pipeline((Adds(), Adds(), Adds())).run(m, context(m))
    assert len({n.name for n in m.graph.nodes}) == len(m.graph.nodes) == 8


def test_observers_hear_every_step():
    heard: list[Event] = []
    m = toys.model()
    Pipeline((Rename(), Nothing()), observers=(heard.append,)).run(m, context(m))
    assert [(e.kind, e.p.name) for e in heard] == [
        ("start", "rename"), ("done", "rename"), ("start", "nothing"), ("done", "nothing"),
    ]  # fmt: skip
    assert [e.step.kept for e in heard if e.step] == [True, False]


def test_merge_adds_counts_and_keeps_each_refusal_once():
    results = [
        PassResult(True, {"n": 1, "how": "a"}, (Skip("x", "r"),)),
        PassResult(False, {"n": 2}, (Skip("x", "r"), Skip("y", "r"))),
    ]
    merged = merge(results)
    assert merged.changed
    assert merged.did == {"n": 3, "how": "a"}
    assert merged.skipped == (Skip("x", "r"), Skip("y", "r"))


# ---------------------------------------------------------------- order


@dataclass(frozen=True)
class Simplify(Pass):
    """Stands for the real one."""

    name: ClassVar[str] = "simplify"

    def run(self, model, ctx):
        return PassResult(False)


@dataclass(frozen=True)
class Quant(Noise):
    """Stands for the real one."""

    name: ClassVar[str] = "quant"


def test_simplify_runs_first_and_again_before_quant(monkeypatch):
    monkeypatch.setattr("onnxslim_opt.passes.pipeline.registry", lambda: registry.Registry({"simplify": Simplify}, {}))
    names = lambda *passes: [("+" if added else "") + p.name for p, added in arrange(passes)]  # noqa: E731
    assert names(Noise(), Quant()) == ["+simplify", "noise", "+simplify", "quant"]
    assert names(Quant()) == ["+simplify", "quant"]
    assert names(Simplify(), Noise(), Simplify(), Quant()) == ["simplify", "noise", "simplify", "quant"]
    assert names(Rename(), Noise()) == ["+simplify", "rename", "noise"]
    assert names(Rename()) == ["rename"], "exact passes alone run as they are listed"


# ---------------------------------------------------------------- the spec


@dataclass(frozen=True)
class Many(Pass):
    """One option of every kind.

    More words.
    """

    name: ClassVar[str] = "many"
    count: int = 1
    ratio: float | None = None
    on: bool = False
    text: str = "a"
    parts: tuple[str, ...] = ()

    def __post_init__(self):
        if self.count > 9:
            raise ValueError("count must be at most 9")


@dataclass(frozen=True)
class Either(Pass):
    """An option that is a number, a text or nothing."""

    name: ClassVar[str] = "either"
    value: int | str | None = None


KNOWN = registry.collect([("test", Many), ("test", Nothing)])


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("many", Many()),
        ("many:count=3:ratio=25%", Many(3, 0.25)),
        ("many:ratio=none:on=yes", Many(on=True)),
        (" many : parts=a+b : text=x/y.z ", Many(text="x/y.z", parts=("a", "b"))),
        ("many:ratio=1e-3", Many(ratio=0.001)),
    ],
)
def test_spec_reads_and_prints_back(text, expected):
    (made,) = spec.parse(text, KNOWN)
    assert made == expected
    assert spec.parse(spec.show(made), KNOWN) == (made,)


@pytest.mark.parametrize("text", ["mm{1,2}", "layer:fc", " mm", "a:1", '"', 'a",b', "x=y+z", "", '"a"', "\\d:2,\n"])
def test_every_text_is_shown_so_that_it_is_read_back(text):
    made = (Many(text=text, parts=(text, "b", text)), Nothing(), Many(parts=(text,)), Either(text), Either(3))
    known = registry.collect([("test", Many), ("test", Nothing), ("test", Either)])
    assert spec.parse(spec.show(made), known) == made


def test_quotes_are_for_texts_that_need_them():
    assert spec.show(Many(text="2:4", parts=("a.*", "b"))) == "many:text=2:4:parts=a.*+b"
    assert spec.show(Many(text='a"b')) == 'many:text="a""b"'
    assert spec.show([Either("none"), Either("3"), Either()]) == 'either:value="none",either:value="3",either'
    assert spec.parse('many:text=a"b:count=2', KNOWN) == (Many(2, text='a"b'),)


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("mny", "unknown pass 'mny', did you mean 'many'. known: many, nothing"),
        ("many:cuont=1", "pass 'many' has no option 'cuont', did you mean 'count'. known: count, on, parts"),
        ("many:count=x", "pass 'many': count=x: expected a whole number"),
        ("many:count=1.5", "expected a whole number"),
        ("many:ratio=nan", "expected a finite number"),
        ("many:ratio=inf", "expected a finite number"),
        ("many:on=maybe", "expected true or false"),
        ("many:count=10", "pass 'many': count must be at most 9"),
        ("many:count", "'count' is not of the form key=value"),
        ("many:count=1:count=2", "given twice"),
        ("many,,nothing", "empty pass name"),
        ("", "no pass is named"),
    ],
)
def test_spec_refuses_with_one_clear_line(text, message):
    with pytest.raises(OptionError, match=message) as caught:
        spec.parse(text, KNOWN)
    assert "\n" not in str(caught.value)


def test_build_takes_values_as_they_are_in_toml():
    assert spec.build("many", {"count": 2, "ratio": 1, "parts": ["a"]}, KNOWN) == Many(2, 1, parts=("a",))
    for wrong in ({"count": True}, {"count": 1.5}, {"on": 1}, {"text": 3}):
        with pytest.raises(OptionError, match="expected"):
            spec.build("many", wrong, KNOWN)
    for wrong in ({"ratio": np.nan}, {"ratio": -np.inf}, {"ratio": 10**400}):
        with pytest.raises(OptionError, match=r"finite|too large"):
            spec.build("many", wrong, KNOWN)


@pytest.mark.parametrize("key", ["count", "ratio", "on", "text"])
@pytest.mark.parametrize("value", [[], [0.1], {}])
def test_lists_are_for_options_that_hold_several(key, value):
    with pytest.raises(OptionError, match=f"pass 'many': {key}=.*: expected "):
        spec.build("many", {key: value}, KNOWN)


@pytest.mark.parametrize(
    ("value", "says"), [([1], "expected str"), ([["a"]], "expected str"), (3, "expected list"), ({}, "expected list")]
)
def test_a_list_holds_what_its_option_says(value, says):
    with pytest.raises(OptionError, match=f"pass 'many': parts=.*: {says}"):
        spec.build("many", {"parts": value}, KNOWN)


def test_a_pass_made_in_python_is_held_to_its_types():
    right = Many(2, 0.5)
    assert spec.checked(right) is right
    made = Many(np.int64(2), np.float32(0.5), parts=["a"])
    assert spec.checked(made) == Many(2, 0.5, parts=("a",))
    assert spec.show(spec.checked(made)) == "many:count=2:ratio=0.5:parts=a"
    assert spec.checked(Pipeline((made,))).passes == (Many(2, 0.5, parts=("a",)),)
    for wrong in (Many(True), Many(ratio=np.nan), Many(ratio="0.5"), Many(ratio=[0.1]), Many(parts=(1,))):
        for given in (wrong, Pipeline((wrong,))):
            with pytest.raises(OptionError, match=r"pass 'many': .*expected"):
                spec.checked(given)


@dataclass(frozen=True)
class Odd(Pass):
    """Options that no text can say, and defaults that are none of what their types say."""

    name: ClassVar[str] = "odd"
    unknown: Unheard | None = None  # type: ignore[name-defined]  # noqa: F821
    cap: float = float("inf")
    missing: int = None  # type: ignore[assignment]
    pair: tuple[str, float] = ("a", 0.5)
    pairs: tuple[tuple[str, float], ...] = ()
    anything: tuple[Any, ...] = ()
    bare: tuple = ()
    several: list[str] | None = None
    array: np.ndarray | None = None


def test_what_no_text_can_say_is_left_to_the_pass():
    for odd in (Odd(), Odd(unknown=object(), pair=("b", 1.0), anything=(3, "a"), bare=(1,), array=np.ones(3))):
        assert vars(spec.checked(odd)) == vars(odd)
    assert spec.checked(Odd(pairs=(("a", 0.5),))).pairs == (("a", 0.5),)
    assert spec.checked(Odd(several=["a"])).several == ["a"]
    with pytest.raises(OptionError, match="several"):
        spec.checked(Odd(several=[1]))


def test_options_are_read_off_the_dataclass():
    assert [(o.name, o.kind, o.default) for o in spec.options(Many)] == [
        ("count", "int", 1), ("ratio", "float | none", None), ("on", "bool", False), ("text", "str", "a"),
        ("parts", "tuple", ()),
    ]  # fmt: skip
    assert spec.summary(Many) == "One option of every kind."


# ---------------------------------------------------------------- the registry


def test_two_passes_of_one_name_are_an_error():
    @dataclass(frozen=True)
    class Other(Pass):
        """Same name."""

        name: ClassVar[str] = "nothing"

    with pytest.raises(PassError, match=r"two passes are called 'nothing': toys\.Nothing and .*Other"):
        registry.collect([("a", Nothing), ("b", Other)])


def test_a_module_gives_its_own_passes_and_a_broken_one_its_reason():
    found = registry.collect([("toys", toys), ("torn", ImportError("no module named torch"))])
    assert {"nothing", "rename", "noise"} <= set(found.passes)
    assert "" not in found.passes
    with pytest.raises(OptionError, match=r"unknown pass 'torn'.*\(torn could not be loaded: ImportError: no module"):
        found.get("torn")


def test_every_pass_of_the_package_is_described():
    for name, cls in registry.registry().passes.items():
        assert name == cls.name
        assert spec.summary(cls), f"{name} has no docstring"
        assert spec.parse(spec.show(cls())) == (cls(),)
    assert not registry.registry().broken


# ---------------------------------------------------------------- optimize


def test_a_path_or_a_model_gives_a_result_that_runs(tmp_path, steady):
    path = toys.write(tmp_path / "m.onnx")
    result = optimize(path, [Rename()], data=toys.feeds())
    assert result.report.verdict == "ok"
    assert result.report.exit_code == 0
    result.save(tmp_path / "out.onnx")
    onnx.checker.check_model(onnx.load(tmp_path / "out.onnx"), full_check=True)
    again = optimize(ir.load(path), [Rename()], data=toys.feeds())
    assert ir.to_bytes(again.model) == ir.to_bytes(result.model)


@pytest.mark.parametrize("passes", [[], (), [Noise(amount=np.nan)]])
def test_passes_that_are_none_are_refused_before_the_work(passes):
    with pytest.raises(OptionError, match=r"no pass is named|amount=nan: expected a finite number"):
        optimize(toys.model(), passes)


def test_a_model_that_is_handed_in_is_not_edited(steady):
    m = toys.model()
    before = ir.to_bytes(m)
    optimize(m, [Rename(), Noise(asked=True)], data=toys.feeds())
    assert ir.to_bytes(m) == before


def test_an_exact_pass_that_is_not_is_rolled_back(steady):
    result = optimize(toys.model(), [Lies()], data=toys.feeds())
    (step,) = result.report.steps
    assert not step["kept"]
    assert "should be exact" in step["reason"]
    assert result.report.numerics["outputs"][0]["sqnr_db"] == 999


def test_noise_of_one_output_excuses_no_other(steady):
    text = "g (float[N,2] x) => (float[N,2] y, float[N,2] z) <float[2,2] w = {1,2,3,4}, float[2,2] b = {1,2,3,5}> "
    m = ir.text.parse(text + "{ y = MatMul(x, w) z = MatMul(x, b) }")
    feeds = [{"x": np.float32([[1, k]])} for k in range(8)]
    steps = optimize(m, [Noise(9.0, asked=True), Lies(), Rename()], data=feeds).report.steps[1:]
    assert [s["kept"] for s in steps] == [True, False, True]
    assert steps[1]["reason"] == "rolled back: it should be exact, but took output 'z' to SQNR 0.0 dB"


def test_a_failing_pass_leaves_the_best_model_and_the_rest_runs(steady):
    result = optimize(toys.model(), [Rename("a_"), Raises(), Breaks(), Rename("b_")], data=toys.feeds())
    assert [s["kept"] for s in result.report.steps] == [True, False, False, True]
    assert result.report.verdict == "pass_failed"
    assert result.report.exit_code == 3
    assert "pass raises failed after rename:prefix=a_: ValueError: something is off" in result.report.reasons
    assert result.model.graph.nodes[0].name == "b_a_matmul0"
    with pytest.raises(PassError, match="pass raises failed"):
        optimize(toys.model(), [Raises()], data=toys.feeds(), strict=True)


@dataclass(frozen=True)
class Wrong(Pass):
    """Runs a model of its own on feeds of another width."""

    name: ClassVar[str] = "wrong"

    def run(self, model, ctx):
        Session(model).run({"x": np.zeros((1, 3), np.float32)})
        return PassResult(False)


def test_feeds_that_only_the_model_of_a_pass_refuses_are_a_failure_of_the_pass(steady):
    found = optimize(toys.model(), [Wrong(), Rename()], data=toys.feeds()).report
    assert [s["kept"] for s in found.steps] == [False, True] and found.exit_code == 3
    assert "pass wrong failed" in found.reasons[0] and "do not fit the model" in found.reasons[0]


def test_feeds_that_the_original_refuses_too_stop_the_run(steady):
    m = ir.text.parse("g (float[N,L] x, float[8,3] w) => (float[N,3] y) { y = Gemm(x, w) }")
    good, bad = ({"x": np.ones((1, n), np.float32), "w": np.ones((8, 3), np.float32)} for n in (8, 9))
    with pytest.raises(DataError, match="the feeds do not fit the model"):
        optimize(m, [Reads()], data=[good, bad, *[good] * 6])


@dataclass(frozen=True)
class Reads(Pass):
    """Runs the model on what may be fitted on."""

    name: ClassVar[str] = "reads"

    def run(self, model, ctx):
        for feed in ctx.fit:
            Session(model).run(feed)
        return PassResult(False)


def test_what_the_user_can_mend_stops_the_run(steady):
    @dataclass(frozen=True)
    class Picky(Pass):
        """Refuses its option when it sees the model."""

        name: ClassVar[str] = "picky"

        def run(self, model, ctx):
            raise OptionError("there is no layer 'x'")

    with pytest.raises(OptionError, match="there is no layer"):
        optimize(toys.model(), [Picky()])


def test_passes_know_what_follows_and_the_simplified_original(steady):
    seen: list[tuple[tuple[str, ...], str]] = []

    @dataclass(frozen=True)
    class Look(Nothing):
        """Remembers its context."""

        name: ClassVar[str] = "look"

        def run(self, model, ctx):
            seen.append((ctx.follows, ctx.original.graph.nodes[0].name))
            return PassResult(False)

    optimize(toys.model(), [Rename(), Look(), Nothing()], data=toys.feeds())
    assert seen == [(("nothing",), "new_matmul0")]


def test_initializers_that_are_all_inputs_become_weights(steady):
    proto = toys.network()
    for t in list(proto.graph.initializer):
        proto.graph.input.append(onnx.helper.make_tensor_value_info(t.name, t.data_type, t.dims))
    result = optimize(ir.from_proto(proto), [Nothing()], data=toys.feeds())
    assert [t.name for t in result.model.inputs] == ["x"]
    assert "all 4 initializers were listed as inputs" in result.report.notes[0]


def test_a_lossy_run_without_data_says_so_once(steady):
    result = optimize(toys.model(), [Noise()])
    loud = [n for n in result.report.notes if n.startswith("NO REAL DATA")]
    assert len(loud) == 1
    assert result.report.numerics["source"] == "random"
    assert not [n for n in optimize(toys.model(), [Rename()]).report.notes if "REAL" in n]


def test_a_pattern_that_excludes_nothing_is_told(steady):
    def lost(passes, **options):
        return [n for n in optimize(toys.model(), passes, **options).report.notes if "matches no node" in n]

    named = next(iter(toys.model().nodes())).name
    assert not lost([Noise()], exclude=f"^{named}$")
    (note,) = lost([Noise()], exclude="fire2")
    assert "'fire2'" in note and repr(named) in note
    assert len(lost("fp16:exclude=nowhere")) == 1


def test_a_metric_that_does_not_repeat_is_told_though_all_was_rolled_back(steady):
    scores = iter([1.0])
    result = optimize(toys.model(), [Lies()], data=toys.feeds(8), metric=lambda run: next(scores, 0.1), max_drop="1%")
    assert not any(step["kept"] for step in result.report.steps)
    assert (result.report.verdict, result.report.exit_code) == ("limits_not_met", 3)
    assert result.report.reasons[0] == "the metric gave 1 and then 0.1 for the unchanged model: it does not repeat"


def test_the_result_is_never_slower_than_the_original(steady):
    @dataclass(frozen=True)
    class Slower(Pass):
        """Exact, and adds nodes."""

        name: ClassVar[str] = "slower"

        def run(self, model, ctx):
            for _ in range(5):
                toys.slow_down(model)
            return PassResult(True)

    result = optimize(toys.model(), [Rename(), Slower()], data=toys.feeds())
    assert [s["kept"] for s in result.report.steps] == [True, False]
    assert result.report.steps[1]["reason"].startswith("rolled back at the end: it runs at 0.75x the speed")
    assert result.report.latency["speedup"] == 1.0


def test_the_result_does_not_grow_without_being_faster(monkeypatch):
    @dataclass(frozen=True)
    class Bigger(Pass):
        """Spreads a bias over a large table that is summed up again."""

        name: ClassVar[str] = "bigger"

        def run(self, model, ctx):
            node = next(n for n in model.graph.nodes if n.name == "add1")
            table = np.zeros((400, 5), np.float32)
            table[7] = ir.edit.const(node, 1)
            row = ir.edit.variable(model, "row", np.float32, [5])
            ins = [ir.edit.constant(model, "table", table), ir.edit.constant(model, "axes", np.array([0]))]
            ir.edit.add(model.graph, ir.edit.node(model, "ReduceSum", ins, {"keepdims": 0}, [row]))
            ir.edit.set_input(node, 1, row)
            return PassResult(True)

    same = by_nodes(None, toys.model(), toys.model())
    monkeypatch.setattr(pace.Pace, "compare", lambda *a, **k: same)
    result = optimize(toys.model(), [Bigger()], data=toys.feeds())
    assert not result.report.steps[0]["kept"]
    assert "it grows from" in result.report.steps[0]["reason"]


def test_settings_are_checked_before_any_work():
    wrongs = {
        "max_drop": (2, -1, "x"),
        "min_sqnr": ("y",),
        "samples": (0, 1.5),
        "memory_mb": (0,),
        "jobs": (0,),
        "exclude": ("(", 3),
        "target": ("toaster",),
        "metric": ("no.py", "absent.py:f", ""),
        "data": ("",),
        "timings": (3,),
        "preprocess": (3,),
        "image_size": ("224x224", 0, [1, 2, 3]),
        "image_mean": (0.5, ["a"]),
        "input_shape": ("x:4,16", {"x": "4,16"}, {"x": [4.0, 16]}, {"x": [0]}, {"x": 3}),
    }
    for wrong in ({key: value} for key, values in wrongs.items() for value in values):
        with pytest.raises(OptionError):
            optimize(toys.model(), [Nothing()], **{"data": toys.feeds(), **wrong})


@pytest.mark.parametrize(
    ("passes", "says"),
    [
        (3, "passes is 3;"),
        (None, "passes is None;"),
        ([Nothing], "the class Nothing;"),
        (["fold", None], "holds None;"),
    ],
)
def test_what_is_no_pass_is_refused(passes, says):
    with pytest.raises(OptionError, match=says):
        optimize(toys.model(), passes, data=toys.feeds())


def test_arrays_are_data_and_numbers_as_any_list_is(steady):
    rows = np.concatenate([f["x"] for f in toys.feeds()])
    wanted = {"image_mean": np.array([0.5]), "input_shape": {"x": np.array([1, 16])}}
    told = optimize(toys.model(), ["clean", Nothing()], data=rows, **wanted).report.command
    assert told == {
        "passes": "clean,nothing", "data": "<ndarray>", "image_mean": [0.5], "input_shape": {"x": [1, 16]},
    }  # fmt: skip


def test_feeds_that_are_made_already_hear_of_samples_alone(steady):
    model = toys.model()
    made = resolve(toys.feeds(6), model)
    options = {"samples": 2, "image_size": 3, "input_shape": {"x": [8, 16]}}
    told = optimize(model, [Nothing()], data=made, **options).report
    assert told.numerics["feeds"] == 2
    assert told.notes == ["--image-size, --input-shape have no effect: the feeds are made already"]
    assert not made.notes
    with pytest.raises(OptionError, match="--input-shape names 'nope'"):
        optimize(model, [Nothing()], data=made, input_shape={"nope": [1]})


def test_an_opset_that_is_not_lowered_is_told_once(steady):
    notes = optimize(toys.model(), ["simplify:opset=11", "simplify:opset=11"], data=toys.feeds()).report.notes
    assert notes == ["simplify: opset=11 has no effect: the model has 17, and none is lowered"]


def test_every_feed_is_validated_before_any_work():
    bad = toys.feeds()
    bad[-1] = {"x": np.full((8, 16), np.nan, np.float32)}
    ran: list[Event] = []
    with pytest.raises(DataError, match="NaN"):
        optimize(toys.model(), [Nothing()], data=bad, observers=[ran.append])
    assert not ran


def test_dump_writes_the_model_after_every_kept_pass(tmp_path, steady):
    optimize(toys.model(), [Rename("a_"), Nothing(), Rename("b_")], data=toys.feeds(), observers=[Dump(tmp_path)])
    assert sorted(p.name for p in tmp_path.iterdir()) == ["01-rename.onnx", "02-rename.onnx"]
    assert ir.load(tmp_path / "02-rename.onnx").graph.nodes[0].name == "b_a_matmul0"


def test_dump_writes_over_no_file(tmp_path, steady):
    toys.write(tmp_path / "02-rename.onnx")
    before = (tmp_path / "02-rename.onnx").read_bytes()
    optimize(tmp_path / "02-rename.onnx", [Rename("a_")], data=toys.feeds(), observers=[Dump(tmp_path)])
    assert sorted(p.name for p in tmp_path.iterdir()) == ["02-rename.onnx", "03-rename.onnx"]
    assert (tmp_path / "02-rename.onnx").read_bytes() == before


def test_the_public_door_opens():
    for name in onnxslim_opt.__all__:
        assert getattr(onnxslim_opt, name) is not None
    assert onnxslim_opt.__version__.count(".") == 2
    assert onnxslim_opt.Pipeline is Pipeline
    with pytest.raises(AttributeError, match="no attribute 'nope'"):
        _ = onnxslim_opt.nope
    assert Path(onnxslim_opt.__file__).with_name("py.typed").is_file()
