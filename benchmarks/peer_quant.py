"""Quantize one model with another tool, in that tool's own interpreter, for `benchmarks/quant.py`.

    python peer_quant.py CONFIG MODEL.onnx FEEDS_DIR OUT.onnx

FEEDS_DIR holds one .npz a feed, {input name: array}. The configurations are each tool's best known for ONNX Runtime on
a CPU: weights per channel, activations unsigned. Prints one line of JSON: seconds of the tool alone and peak memory.
"""

import json
import sys
import time
from pathlib import Path

import numpy as np
import onnx


class Reader:
    """Calibration feeds as ONNX Runtime's quantizer asks for them."""

    def __init__(self, folder):
        self.files = sorted(Path(folder).glob("*.npz"))
        self.rewind()

    def rewind(self):
        self.left = iter(self)

    def get_next(self):
        return next(self.left, None)

    def __len__(self):
        return len(self.files)

    def __iter__(self):
        for file in self.files:
            with np.load(file) as feed:
                yield {name: feed[name] for name in feed.files}


def ort(model, feeds, out, method):
    """onnxruntime.quantization: u8 activations, s8 weights per channel."""
    from onnxruntime.quantization import CalibrationMethod, QuantFormat, QuantType, quantize_static
    from onnxruntime.quantization.shape_inference import quant_pre_process

    ready = f"{out}.pre.onnx"
    try:
        quant_pre_process(model, ready)
    except Exception:  # symbolic shape inference refuses many models, and needs a package that may be absent
        quant_pre_process(model, ready, skip_symbolic_shape=True)
    quantize_static(
        ready,
        out,
        Reader(feeds),
        quant_format=QuantFormat.QDQ,
        per_channel=True,
        activation_type=QuantType.QUInt8,
        weight_type=QuantType.QInt8,
        calibrate_method=getattr(CalibrationMethod, method),
    )
    Path(ready).unlink()


def nncf(model, feeds, out, kind):
    """nncf.quantize with the mixed preset (unsigned activations after Relu, signed elsewhere)."""
    import nncf as tool

    more = {"model_type": tool.ModelType.TRANSFORMER} if kind == "transformer" else {}
    preset = tool.QuantizationPreset.MIXED
    data = tool.Dataset(list(Reader(feeds)))
    onnx.save(tool.quantize(onnx.load(model), data, subset_size=len(Reader(feeds)), preset=preset, **more), out)


def aimet(model, feeds, out, scheme):
    """AIMET's simulation, written as pairs with integer constants: u8 activations, s8 weights per channel."""
    from aimet_onnx import QuantizationSimModel
    from aimet_onnx.common.defs import QuantScheme

    chosen = getattr(QuantScheme, scheme)
    config = Path(sys.modules["aimet_onnx"].__file__).parent / "common/quantsim_config/default_config_per_channel.json"
    more = {"config_file": str(config)} if config.exists() else {}
    first = next(iter(Reader(feeds)))
    sim = QuantizationSimModel(
        onnx.load(model), quant_scheme=chosen, dummy_input=first, providers=["CPUExecutionProvider"], **more
    )
    sim.compute_encodings(Reader(feeds))
    onnx.save(sim.to_onnx_qdq(export_int32_bias=True, prequantize_constants=True), out)


def peak_mb() -> int:
    """This process's own peak (Linux); `ru_maxrss` begins with that of the process that started it."""
    with open("/proc/self/status") as file:
        return next(int(line.split()[1]) for line in file if line.startswith("VmHWM")) // 1024


CONFIGS = {
    "ort-minmax": lambda *files: ort(*files, "MinMax"),
    "ort-percentile": lambda *files: ort(*files, "Percentile"),
    "aimet": lambda *files: aimet(*files, "post_training_tf_enhanced"),
    "nncf": lambda *files: nncf(*files, "cnn"),
    "nncf-transformer": lambda *files: nncf(*files, "transformer"),
}

if __name__ == "__main__":
    config, *files = sys.argv[1:]
    start = time.time()
    CONFIGS[config](*files)
    print(json.dumps({"seconds": round(time.time() - start, 1), "peak_mb": peak_mb()}))
