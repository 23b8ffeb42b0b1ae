"""Whatever is handed in wrong: exit code, one line that names the thing, nothing written, the input untouched."""

from __future__ import annotations

import os
import zlib
from pathlib import Path

import numpy as np
import onnx
import pytest
import toys
from commands import onnxslim, snapshot
from onnx import TensorProto, helper
from onnxslim_opt.ir.errors import OptionError

from onnxslim_opt import optimize

TOO_MANY = max(64, 4 * (os.cpu_count() or 1)) + 1
"""Threads, one more than are taken."""


@pytest.fixture
def room(tmp_path: Path) -> Path:
    """A folder with a sound model and sound data."""
    toys.write(tmp_path / "m.onnx")
    np.savez(tmp_path / "d.npz", x=np.random.default_rng(0).standard_normal((8, 16)).astype(np.float32))
    return tmp_path


def refused(capsys, room: Path, *arguments, code: int = 1, says: str = "") -> str:
    """Run, and hold that it was refused as promised; returns the line."""
    before = snapshot(room)
    done = onnxslim(capsys, *arguments)
    assert done.code == code, done.err
    assert snapshot(room) == before, "something was written"
    assert done.out == ""
    assert len(done.errors) == 1, done.err
    if code == 1:
        assert len(done.err.splitlines()) == 1, done.err
    assert "Traceback" not in done.err
    for word in says.split("|"):
        assert word in done.errors[0], done.errors[0]
    return done.errors[0]


def png() -> bytes:
    """A small valid picture."""

    def chunk(kind: bytes, body: bytes) -> bytes:
        return len(body).to_bytes(4, "big") + kind + body + zlib.crc32(kind + body).to_bytes(4, "big")

    head = b"\0\0\0\x01\0\0\0\x01\x08\0\0\0\0"
    return b"\x89PNG\r\n\x1a\n" + chunk(b"IHDR", head) + chunk(b"IDAT", zlib.compress(b"\0\0")) + chunk(b"IEND", b"")


def broken(kind: str) -> bytes:
    """A model file with one thing wrong."""
    proto = toys.network()
    if kind == "png":
        return png()
    if kind == "empty":
        return b""
    if kind == "truncated":
        return proto.SerializeToString()[:-200]
    if kind == "opset":
        proto.opset_import[0].version = 9999
    if kind == "domain":
        proto.graph.node[0].domain = "com.nobody"
        proto.opset_import.append(helper.make_opsetid("com.nobody", 1))
    if kind == "operator":
        proto.graph.node[0].op_type = "MatMull"
    if kind == "cycle":
        proto.graph.node[0].input[0] = "h0"
    return proto.SerializeToString()


@pytest.mark.parametrize(
    ("kind", "says"),
    [
        ("png", "bad.onnx|not an ONNX model"),
        ("empty", "bad.onnx|empty"),
        ("truncated", "bad.onnx"),
        ("opset", "9999"),
        ("domain", "com.nobody"),
        ("operator", "MatMull"),
        ("cycle", "cycle"),
    ],
)
@pytest.mark.parametrize("passes", ["fold", "fold,lowrank"])
def test_a_bad_model(capsys, room, kind, says, passes):
    (room / "bad.onnx").write_bytes(broken(kind))
    refused(capsys, room, "opt", room / "bad.onnx", "-o", room / "out.onnx", "-p", passes, says=says)


@pytest.mark.parametrize("command", ["opt", "inspect", "bench"])
def test_a_missing_model(capsys, room, command):
    refused(capsys, room, command, room / "absent.onnx", says="no such file|absent.onnx")


def test_a_folder_for_a_model(capsys, room):
    refused(capsys, room, "opt", room, "-o", room / "out.onnx", says=str(room))


DATA = {
    "name": (lambda f: {"y": f["x"], "z": f["x"]}, "lacks input 'x'"),
    "extra": (lambda f: {**f, "label": f["x"]}, "'label'|no input"),
    "shape": (lambda f: {"x": f["x"][:, :9]}, "shape [8, 9]"),
    "rank": (lambda f: {"x": f["x"][0]}, "shape [16]"),
    "type": (lambda f: {"x": f["x"].astype(np.int64)}, "int64|float32"),
    "nan": (lambda f: {"x": np.full_like(f["x"], np.nan)}, "NaN"),
    "infinite": (lambda f: {"x": np.full_like(f["x"], np.inf)}, "infinite"),
    "none": (lambda f: None, "NoneType"),
}


@pytest.mark.parametrize("kind", DATA)
def test_bad_feeds(capsys, room, kind, monkeypatch):
    change, says = DATA[kind]
    np.save(room / "x.npy", toys.feeds(4)[0]["x"])
    (room / "data.py").write_text("def feeds():\n    return FEEDS\n")
    good = toys.feeds(6)
    from onnxslim_opt.runtime import functions

    monkeypatch.setattr(
        functions,
        "_execute",
        lambda path, spec, place: type("M", (), {"feeds": staticmethod(lambda: [*good, change(good[0])])}),
    )
    arguments = ("opt", room / "m.onnx", "-o", room / "out.onnx", "-p", "fold", "--data", f"{room}/data.py:feeds")
    refused(capsys, room, *arguments, says=says)


def test_an_empty_folder_of_data(capsys, room):
    (room / "empty").mkdir()
    refused(capsys, room, "opt", room / "m.onnx", "-p", "fold", "--data", room / "empty", says="empty")


@pytest.mark.parametrize(
    ("data", "says"),
    [
        ("absent.npz", "absent.npz|does not exist"),
        ("m.onnx", "m.onnx"),
        ("data.py:nothing", "data.py|nothing"),
        ("absent.py:f", "absent.py"),
        ("data.py:raises", "ZeroDivisionError"),
        ("data.py:empty", "empty"),
        ("data.py", "data.py"),
    ],
)
def test_bad_data_sources(capsys, room, data, says):
    (room / "data.py").write_text("def raises():\n    yield {}[1/0]\ndef empty():\n    return []\n")
    refused(capsys, room, "opt", room / "m.onnx", "-p", "fold", "--data", room / data, says=says)


@pytest.mark.parametrize(
    ("metric", "says"),
    [
        ("absent.py:f", "absent.py"),
        ("metric.py:g", "'g'"),
        ("metric.py", "FILE.py:FUNC"),
        ("metric.py:f", "metric failed|KeyError"),
        ("metric.py:leaves", "metric failed|exit(7)"),
        ("metric.py:infinite", "inf|finite"),
        ("metric.py:nothing", "NaN"),
        ("leaves.py:f", "leaves.py|exit(bye)"),
    ],
)
def test_bad_metrics(capsys, room, metric, says):
    (room / "metric.py").write_text(
        "def f(run):\n    return {}['nothing']\n"
        "def leaves(run):\n    raise SystemExit(7)\n"
        "def infinite(run):\n    return float('inf')\n"
        "def nothing(run):\n    return float('nan')\n"
    )
    (room / "leaves.py").write_text("raise SystemExit('bye')\n")
    refused(capsys, room, "opt", room / "m.onnx", "-p", "fold", "--metric", room / metric, says=says)


@pytest.mark.parametrize(
    ("passes", "says"),
    [
        ("flod", "unknown pass 'flod'|did you mean 'fold'|known:"),
        ("fold:grwth=1", "no option 'grwth'|did you mean 'growth'"),
        ("fold:growth=lots", "growth=lots|expected a number"),
        ("fold:growth=inf", "growth=inf|finite"),
        ("prune:speedup=inf", "speedup=inf|finite"),
        ("quant:floor=nan", "floor=nan|finite"),
        ("simplify:growth=-1", "simplify|growth=-1.0|no share"),
        ("prune:ratio=7", "prune|ratio"),
        ("prune:ratio=-1", "prune|ratio"),
        ("prune:ratio=0.3:macs=0.3", "prune"),
        ("lowrank:energy=2", "lowrank|energy"),
        ("quant:calibrate=guess", "quant|calibrate"),
        ("fold,,fold", "empty pass name"),
        ("", "no pass is named"),
    ],
)
def test_bad_passes(capsys, room, passes, says):
    refused(capsys, room, "opt", room / "m.onnx", "-o", room / "out.onnx", "-p", passes, says=says)


@pytest.mark.parametrize(
    ("option", "value", "says", "code"),
    [
        ("--max-drop", "2", "max_drop", 1),
        ("--max-drop", "some", "max_drop", 1),
        ("--target", "toaster", "toaster", 1),
        ("--exclude", "(", "regular expression", 1),
        ("--input-shape", "y:1,16", "'y'", 1),
        ("--recipe", "absent.toml", "absent.toml", 1),
        ("--threads", TOO_MANY, f"threads is {TOO_MANY}|at most", 1),
        ("--jobs", TOO_MANY, f"jobs is {TOO_MANY}|at most", 1),
        ("--seed", "x", "--seed", 2),
        ("--samples", "0", "--samples", 2),
        ("--memory", "0", "--memory", 2),
        ("--input-shape", "x", "--input-shape|NAME:1,3,224,224", 2),
        ("--image-size", "big", "--image-size|big", 2),
        ("--image-mean", "a,b", "--image-mean|0.485,0.456,0.406", 2),
        ("--image-std", "a,b", "--image-std|0.229,0.224,0.225", 2),
        ("--image-scale", "nan", "image_scale|nan", 1),
        ("--image-mean", "0,nan,0", "image_mean|nan", 1),
        ("--image-std", "inf", "image_std|inf", 1),
        ("--samples", "99999999999", "99999999999|100000 at most", 1),
        ("--nonsense", "1", "--nonsense", 2),
        ("--data", "", "names no data", 2),
        ("--report", "r.txt", "r.txt|.json or .html", 1),
        ("--min-sqnr", "nan", "min_sqnr", 1),
        ("--min-sqnr", "inf", "min_sqnr is inf; expected a finite number", 1),
        ("--max-drop", "nan", "max_drop", 1),
        ("--max-drop", "inf%", "max_drop", 1),
    ],
)
def test_bad_options(capsys, room, option, value, says, code):
    arguments = ("opt", room / "m.onnx", "-o", room / "out.onnx", "-p", "fold", option, value)
    refused(capsys, room, *arguments, says=says, code=code)


def test_more_threads_than_can_be_meant(capsys, room):
    """Starting 100,000 takes minutes in which no signal is heard."""
    says = f"threads is {TOO_MANY}|at most"
    for command in ("inspect", "bench", "sensitivity"):
        refused(capsys, room, command, room / "m.onnx", "--threads", TOO_MANY, says=says)
    (room / "r.toml").write_text(f"threads = {TOO_MANY}\n")
    refused(capsys, room, "opt", room / "m.onnx", "--recipe", room / "r.toml", says=says)
    with pytest.raises(OptionError, match=f"threads is {TOO_MANY}; expected at most"):
        optimize(room / "m.onnx", "fold", threads=TOO_MANY)


@pytest.mark.parametrize(
    ("arguments", "says", "code"),
    [
        (("bench", "m.onnx", "--seconds", "nan"), "--seconds|nan is not a finite number", 2),
        (("bench", "m.onnx", "--seconds", "inf"), "--seconds|inf is not a finite number", 2),
        (("bench", "m.onnx", "--threads", "99999999999"), "threads is 99999999999", 1),
        (("bench", "m.onnx", "--image-mean", "nan"), "image_mean", 1),
        (("compare", "m.onnx", "m.onnx", "--min-sqnr", "nan"), "--min-sqnr|nan is not a finite number", 2),
        (("compare", "m.onnx", "m.onnx", "--samples", "99999999999"), "100000 at most", 1),
        (("sensitivity", "m.onnx", "--ratios", "0.1,nan,0.5"), "--ratios|rising list", 2),
        (("inspect", "m.onnx", "--image-scale", "inf"), "image_scale", 1),
    ],
)
def test_numbers_that_are_none(capsys, room, monkeypatch, arguments, says, code):
    monkeypatch.chdir(room)
    refused(capsys, room, *arguments, says=says, code=code)


@pytest.mark.parametrize("text", ["passes = []", "pass = []", 'passes = ""'])
def test_a_recipe_of_no_passes(capsys, room, text):
    (room / "r.toml").write_text(text)
    refused(capsys, room, "opt", room / "m.onnx", "--recipe", room / "r.toml", says="no pass is named")


def test_an_unwritable_output_is_seen_before_the_work(capsys, room, monkeypatch):
    def never(*arguments, **options):
        raise AssertionError("the work began")

    monkeypatch.setattr("onnxslim_opt.passes.optimize.prepare", never)
    (room / "file").touch()
    (room / "folder.onnx").mkdir()
    for out, says in (
        ("absent/out.onnx", "no folder"),
        ("file/out.onnx", "cannot write"),
        ("folder.onnx", "it is a folder"),
    ):
        refused(capsys, room, "opt", room / "m.onnx", "-o", room / out, "-p", "fold", says=says)
    refused(capsys, room, "opt", room / "m.onnx", "-o", "/dev/null", "-p", "fold", says="no ordinary file")
    refused(
        capsys, room, "opt", room / "m.onnx", "-p", "fold", "--report", room / "absent" / "r.json", says="no folder"
    )


@pytest.mark.skipif(os.geteuid() == 0, reason="root may write everywhere")
def test_a_folder_without_the_right_to_write(capsys, room):
    (room / "locked").mkdir(mode=0o555)
    refused(capsys, room, "opt", room / "m.onnx", "-o", room / "locked" / "out.onnx", "-p", "fold", says="cannot write")


@pytest.mark.skipif(not os.path.exists("/dev/fd"), reason="the system has no paths for pipes")
@pytest.mark.parametrize("command", ["opt", "inspect", "bench"])
def test_a_pipe_is_no_model(capsys, room, command):
    """Models are read several times, and a pipe gives its bytes once; a link to a file is as good as the file."""
    read, write = os.pipe()
    os.close(write)
    refused(capsys, room, command, f"/dev/fd/{read}", says=f"/dev/fd/{read}|a pipe or a device|save it to a file")
    os.close(read)
    (room / "link.onnx").symlink_to("m.onnx")
    assert onnxslim(capsys, "inspect", room / "link.onnx", "--no-time").code == 0


@pytest.mark.parametrize("command", ["opt", "inspect", "bench"])
def test_a_folder_is_no_model(capsys, room, monkeypatch, command):
    """Every way to a model says the same: ahead of the work, at load, and where a file goes straight to the runtime."""
    monkeypatch.chdir(room)
    for folder in (".", room):
        refused(capsys, room, command, folder, says="it is a folder")


def test_names_that_are_too_long_are_seen_before_the_work(capsys, room, monkeypatch):
    monkeypatch.setattr("onnxslim_opt.passes.optimize.prepare", None)
    onnx.save(toys.network(), room / "m.onnx", save_as_external_data=True, location="w", size_threshold=0)
    for length in (256, 255):  # of the model, of its weights
        name = "o" * (length - 5) + ".onnx"
        refused(capsys, room, "opt", room / "m.onnx", "-o", room / name, says="cannot write|too long")


def test_no_result_is_written_over_another(capsys, room):
    onnx.save(toys.network(), room / "m.onnx", save_as_external_data=True, location="w", size_threshold=0)
    arguments = ("opt", room / "m.onnx", "-p", "fold", "-o", room / "o.onnx", "--timings")
    refused(capsys, room, *arguments, room / "t.json", "--report", room / "t.json", says="same file")
    refused(capsys, room, *arguments, room / "o.onnx.data", says="same file")


def test_the_input_is_never_the_output(capsys, room):
    (room / "link.onnx").symlink_to(room / "m.onnx")
    os.link(room / "m.onnx", room / "hard.onnx")
    for out in ("m.onnx", "link.onnx", "hard.onnx", "./sub/../m.onnx"):
        (room / "sub").mkdir(exist_ok=True)
        refused(capsys, room, "opt", room / "m.onnx", "-o", room / out, "-p", "fold", says="same file")
        refused(capsys, room, room / "m.onnx", room / out, says="same file")
    refused(capsys, room, "opt", room / "m.onnx", "-p", "fold", "--report", room / "m.onnx", says="same file")


def test_no_result_is_written_over_what_the_run_reads(capsys, room):
    (room / "r.json").write_text('{"seed": 1}')
    (room / "task.py").write_text("def f(run):\n    return 1.0\n")
    (room / "set").mkdir()
    np.savez(room / "set" / "a.npz", x=np.zeros((8, 16), np.float32))
    (room / "link").symlink_to(room / "d.npz")
    own = ["opt", room / "m.onnx", "-p", "fold"]
    out = [*own, "-o", room / "o.onnx"]
    for arguments in (
        [*own, "--data", room / "d.npz", "-o", room / "d.npz"],
        [*own, "--data", room / "d.npz", "-o", room / "link"],
        [*own, "--metric", f"{room}/task.py:f", "-o", room / "task.py"],
        [*own, "--preprocess", f"{room}/task.py:f", "-o", room / "task.py"],
        [*out, "--recipe", room / "r.json", "--report", room / "r.json"],
        [*out, "--recipe", room / "r.json", "--timings", room / "r.json"],
        [*out, "--report", room / "new.json", "--report", room / "new.json"],
    ):
        refused(capsys, room, *arguments, says="same file")
    refused(capsys, room, *own, "--data", room / "set", "-o", room / "set" / "a.npz", says="one of the data")
    assert onnxslim(capsys, *own, "--data", room / "set", "-o", room / "set" / "a.onnx").code == 0
    mine = ("--data", room / "set", "--preprocess", f"{room}/task.py:f", "-o", room / "set" / "a.onnx")
    refused(capsys, room, *own, *mine, says="one of the data")


def test_external_data_outside_the_models_folder(capsys, room):
    proto = toys.network()
    (room / "secret").write_bytes(b"\0" * 4096)
    (room / "inner").mkdir()
    weight = next(t for t in proto.graph.initializer if t.name == "w0")
    weight.ClearField("raw_data")
    weight.data_location = TensorProto.EXTERNAL
    weight.external_data.add(key="location", value="../secret")
    onnx.save(proto, room / "inner" / "m.onnx")
    refused(capsys, room, "opt", room / "inner" / "m.onnx", "-p", "fold", says="../secret")


@pytest.mark.parametrize(
    ("option", "name", "text", "says"),
    [
        ("--recipe", "r.toml", "passes = ", "not valid toml"),
        ("--recipe", "r.json", "{nope", "not valid json"),
        ("--recipe", "r.json", "[1]", "expected an object"),
        ("--recipe", "r.json", '{"schema": 1, "command": []}', "expected an object"),
        ("--recipe", "r.toml", "pases = 'fold'", "did you mean 'passes'"),
        ("--timings", "t.json", "{nope", "not a timings file"),
        ("--timings", "t.json", "[1]", "not a timings file"),
    ],
)
def test_bad_files_beside_the_model(capsys, room, option, name, text, says):
    (room / name).write_text(text)
    refused(capsys, room, "opt", room / "m.onnx", "-p", "fold", option, room / name, says=f"{name}|{says}")


def test_a_model_without_a_command(capsys, room):
    done = onnxslim(capsys, "m.onnx")
    assert done.code == 2
    assert "onnxslim opt m.onnx" in done.err


def test_an_unknown_command_and_no_arguments(capsys, room):
    assert "Did you mean 'inspect'" in onnxslim(capsys, "inspct", "m").err
    assert onnxslim(capsys, "inspct", "m").code == 2
    assert onnxslim(capsys, "opt").code == 2
