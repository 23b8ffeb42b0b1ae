"""Calibration in constant memory: what is held does not depend on how many feeds there are."""

import os
import subprocess
import sys
from pathlib import Path

import pytest
from quant_nets import Net

from onnxslim_opt import ir

SIZE = 512
FEEDS = f"""
import numpy as np

base = np.random.default_rng(0).standard_normal((1, 3, {SIZE}, {SIZE})).astype(np.float32)


def few():
    yield from _feeds(60)


def many():
    yield from _feeds(240)


def _feeds(count):
    for k in range(count):
        yield {{"x": base * np.float32(1 + k % 7)}}
"""


def small_cnn():
    """Three convolutions on [1, 3, SIZE, SIZE]; the largest activation has 8 channels at full size."""
    net = Net()
    a = net.add("Relu", net.conv("x", 3, 8, out="c0"), out="a")
    p = net.add("MaxPool", a, out="p", kernel_shape=[4, 4], strides=[4, 4])
    b = net.add("Relu", net.conv(p, 8, 16, out="c1"), out="b")
    c = net.add("Relu", net.conv(b, 16, 32, out="c2"), out="c")
    net.gemm(net.add("Flatten", net.add("GlobalAveragePool", c, out="g"), out="f"), 32, 10, out="y")
    return net.model({"x": [1, 3, SIZE, SIZE]}, ["y"])


def peak_mb(folder: Path, feeds: str) -> int:
    """Peak memory of `onnxslim opt -p quant` as a process of its own."""
    line = [sys.executable, "-m", "onnxslim_opt", "opt", "m.onnx", "-o", f"{feeds}.onnx", "-q"]
    line += ["-p", "quant:compute=all", "--data", f"feeds.py:{feeds}", "--memory", "256"]
    child = subprocess.Popen(line, cwd=folder, stdout=subprocess.DEVNULL, stderr=subprocess.PIPE, text=True)
    errors = child.stderr.read() if child.stderr else ""
    _, status, usage = os.wait4(child.pid, 0)
    assert os.waitstatus_to_exitcode(status) == 0, errors
    return usage.ru_maxrss // 1024


@pytest.mark.slow
@pytest.mark.skipif(sys.platform != "linux", reason="ru_maxrss counts kilobytes on Linux only")
def test_four_times_the_feeds_take_no_more_memory(tmp_path):
    (tmp_path / "feeds.py").write_text(FEEDS)
    ir.save(small_cnn(), tmp_path / "m.onnx")
    few, many = (peak_mb(tmp_path, feeds) for feeds in ("few", "many"))
    feed_mb = 3 * SIZE * SIZE * 4 >> 20
    assert many < few + 8 * feed_mb, (few, many)  # of 180 feeds more
    assert many < 1000
