"""The command line: every command on small models, recipes, determinism, and what a stopped run leaves behind."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import numpy as np
import onnx
import onnxruntime as ort
import pytest
import toys
from commands import onnxslim, snapshot
from onnxslim_opt.cli import guard
from onnxslim_opt.cli.app import cli
from onnxslim_opt.ir.errors import OutputError
from onnxslim_opt.passes import registry

TESTS = Path(__file__).resolve().parent


@pytest.fixture
def room(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A folder with a model, data and a metric; commands run in it."""
    toys.write(tmp_path / "m.onnx", layers=4)
    rows = np.concatenate([f["x"] for f in toys.feeds(4)])
    np.savez(tmp_path / "d.npz", x=rows)
    (tmp_path / "task.py").write_text(
        "import numpy as np\n"
        "X = np.load(__file__.replace('task.py', 'd.npz'))['x']\n"
        "def data():\n    return [{'x': X[k:k + 4]} for k in range(0, len(X), 4)]\n"
        "def metric(run):\n    return float(run({'x': X})['logits'].std())\n"
    )
    monkeypatch.chdir(tmp_path)
    return tmp_path


@pytest.fixture
def toy_passes(monkeypatch):
    """The toy passes beside the real ones."""
    real = registry.registry()
    known = registry.Registry({**real.passes, **registry.collect([("toys", toys)]).passes}, {})
    for module in ("spec", "pipeline"):
        monkeypatch.setattr(f"onnxslim_opt.passes.{module}.registry", lambda: known)


def outputs(path: Path) -> np.ndarray:
    """The model's output on a fixed input, by ONNX Runtime alone."""
    session = ort.InferenceSession(str(path), providers=["CPUExecutionProvider"])
    return session.run(None, toys.feeds(1)[0])[0]


# ---------------------------------------------------------------- opt


def test_opt_writes_beside_the_model_by_default(capsys, room):
    done = onnxslim(capsys, "opt", "m.onnx", "-p", "fold,clean")
    assert done.code == 0, done.err
    np.testing.assert_allclose(outputs(room / "m.slim.onnx"), outputs(room / "m.onnx"), rtol=1e-5, atol=1e-6)
    for word in ("file size", "latency of one feed (1 thread)", "fold", "clean", "done: m.slim.onnx"):
        assert word in done.out, done.out
    assert "Traceback" not in done.err


def test_the_bare_form(capsys, room):
    done = onnxslim(capsys, "m.onnx", "small.onnx")
    assert done.code == 0, done.err
    np.testing.assert_allclose(outputs(room / "small.onnx"), outputs(room / "m.onnx"), rtol=1e-5, atol=1e-6)
    assert "simplify" in done.out


def test_a_full_run_with_report(capsys, room, toy_passes):
    data = ("--data", "task.py:data", "--metric", "task.py:metric", "--max-drop", "20%", "--min-sqnr", "12")
    reports = ("--report", "r.json", "--report", "r.html")
    done = onnxslim(capsys, "opt", "m.onnx", "-o", "o.onnx", "-p", "noise:amount=0.4", *data, *reports)
    assert done.code == 0, done.err
    told = json.loads((room / "r.json").read_text())
    assert told["verdict"] == "ok"
    assert told["command"]["data"] == f"{room}/task.py:data"
    assert told["metric"]["after"] >= 0.8 * told["metric"]["before"]
    assert told["numerics"]["outputs"][0]["sqnr_db"] >= 12
    assert (room / "r.html").read_text().startswith("<!doctype html>")
    assert "metric" in done.out


def test_what_cannot_be_written_after_the_model_does_not_cost_the_model(capsys, room, toy_passes, monkeypatch):
    def full(*arguments):
        raise OutputError("cannot write it: No space left on device")

    monkeypatch.setattr("onnxslim_opt.runtime.timings.Timings.save", full)
    done = onnxslim(capsys, "opt", "m.onnx", "-o", "o.onnx", "-p", "fold", "--timings", "t.json")
    assert done.code == 0
    assert "No space left on device: the next run will time everything again" in done.err
    monkeypatch.setattr("onnxslim_opt.passes.report.Report.save", full)
    done = onnxslim(capsys, "opt", "m.onnx", "-o", "p.onnx", "-p", "fold", "--report", "r.json")
    assert done.code == 1
    assert "No space left on device; the model itself was written to p.onnx" in done.err
    np.testing.assert_allclose(outputs(room / "p.onnx"), outputs(room / "m.onnx"), rtol=1e-5, atol=1e-6)


def test_dump_makes_its_folder(capsys, room, toy_passes):
    arguments = ("opt", "m.onnx", "-o", "o.onnx", "-p", "rename", "--dump")
    done = onnxslim(capsys, *arguments, "new/folder")
    assert done.code == 0, done.err
    dumped = sorted((room / "new/folder").iterdir())
    assert dumped[-1].name.endswith("rename.onnx"), dumped
    assert onnx.load(dumped[-1]).graph.node[0].name == "new_matmul0"
    (room / "file").touch()
    done = onnxslim(capsys, *arguments, "file/inner")
    assert done.code == 1
    assert "cannot make the folder file/inner" in done.err


def test_a_failing_pass_exits_3_with_the_best_model(capsys, room, toy_passes):
    done = onnxslim(capsys, "opt", "m.onnx", "-o", "o.onnx", "-p", "rename,raises", "--report", "r.json")
    assert done.code == 3
    assert "a pass failed" in done.out
    assert onnx.load(room / "o.onnx").graph.node[0].name == "new_matmul0"
    assert json.loads((room / "r.json").read_text())["verdict"] == "pass_failed"
    assert "Traceback" not in done.err
    assert "Traceback" in onnxslim(capsys, "opt", "m.onnx", "-o", "o.onnx", "-p", "raises", "-v").err


def test_no_data_is_said_loudly_and_once(capsys, room, toy_passes):
    done = onnxslim(capsys, "opt", "m.onnx", "-o", "o.onnx", "-p", "noise", "--report", "r.json")
    assert done.code == 0
    assert done.err.count("NO REAL DATA") == 1
    assert json.loads((room / "r.json").read_text())["numerics"]["source"] == "random"


def test_quiet_says_nothing(capsys, room, toy_passes):
    done = onnxslim(capsys, "opt", "m.onnx", "-o", "o.onnx", "-p", "noise", "-q")
    assert (done.code, done.out, done.err) == (0, "", "")


def test_quiet_says_why_the_exit_code_is_3(capsys, room, toy_passes):
    done = onnxslim(capsys, "opt", "m.onnx", "-o", "o.onnx", "-p", "raises", "-q", "--report", "r.json")
    assert (done.code, done.out) == (3, "")
    reasons = json.loads((room / "r.json").read_text())["reasons"]
    assert reasons and done.err.splitlines() == [" ".join(r.split()) for r in reasons]


def test_dry_run_changes_nothing(capsys, room, toy_passes):
    before = snapshot(room)
    done = onnxslim(
        capsys, "opt", "m.onnx", "-p", "noise:amount=0.1", "--data", "d.npz", "--dry-run", "--report", "r.json"
    )
    assert done.code == 0
    assert "noise:amount=0.1" in done.out
    assert "added" in done.out, "simplify runs first"
    assert snapshot(room) == before


def test_a_recipe_is_below_the_command_line(capsys, room, toy_passes):
    (room / "r.toml").write_text('passes = "noise:amount=0.1"\ndata = "task.py:data"\nseed = 5\nthreads = 2\n')
    done = onnxslim(capsys, "opt", "m.onnx", "-o", "o.onnx", "--recipe", "r.toml", "--seed", "0", "--report", "r.json")
    assert done.code == 0, done.err
    told = json.loads((room / "r.json").read_text())
    assert told["command"] == {"passes": "noise:amount=0.1", "data": f"{room}/task.py:data", "threads": 2}
    again = onnxslim(capsys, "opt", "m.onnx", "-o", "o2.onnx", "--recipe", "r.json")
    assert again.code == 0, again.err
    assert (room / "o2.onnx").read_bytes() == (room / "o.onnx").read_bytes()


def test_the_same_timings_give_the_same_bytes(capsys, room):
    for out in ("a.onnx", "b.onnx"):
        arguments = (
            "opt",
            "m.onnx",
            "-o",
            out,
            "-p",
            "lowrank:rank=0.5,quant",
            "--data",
            "d.npz",
            "--timings",
            "t.json",
        )
        assert onnxslim(capsys, *arguments, "--report", f"{out}.json").code == 0
    assert (room / "a.onnx").read_bytes() == (room / "b.onnx").read_bytes()
    first, second = (json.loads((room / f"{n}.onnx.json").read_text()) for n in "ab")
    assert first["latency"] == second["latency"]
    assert [s["strength"] for s in first["steps"]] == [s["strength"] for s in second["steps"]]


# ---------------------------------------------------------------- the other commands


def test_help_is_fast():
    start = time.perf_counter()
    done = subprocess.run([sys.executable, "-m", "onnxslim_opt", "--help"], capture_output=True, text=True, cwd=TESTS)
    assert time.perf_counter() - start < 2.0, "half a second on a quiet machine"
    assert done.returncode == 0
    assert "opt" in done.stdout and "IN OUT" in done.stdout


def test_inspect(capsys, room):
    done = onnxslim(capsys, "inspect", "m.onnx")
    assert done.code == 0, done.err
    for word in ("x: float32[N,16]", "MatMul", "parameters", "MACs", "latency", "ai.onnx 17"):
        assert word in done.out, done.out
    row = next(line for line in done.out.splitlines() if line.startswith("MatMul"))
    assert row.split()[1:] == ["4", "848", "848"], "16*16*3 + 16*5, for one row"


def test_compare_names_the_first_divergence(capsys, room):
    proto = onnx.load("m.onnx")
    weight = next(t for t in proto.graph.initializer if t.name == "w2")
    weight.CopyFrom(onnx.numpy_helper.from_array(onnx.numpy_helper.to_array(weight) * 1.1, "w2"))
    onnx.save(proto, "other.onnx")
    done = onnxslim(capsys, "compare", "m.onnx", "other.onnx", "--data", "d.npz")
    assert done.code == 0, done.err
    names = [line.split()[0] for line in done.out.splitlines() if line.strip()]
    assert names[names.index("tensor") + 1] == "m2", done.out
    assert "logits" in names
    same = onnxslim(capsys, "compare", "m.onnx", "m.onnx")
    assert "0 differ" in same.out and "exact" in same.out


def test_compare_says_what_is_not_in_both(capsys, room):
    proto = onnx.load("m.onnx")
    proto.graph.node[-1].output[0] = proto.graph.output[0].name = "scores"
    onnx.save(proto, "other.onnx")
    done = onnxslim(capsys, "compare", "m.onnx", "other.onnx", "--data", "d.npz")
    assert (done.code, done.out) == (1, "")
    assert done.errors == ["error: A and B share no output: A has logits, B has scores"]
    kept = proto.graph.node[-2].output[0]
    proto.graph.output.append(onnx.helper.make_tensor_value_info(kept, onnx.TensorProto.FLOAT, None))
    onnx.save(proto, "two.onnx")
    some = onnxslim(capsys, "compare", "two.onnx", "m.onnx", "--data", "d.npz", "--outputs-only")
    assert some.code == 0, some.err
    assert some.out.splitlines()[-1] == "outputs of A that B lacks: scores"
    assert kept in some.out


def test_compare_tells_options_without_effect(capsys, room):
    done = onnxslim(capsys, "compare", "m.onnx", "m.onnx", "--data", "d.npz", "--image-mean", "0.5")
    assert done.err.splitlines() == ["--image-mean has no effect: the data is no folder of images"]
    done = onnxslim(capsys, "compare", "m.onnx", "m.onnx", "--data", "d.npz", "--input-shape", "x:8,16")
    assert done.err.splitlines() == ["--input-shape has no effect: it is for random feeds"]


def test_compare_says_when_a_shape_differs(capsys, room):
    """Pruned channels are no damage by themselves, so they are not called broken."""
    toys.write(room / "wide.onnx", layers=4)
    proto = onnx.load("wide.onnx")
    weights = {t.name: t for t in proto.graph.initializer}
    for name, axis in (("w1", 1), ("b1", 0), ("w2", 0)):
        tensor = weights[name]
        array = np.take(onnx.numpy_helper.to_array(tensor), range(12), axis)
        tensor.CopyFrom(onnx.numpy_helper.from_array(array, tensor.name))
    del proto.graph.value_info[:]
    onnx.save(proto, "narrow.onnx")
    done = onnxslim(capsys, "compare", "m.onnx", "narrow.onnx", "--data", "d.npz")
    assert done.code == 0, done.err
    row = next(line for line in done.out.splitlines() if line.startswith("m1 "))
    assert row.split()[1:] == ["MatMul", "other", "shape"], done.out
    assert "broken" not in done.out and "have another shape" in done.out


def test_macs_of_groups_are_those_of_one_sample(capsys, room):
    """A dynamic batch is looked at with several samples; the figures stay comparable to those of `inspect`."""
    done = onnxslim(capsys, "inspect", "m.onnx", "--groups")
    assert done.code == 0, done.err
    rows = [line.split() for line in done.out.splitlines() if line[:1].isdigit() and "groups" not in line]
    assert rows, done.out
    assert sorted(row[3] for row in rows) == ["336", "512", "512"], "16*16 + 16*5 and 16*16 + 16*16"


def test_bench(capsys, room):
    done = onnxslim(capsys, "bench", "m.onnx", "m.onnx", "--seconds", "0.2")
    assert done.code == 0, done.err
    assert done.out.count("1.00x") == 2, "the same content is the same speed"


def test_passes(capsys):
    done = onnxslim(capsys, "passes")
    assert done.code == 0
    for name in registry.registry().passes:
        assert name in done.out
    one = onnxslim(capsys, "passes", "fold")
    assert "growth" in one.out and "float" in one.out
    wrong = onnxslim(capsys, "passes", "flod")
    assert wrong.code == 1 and "did you mean 'fold'" in wrong.err


def test_zoo(capsys, room):
    assert "digits_resnet" in onnxslim(capsys, "zoo", "list").out
    done = onnxslim(capsys, "zoo", "build", "digits_resnet", "-o", "z.onnx")
    assert done.code == 0, done.err
    onnx.checker.check_model(onnx.load("z.onnx"))
    assert onnxslim(capsys, "zoo", "build", "nope").code == 1


@pytest.mark.parametrize("view", ["--groups", "--quant"])
def test_inspect_shows_what_passes_see(capsys, room, view):
    done = onnxslim(capsys, "inspect", "m.onnx", view)
    assert done.code == 0, done.err
    assert done.out.strip()


def test_inspect_shows_both_views_and_checks_data_it_does_not_run(capsys, room):
    done = onnxslim(capsys, "inspect", "m.onnx", "--groups", "--quant")
    assert done.code == 0, done.err
    assert "groups of channels that may go" in done.out and "nodes have integer kernels" in done.out
    for view in ("--quant", "--no-time"):
        wrong = onnxslim(capsys, "inspect", "m.onnx", view, "--data", "absent.npz")
        assert (wrong.code, wrong.out) == (1, "") and "absent.npz" in wrong.err
    assert "latency" not in onnxslim(capsys, "inspect", "m.onnx", "--no-time", "--data", "d.npz").out


def test_ratios_that_cannot_be_read_are_told_by_name(capsys, room):
    for text in ("a,b", "0.5,0.1"):
        done = onnxslim(capsys, "sensitivity", "m.onnx", "--ratios", text)
        assert done.code == 2 and "'--ratios'" in done.errors[0] and "0.125,0.25,0.5" in done.errors[0]


# ---------------------------------------------------------------- stopped


SLOW = """
import sys, time
sys.path.insert(0, {tests!r})
import numpy as np
def data():
    for k in range(8):
        yield {{"x": np.ones((1, 16), np.float32) * k}}
def metric(run):
    open("working", "w").close()
    time.sleep(30)
    return 1.0
"""


@pytest.mark.parametrize(
    ("number", "code", "line"),
    [
        (signal.SIGINT, 130, "error: interrupted; no output was left half-written"),
        (signal.SIGTERM, 143, "error: terminated; no output was left half-written"),
        (signal.SIGKILL, -9, ""),
    ],
)
def test_a_stopped_run_leaves_nothing_half_written(room, number, code, line):
    (room / "slow.py").write_text(SLOW.format(tests=str(TESTS)))
    before = snapshot(room)
    data = ["--data", "slow.py:data", "--metric", "slow.py:metric", "--report", "r.json"]
    command = [sys.executable, "-m", "onnxslim_opt", "opt", "m.onnx", "-o", "o.onnx", "-p", "fold", *data]
    child = subprocess.Popen(
        command,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
        start_new_session=True,
        preexec_fn=_hear_interrupts,
    )
    deadline = time.monotonic() + 60
    while not (room / "working").exists() and child.poll() is None and time.monotonic() < deadline:
        time.sleep(0.02)
    os.kill(child.pid, number)
    out, err = child.communicate(timeout=60)
    assert child.returncode == code, err
    assert (out, err.strip()) == ("", line)
    (room / "working").unlink()
    assert snapshot(room) == before


def _hear_interrupts() -> None:
    """Tests that run in the background have SIGINT ignored, and a child would inherit that."""
    signal.signal(signal.SIGINT, signal.SIG_DFL)


WRITING = """
import os, sys, time
from onnxslim_opt.ir import files
from onnxslim_opt.cli import main
flush = os.fsync
def slow(number):
    open("working", "w").close()
    time.sleep(30)
    flush(number)
files.os.fsync = slow
main(["opt", "m.onnx", "-o", "o.onnx", "-p", "fold"])
"""


def test_a_run_that_is_killed_while_it_writes_leaves_the_old_output(room):
    (room / "o.onnx").write_bytes(b"what stood there before")
    child = subprocess.Popen([sys.executable, "-c", WRITING], stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)
    deadline = time.monotonic() + 60
    while not (room / "working").exists() and child.poll() is None and time.monotonic() < deadline:
        time.sleep(0.02)
    child.kill()
    child.wait(60)
    assert (room / "o.onnx").read_bytes() == b"what stood there before"


@pytest.mark.parametrize("dead", ["stdout", "stderr"])
def test_who_stops_listening_ends_no_run(room, toy_passes, monkeypatch, dead):
    read, write = os.pipe()
    os.close(read)
    with open(write, "w") as left:
        stream = guard.patient(left)
        monkeypatch.setattr(sys, dead, stream)
        words = ["opt", "m.onnx", "-p", "raises", "-o", "out.onnx"]
        assert guard.guarded(lambda: cli.main(args=words, standalone_mode=False)) == 3
        assert guard.guarded(lambda: cli.main(args=["opt", "absent.onnx"], standalone_mode=False)) == 1
        stream.flush()
    assert (room / "out.onnx").is_file()


@pytest.mark.skipif(not hasattr(os, "openpty"), reason="the system has no terminals of this kind")
def test_a_terminal_that_is_closed_ends_no_run():
    terminal, slave = os.openpty()
    with open(slave, "w") as left:
        stream = guard.patient(left)
        os.close(terminal)
        stream.write("nobody reads this\n")
        stream.flush()


@pytest.mark.skipif(not os.path.exists("/dev/full"), reason="the system has no device that is full")
@pytest.mark.parametrize("dead", ["stdout", "stderr"])
def test_a_full_disk_behind_a_stream_costs_its_text_alone(room, dead):
    command = [sys.executable, "-m", "onnxslim_opt", "opt", "m.onnx", "-o", "out.onnx", "-p", "fold"]
    with open("/dev/full", "w") as full:
        streams = {"stdout": subprocess.PIPE, "stderr": subprocess.PIPE, dead: full}
        done = subprocess.run(command, text=True, **streams)
    assert (room / "out.onnx").is_file()
    assert done.returncode == (1 if dead == "stdout" else 0)
    if dead == "stdout":
        lines = [line for line in done.stderr.splitlines() if not line.startswith("fold: ")]
        assert lines == ["error: cannot write standard output: No space left on device"]


def test_an_encoding_that_lacks_a_sign_ends_no_run():
    read, write = os.pipe()
    with open(write, "w", encoding="cp1252") as plain:
        guard.patient(plain).write("17 \u2192 20\n")
    assert os.read(read, 99) == b"17 ? 20\n"
    os.close(read)


def test_an_exit_from_within_is_no_success():
    assert [guard.guarded(lambda code=code: sys.exit(code)) for code in (None, 0, 4, "bye")] == [1, 1, 4, 1]
