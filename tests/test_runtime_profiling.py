"""What kernels cost, by node, from ONNX Runtime's profiler."""

import numpy as np
from onnxslim_opt.runtime import Timings, profiling
from quant_nets import Net, cnn, images


def test_every_kernel_goes_to_the_node_that_it_ends_with():
    model = cnn()
    found = profiling.kernels(model, images(1)[0])
    ops = {n.name: n.op for n in model.graph.nodes}
    assert set(found) <= set(ops)
    assert {ops[n] for n in found} >= {"Relu", "MaxPool", "Gemm"}  # each Conv vanished into the Relu behind it
    assert all(v >= 0 for v in found.values())


def test_the_larger_layer_costs_more_and_names_come_back():
    net = Net()
    small = net.conv("x", 8, 8, 1, out="small")
    net.conv(small, 8, 256, 3, out="large")
    model = net.model({"x": [1, 8, 48, 48]}, ["large"])
    before = [n.name for n in model.graph.nodes]
    found = profiling.kernels(model, {"x": np.ones((1, 8, 48, 48), np.float32)})
    assert found["large_node"] > 3 * found["small_node"]
    assert [n.name for n in model.graph.nodes] == before


def test_a_recorded_profile_is_replayed():
    model, timings = cnn(), Timings()
    first = profiling.kernels(model, images(1)[0], timings=timings)
    assert profiling.kernels(model, images(1)[0], timings=timings) == first
    assert timings.replayed == 1
