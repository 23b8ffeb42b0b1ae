"""The memory that a run may take: the bare process, three times the model, one batch's activations, and `--memory`."""

import os
import subprocess
import sys
import tracemalloc

import numpy as np
import onnx
import pytest
from onnx import TensorProto, helper, numpy_helper
from onnxslim_opt.passes.optimize import optimize

WIDTH, BLOCKS, TOKENS = 1024, 6, 16
BARE_MB = 107  # a process that has imported everything and run a small model
MEMORY_MB = 128
PEAK = """
from onnxslim_opt.cli import main
from onnxslim_opt.passes.transaction import peak_mb
try:
    main()
except SystemExit as e:
    assert e.code == 0, e.code
print("PEAK", peak_mb())
"""


def stack(path):
    """Residual blocks of two matmuls: 200 MB of weights and hardly any activations."""
    rng, nodes, weights, x = np.random.default_rng(0), [], [], "x"
    for k in range(BLOCKS):
        for name, shape in ((f"up{k}", (WIDTH, 4 * WIDTH)), (f"down{k}", (4 * WIDTH, WIDTH))):
            value = (rng.standard_normal(shape) / np.sqrt(shape[0])).astype(np.float32)
            weights.append(numpy_helper.from_array(value, name))
        nodes += [
            helper.make_node("MatMul", [x, f"up{k}"], [f"h{k}"]),
            helper.make_node("Relu", [f"h{k}"], [f"r{k}"]),
            helper.make_node("MatMul", [f"r{k}", f"down{k}"], [f"o{k}"]),
            helper.make_node("Add", [x, f"o{k}"], [f"x{k}"]),
        ]
        x = f"x{k}"
    shape = ["N", TOKENS, WIDTH]
    ends = [helper.make_tensor_value_info(n, TensorProto.FLOAT, shape) for n in ("x", x)]
    graph = helper.make_graph(nodes, "stack", ends[:1], ends[1:], weights)
    onnx.save(helper.make_model(graph, opset_imports=[helper.make_opsetid("", 17)], ir_version=8), path)
    return os.path.getsize(path) >> 20


def peak_of(tmp_path, passes, data):
    """The highest resident memory, in MiB, of a run on m.onnx (with feeds.npz) in a process of its own."""
    options = ["--data", str(tmp_path / "feeds.npz")] if data else []
    return peak_with(tmp_path / "m.onnx", tmp_path, "-p", passes, "--memory", str(MEMORY_MB), *options)


def peak_with(model, tmp_path, *options):
    """The highest resident memory, in MiB, of `opt` with these options in a process of its own."""
    args = ["opt", str(model), "-o", str(tmp_path / "out.onnx"), *options]
    env = {**os.environ, "OPENBLAS_NUM_THREADS": "1"}
    done = subprocess.run([sys.executable, "-c", PEAK, *args], capture_output=True, text=True, env=env, check=True)
    return float(done.stdout.rsplit("PEAK", 1)[1])


def flattened(path, side):
    """A convolution, a Flatten of 64 · side² and the wide matrix behind it, which is nearly the whole model."""
    rng, wide = np.random.default_rng(0), 64 * side * side
    shapes = {"k": (64, 3, 3, 3), "w": (wide, 1024), "v": (1024, 10)}
    nodes = [
        helper.make_node("Conv", ["x", "k"], ["c"], kernel_shape=[3, 3], pads=[1, 1, 1, 1]),
        helper.make_node("Relu", ["c"], ["r"]),
        helper.make_node("Flatten", ["r"], ["f"]),
        helper.make_node("Gemm", ["f", "w"], ["g"]),
        helper.make_node("Relu", ["g"], ["h"]),
        helper.make_node("Gemm", ["h", "v"], ["y"]),
    ]
    values = {n: rng.standard_normal(s, dtype=np.float32) / np.float32(np.sqrt(s[0])) for n, s in shapes.items()}
    x = helper.make_tensor_value_info("x", TensorProto.FLOAT, ["N", 3, side, side])
    y = helper.make_tensor_value_info("y", TensorProto.FLOAT, ["N", 10])
    graph = helper.make_graph(nodes, "wide", [x], [y], [numpy_helper.from_array(v, n) for n, v in values.items()])
    onnx.save(helper.make_model(graph, opset_imports=[helper.make_opsetid("", 17)], ir_version=8), path)
    return rng.standard_normal((32, 3, side, side)).astype(np.float32)


@pytest.mark.parametrize("passes", ["prune:ratio=0.25", "prune:ratio=0.25:criterion=l1", "prune:lossless=true"])
def test_no_array_as_large_as_the_square_of_a_layers_width_is_made(passes, tmp_path):
    data = flattened(tmp_path / "m.onnx", 8)  # 4,096 columns: their second moments are 134 MB a copy
    np.savez(tmp_path / "x.npz", x=data)
    tracemalloc.start()
    try:
        optimize(tmp_path / "m.onnx", passes, data=str(tmp_path / "x.npz"), memory_mb=64)
        assert tracemalloc.get_traced_memory()[1] < 160 << 20
    finally:
        tracemalloc.stop()


def long_chain(path, links=40):
    """Relu after Relu of 8 MB tensors: two of them are alive at once."""
    nodes = [helper.make_node("Relu", [f"t{k}"], [f"t{k + 1}"]) for k in range(links)]
    ends = [helper.make_tensor_value_info(n, TensorProto.FLOAT, ["N", 1 << 21]) for n in ("t0", f"t{links}")]
    graph = helper.make_graph(nodes, "chain", ends[:1], ends[1:])
    onnx.save(helper.make_model(graph, opset_imports=[helper.make_opsetid("", 17)], ir_version=8), path)


CHAIN = """
import sys
import numpy as np
from onnxslim_opt import ir
from onnxslim_opt.passes.transaction import peak_mb
from onnxslim_opt.runtime import probe
model, feed = ir.load(sys.argv[1]), {"t0": np.zeros((1, 1 << 21), np.float32)}
before = peak_mb()
assert len(probe.shapes(model, feed)) == 41
print("PEAK", peak_mb() - before)
"""


@pytest.mark.skipif(sys.platform != "linux", reason="peaks are read as Linux counts them")
def test_shapes_are_probed_in_the_memory_of_what_is_alive_at_once(tmp_path):
    long_chain(tmp_path / "m.onnx")
    done = subprocess.run(
        [sys.executable, "-c", CHAIN, str(tmp_path / "m.onnx")], capture_output=True, text=True, check=True
    )
    assert float(done.stdout.rsplit("PEAK", 1)[1]) < 100


@pytest.mark.slow
@pytest.mark.skipif(sys.platform != "linux", reason="peaks are read as Linux counts them")
@pytest.mark.parametrize("data", [False, True], ids=["random", "data"])
@pytest.mark.parametrize("passes", ["quant", "prune:ratio=0.25", "lowrank", "prune:ratio=0.25,lowrank,quant"])
def test_a_wide_layer_stays_within_the_documented_memory(passes, data, tmp_path):
    np.savez(tmp_path / "feeds.npz", x=flattened(tmp_path / "m.onnx", 16))
    peak = peak_of(tmp_path, passes, data)
    assert peak <= BARE_MB + 3 * (os.path.getsize(tmp_path / "m.onnx") >> 20) + MEMORY_MB, peak


@pytest.mark.slow
@pytest.mark.skipif(sys.platform != "linux", reason="peaks are read as Linux counts them")
@pytest.mark.parametrize("data", [False, True], ids=["random", "data"])
@pytest.mark.parametrize("passes", ["quant", "prune:ratio=0.25", "lowrank", "prune:ratio=0.25,lowrank,quant"])
def test_a_run_stays_within_the_documented_memory(passes, data, tmp_path):
    size = stack(tmp_path / "m.onnx")
    feeds = np.random.default_rng(1).standard_normal((16, TOKENS, WIDTH)).astype(np.float32)
    np.savez(tmp_path / "feeds.npz", x=feeds)
    peak = peak_of(tmp_path, passes, data)
    activations = TOKENS * WIDTH * 4 * (1 + 5 * BLOCKS * 4) >> 20
    assert peak <= BARE_MB + 3 * size + activations + MEMORY_MB, peak


@pytest.mark.slow
@pytest.mark.skipif(sys.platform != "linux", reason="peaks are read as Linux counts them")
def test_refit_after_refit_stays_within_the_documented_memory(shared, tmp_path):
    model, tasks = shared / "models/squeezenet1_1.onnx", f"{shared / 'tasks.py'}:squeezenet1_1"
    limit = ("--data", f"{tasks}_data", "--metric", f"{tasks}_metric", "--max-drop", "1%")
    peak = peak_with(model, tmp_path, "-p", "prune:ratio=0.25", *limit)
    assert peak <= BARE_MB + 3 * (os.path.getsize(model) >> 20) + 512, peak
