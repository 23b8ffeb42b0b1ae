"""The report: schema 1, finite JSON, the recipe of its own run, and the page that needs nothing else."""

from __future__ import annotations

import json
import math
import re
from html.parser import HTMLParser
from pathlib import Path

import pytest
import toys
from onnxslim_opt.ir.errors import OptionError, OutputError
from onnxslim_opt.passes import pace, page, recipe, registry, words
from onnxslim_opt.passes.optimize import optimize
from onnxslim_opt.passes.recipe import Settings
from onnxslim_opt.passes.report import jsonable, sha256
from test_pipeline import by_nodes
from toys import Noise, Nothing, Raises, Rename

COST = {"nodes", "params", "macs", "bytes"}


@pytest.fixture
def made(tmp_path, monkeypatch):
    """(result, folder) of a run with a kept, a weakened and a failed pass."""
    monkeypatch.setattr(pace.Pace, "compare", by_nodes)
    monkeypatch.setattr("onnxslim_opt.passes.pipeline._simplify", list)
    path = toys.write(tmp_path / "m.onnx", layers=4)
    passes = [Rename(), Nothing(), Noise(1.0), Raises()]
    result = optimize(path, passes, data=toys.feeds(), metric=lambda run: 0.5, max_drop="50%", min_sqnr=15, seed=3)
    result.save(tmp_path / "out.onnx")
    return result, tmp_path


def test_schema_1(made):
    result, folder = made
    told = result.report.to_json()
    assert list(told)[:11] == ["schema", "tool", "command", "input", "output", "steps", "numerics", "metric", "latency",
                               "verdict", "reasons"]  # fmt: skip
    assert told["schema"] == 1
    for side, name in (("input", "m.onnx"), ("output", "out.onnx")):
        assert set(told[side]) == {"path", "sha256"} | COST
        assert told[side]["path"] == str(folder / name)
        assert told[side]["sha256"] == sha256(folder / name)
        assert told[side]["bytes"] == (folder / name).stat().st_size
    for step in told["steps"]:
        assert {
            "pass",
            "options",
            "seconds",
            "peak_mb",
            "kept",
            "did",
            "skipped",
            "before",
            "after",
            "numerics",
        } <= set(step)
        assert set(step["before"]) == set(step["after"]) == COST
        assert step["peak_mb"] > 10
    assert told["steps"][1]["skipped"] == [{"node": "add0", "reason": "there is nothing to do"}]
    assert told["steps"][2]["options"] == {"amount": 1.0, "asked": False, "slow": 0}
    assert set(told["numerics"]) == {"source", "feeds", "outputs"}
    assert {"name", "sqnr_db", "cosine", "max_abs", "argmax_agreement"} <= set(told["numerics"]["outputs"][0])
    assert told["metric"] == {"before": 0.5, "after": 0.5}
    assert set(told["latency"]) == {"before_ms", "after_ms", "speedup", "threads", "runs"}
    assert told["verdict"] == "pass_failed"


def test_numerics_are_measured_on_feeds_that_were_not_fitted_on(made):
    result, _ = made
    assert result.report.numerics["feeds"] == 4
    assert result.report.numerics["source"] == "data"


def test_feeds_that_are_fitted_and_checked_on_are_told(monkeypatch):
    monkeypatch.setattr(pace.Pace, "compare", by_nodes)
    few, more = (optimize(toys.model(), [Noise(0.1)], data=toys.feeds(n)).report for n in (3, 4))
    assert few.numerics["shared"] is True and "shared" not in more.numerics
    assert any(note.startswith("too few feeds to split (3)") for note in few.notes)
    assert not any(note.startswith("too few") for note in more.notes)
    assert "fitted on as well" in words.summary(few.to_json())[-1].change


def test_json_is_strict_and_written_whole(made):
    result, folder = made
    result.report.save(folder / "r.json")

    def refuse(text):
        raise ValueError(text)

    told = json.loads((folder / "r.json").read_text(), parse_constant=refuse)
    assert told == json.loads(json.dumps(result.report.to_json()))
    assert not [p for p in folder.iterdir() if p.name.startswith(".")]
    with pytest.raises(OutputError):
        result.report.save(folder / "absent" / "r.json")


def test_jsonable_takes_what_passes_put_into_details():
    import numpy as np

    value = {1: np.float32(0.5), "a": (np.int64(3), float("inf")), "b": {"y", "x"}, "c": np.arange(2), "d": Nothing()}
    assert jsonable(value) == {"1": 0.5, "a": [3, None], "b": ["x", "y"], "c": [0, 1], "d": "Nothing()"}


class Tags(HTMLParser):
    """Collects what a page loads and which tags it opens."""

    def __init__(self):
        super().__init__()
        self.tags: list[str] = []
        self.loads: list[str] = []

    def handle_starttag(self, tag, attrs):
        self.tags.append(tag)
        self.loads += [v for k, v in attrs if k in ("src", "href", "xlink:href", "data", "action")]


def test_the_page_needs_nothing_else(made):
    result, folder = made
    result.report.save(folder / "r.html")
    text = (folder / "r.html").read_text()
    seen = Tags()
    seen.feed(text)
    assert seen.loads == []
    assert not {"script", "link", "img", "iframe"} & set(seen.tags)
    assert "svg" in seen.tags
    assert not re.search(r"https?://|@import|url\(", text)
    for part in ("m.onnx", "a pass failed", "rename", "weakened", "there is nothing to do", "file size", "Recipe"):
        assert part in text, part


def test_the_page_escapes_names(made):
    told = made[0].report.to_json()
    told["steps"][0]["skipped"] = [{"node": "<script>alert(1)</script>", "reason": "&"}]
    assert "<script>" not in page.render(told)


def test_words_say_what_changed():
    assert words.size(1_092_222) == "1.09 MB"
    assert words.count(40_551_040) == "40.55 M"
    told = {
        "input": {"bytes": 1000, "params": 10, "macs": 100, "path": None},
        "output": {"bytes": 250, "params": 9, "macs": 100, "path": None},
        "latency": {"before_ms": 2.0, "after_ms": 1.0, "speedup": 2.0, "threads": 1},
        "metric": {"before": 0.8, "after": 0.79},
    }
    rows = {r.what: r for r in words.summary(told)}
    assert rows["file size"].change == "4.0x smaller"
    assert rows["parameters"].change == "10% fewer"
    assert rows["MACs"].change == "same"
    assert rows["latency of one feed (1 thread)"].change == "2.00x faster"
    assert rows["metric"].change == "-1.25%"
    told |= {"command": {"metric": "/a/task.py:accuracy"}, "tool": {"native": False, "target": "tensorrt"}}
    rows = {r.what for r in words.summary(told)}
    assert {"metric (accuracy)", "latency here, not on tensorrt (1 thread)"} <= rows
    assert words.db({"sqnr_db": -999.0, "trouble": "other shape"}) == "other shape"
    assert words.db({"sqnr_db": -999.0}) == "broken"


def test_words_say_what_a_pass_did():
    step = {"pass": "prune", "kept": True, "changed": True, "error": "", "notes": [], "skipped": [], "strength": 0.5}
    step |= {
        "did": {"channels removed": 8, "of": 64, "MACs removed": 2_742_272},
        "reason": "weakened: at full strength x",
    }
    assert words.state(step) == "weakened to 50%"
    assert words.did(step) == "channels removed: 8 of 64; MACs removed: 2.74 M; at full strength x"


def test_the_page_says_everything_once(made):
    told = made[0].report.to_json()
    told["notes"] = [*told["reasons"], "something else"]
    text = page.render(told)
    assert text.count('class="warn"') == 1 and "something else" in text


# ---------------------------------------------------------------- recipes


@pytest.fixture
def toy_passes(monkeypatch):
    """The toy passes by name, as if they were installed."""
    known = registry.collect([("toys", toys)])
    monkeypatch.setattr("onnxslim_opt.passes.spec.registry", lambda: known)


def test_a_report_holds_the_recipe_of_its_run(made, toy_passes):
    result, folder = made
    result.report.save(folder / "r.json")
    stored = recipe.load(folder / "r.json")
    assert stored["passes"] == "rename,nothing,noise:amount=1.0,raises"
    assert stored["max_drop"] == 0.5
    assert stored["min_sqnr"] == 15
    assert stored["seed"] == 3
    again = optimize(folder / "m.onnx", **{**stored, "data": toys.feeds(), "metric": lambda run: 0.5})
    again.save(folder / "again.onnx")
    assert (folder / "again.onnx").read_bytes() == (folder / "out.onnx").read_bytes()


def test_toml_recipes(tmp_path, toy_passes):
    (tmp_path / "data.py").write_text("")
    (tmp_path / "a.toml").write_text('passes = ["rename", "noise:amount=0.2"]\nmax-drop = "1%"\ndata = "data.py:f"\n')
    stored = recipe.load(tmp_path / "a.toml")
    assert stored == {"passes": "rename,noise:amount=0.2", "max_drop": "1%", "data": f"{tmp_path}/data.py:f"}
    assert Settings(**stored).checked().max_drop == 0.01
    (tmp_path / "b.toml").write_text('seed = 1\n[[pass]]\nname = "noise"\namount = 0.2\n[[pass]]\nname = "rename"\n')
    assert recipe.load(tmp_path / "b.toml") == {"seed": 1, "passes": (toys.Noise(0.2), toys.Rename())}


def test_a_pattern_with_the_signs_of_a_list_of_passes(tmp_path):
    (tmp_path / "a.toml").write_text('[[pass]]\nname = "quant"\nexclude = " mm[0-9]{1,2}:x"\n')
    stored = Settings(**recipe.load(tmp_path / "a.toml"))
    assert [p.exclude for p in stored.parsed()] == [" mm[0-9]{1,2}:x"]
    (tmp_path / "r.JSON").write_text(json.dumps({"schema": 1, "command": stored.command()}))
    assert Settings(**recipe.load(tmp_path / "r.JSON")).parsed() == stored.parsed()


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("passes = ", "is not valid toml"),
        ('pases = "a"', "unknown key 'pases', did you mean 'passes'"),
        ("[[pass]]\nratio = 1", r"every \[\[pass\]\] needs a name"),
        ('[[pass]]\nname = "noise"\namuont = 1', "no option 'amuont'"),
        ('passes = "rename"\n[[pass]]\nname = "noise"', "passes are named twice"),
        ('[[passes]]\nname = "noise"', r"is written \[\[pass\]\]"),
        ('output = "o.onnx"', "'output' is no part of a recipe"),
    ],
)
def test_a_wrong_recipe_is_refused(tmp_path, toy_passes, text, message):
    (tmp_path / "r.toml").write_text(text)
    with pytest.raises(OptionError, match=message):
        recipe.load(tmp_path / "r.toml")
    with pytest.raises(OptionError, match="cannot read recipe"):
        recipe.load(tmp_path / "absent.toml")


def test_the_command_keeps_files_by_absolute_path(tmp_path, monkeypatch, toy_passes):
    monkeypatch.chdir(tmp_path)
    (tmp_path / "d.npz").touch()
    told = Settings("rename", data="d.npz", metric="m.py:f", input_shape={"x": (1, 3)}, samples=4).command()
    assert told == {
        "passes": "rename",
        "data": str(tmp_path / "d.npz"),
        "metric": f"{tmp_path}/m.py:f",
        "input_shape": {"x": [1, 3]},
        "samples": 4,
    }


@pytest.mark.parametrize("name", ["random", "./random"])
def test_random_data_is_a_word_wherever_a_folder_has_its_name(tmp_path, monkeypatch, toy_passes, name):
    monkeypatch.chdir(tmp_path)
    (tmp_path / "random").mkdir()
    told = Settings("rename", data=name).command()
    assert told["data"] == {"random": "random", "./random": str(tmp_path / "random")}[name]
    assert Settings("rename", data=tmp_path / "random").command()["data"] == str(tmp_path / "random")
    for path, command in ((Path("r.toml"), None), (Path("r.json"), told)):
        text = f'data = "{name}"' if command is None else json.dumps({"schema": 1, "command": command})
        path.write_text(text)
        data = recipe.load(path)["data"]
        assert (data == "random") == (name == "random")
        assert data == "random" or Path(data).resolve() == tmp_path / "random"


def test_files_that_are_still_to_come_are_told_by_absolute_path(tmp_path, monkeypatch, toy_passes):
    monkeypatch.chdir(tmp_path)
    told = Settings("rename", timings="timings", exclude=re.compile("a.*")).command()
    assert told == {"passes": "rename", "timings": str(tmp_path / "timings"), "exclude": "a.*"}


@pytest.mark.parametrize(
    ("key", "value"),
    [
        *((name, value) for name in ("min_sqnr", "image_scale") for value in (math.inf, -math.inf, 10**400, [30])),
        *((name, "nan") for name in ("min_sqnr", "max_drop", "image_scale")),
        *(
            (name, [0.5, value])
            for name in ("image_mean", "image_std")
            for value in (math.nan, math.inf, True, 10**400)
        ),
        *(
            (name, value)
            for name in ("samples", "seed", "jobs", "threads", "memory_mb")
            for value in (-1, 1.5, math.nan)
        ),
        *((name, True) for name in ("min_sqnr", "max_drop", "image_scale", "image_size", "image_mean", "samples")),
        *((name, True) for name in ("seed", "jobs", "threads", "memory_mb", "exclude", "timings", "preprocess")),
        *(("input_shape", {"x": [size]}) for size in (True, -1, 0, 1.5, math.nan)),
        *(("max_drop", value) for value in (math.nan, math.inf, -0.1, "-1%")),
        *((name, 5000) for name in ("jobs", "threads")),
    ],
    ids=lambda value: str(value)[:20],
)
def test_numbers_that_make_no_sense_are_refused(key, value):
    with pytest.raises(OptionError, match=f"^{key} "):
        Settings(**{key: value}).checked()
