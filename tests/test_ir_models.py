"""Load -> save on real models: same bytes out of the runtime, same interface, no larger file."""

import numpy as np
import onnx
import pytest
import suite
from conftest import SHARED

from onnxslim_opt import ir

NAMES = sorted(p.stem for p in (SHARED / "models").glob("*.onnx")) if SHARED.is_dir() else []
SIZES = {"silero_vad": (1, 576), "silero_vad_16k_op15": (1, 576), "ppocrv3_det": (1, 3, 64, 96)}


def random_feeds(session, name):
    rng = np.random.default_rng(0)
    feeds = {}
    for k, info in enumerate(session.get_inputs()):
        shape = [d if isinstance(d, int) and d > 0 else 1 for d in info.shape]
        if k == 0:
            shape = SIZES.get(name, shape)
        is_float = info.type == "tensor(float)"
        feeds[info.name] = rng.standard_normal(shape).astype(np.float32) if is_float else np.array(16000)
    return feeds


@pytest.mark.parametrize("name", NAMES)
def test_round_trip(name):
    path = SHARED / "models" / f"{name}.onnx"
    model = ir.load(path)
    data = ir.to_bytes(model)
    before, after = suite.session(path.read_bytes(), True), suite.session(data, True)
    assert suite.interface(before) == suite.interface(after)
    feeds = random_feeds(before, name)
    assert suite.same(before.run(None, feeds), after.run(None, feeds))
    assert len(data) <= path.stat().st_size * 1.01
    assert abs(ir.cost.of(model).bytes - len(data)) < 0.02 * len(data)
    assert ir.to_bytes(ir.from_bytes(data)) == data
    assert [i.name for i in onnx.load(path).graph.input] == [i.name for i in onnx.load_from_string(data).graph.input]
