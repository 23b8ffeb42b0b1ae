"""Where the model will run: a frozen description of the runtime and the CPU, detected or named by `--target`.

Everything that a pass decides by the machine is read here: integer types, whether u8 × s8 products saturate, which
operators have integer kernels, the channel multiple that float convolutions like. A profile is data, so that a
pass can be tested for a machine that is not at hand.
"""

from __future__ import annotations

import platform
from collections.abc import Iterable
from dataclasses import dataclass, replace
from pathlib import Path

from ..ir.errors import OptionError
from ..runtime import openvino

# Linear ops with integer kernels in ONNX Runtime on CPU: their weights are quantized per channel.
LINEAR = frozenset({"Conv", "MatMul", "Gemm"})
# Verified with ONNX Runtime 1.32: a dequantize before and a quantize behind these become one integer kernel.
ORT_COMPUTES = frozenset(
    {"Add", "Mul", "Concat", "Sigmoid", "Softmax", "LeakyRelu", "AveragePool", "GlobalAveragePool"}
)
# Ops which move values and keep them: they run on the integers themselves, with one scale on both sides.
ORT_MOVES = frozenset(
    {
        "MaxPool",
        "Resize",
        "Transpose",
        "Slice",
        "Reshape",
        "Flatten",
        "Squeeze",
        "Unsqueeze",
        "Gather",
        "Split",
        "DepthToSpace",
        "SpaceToDepth",
        "Expand",
        "Tile",
    }
)
# Activations which disappear into the linear op before them when the range starts at the type's minimum.
ORT_FOLDS = frozenset({"Relu", "Clip"})


@dataclass(frozen=True)
class Target:
    """A place where models run.

    name: as on the command line. runtime: "onnxruntime", "tensorrt" or "openvino".
    isa: the CPU's relevant extensions, widest last, e.g. ("avx2", "avx512", "vnni", "amx").
    activation, weight: "u8" or "s8", the integer types whose kernels are fast here.
    symmetric: activations must have zero point 0 (TensorRT).
    saturates: u8 × s8 pairs are summed in int16 and saturate (AVX2 and AVX512 without VNNI).
    linear, computes, moves, folds: sets of operator types, by what the runtime does with them between
    dequantize and quantize: weighted integer kernels, other integer kernels, ops that only move integers, and
    activations that vanish into the op before them.
    hands_out: operators whose integer kernels can hand out floats (activations among them: the kernel that they vanish
        into); behind all others stands a quantize.
    residual: both inputs of a residual Add may be quantized (TensorRT wants one to stay as it is, and OpenVINO drops
        the rounding of what a convolution adds to, so that the file would not say what it computes).
    integer_biases: biases are int32 with the scale of the products (TensorRT takes only 8-bit integers to
    dequantize, and adds biases in float).
    channel_multiple: float convolution time is a staircase of so many channels.
    halves: 16-bit float formats that the target computes in ("fp16"); elsewhere they only store weights.
    provider: ONNX Runtime's execution provider that latency is measured with.
    native: whether timing on this machine says anything about the target.
    """

    name: str = "ort-cpu"
    runtime: str = "onnxruntime"
    isa: tuple[str, ...] = ()
    activation: str = "u8"
    weight: str = "s8"
    symmetric: bool = False
    saturates: bool = False
    linear: frozenset[str] = LINEAR
    computes: frozenset[str] = ORT_COMPUTES
    moves: frozenset[str] = ORT_MOVES
    folds: frozenset[str] = ORT_FOLDS
    hands_out: frozenset[str] = frozenset({"MatMul", "Gemm"})
    residual: bool = True
    integer_biases: bool = True
    channel_multiple: int = 16
    halves: frozenset[str] = frozenset()
    provider: str = "CPUExecutionProvider"
    native: bool = True

    @property
    def engine(self) -> str:
        """The runtime that models are timed in for this target."""
        return self.runtime if self.native else "onnxruntime"

    @property
    def quantizable(self) -> frozenset[str]:
        """Every operator type that gains anything from quantized inputs."""
        return self.linear | self.computes | self.moves | self.folds

    @staticmethod
    def detect() -> Target:
        """This machine's CPU with ONNX Runtime."""
        return _ort(isa_of(platform.machine(), _cpuinfo()), "ort-cpu", native=True)

    @staticmethod
    def named(name: str) -> Target:
        """The target called `name`; `ort-cpu` is this machine, and so is `openvino` where its package is installed.

        Raises OptionError with the list of names.
        """
        key = name.strip().lower()
        if key in ("ort-cpu", "auto", "cpu"):
            return Target.detect()
        if key == openvino.NAME:
            return replace(_OPENVINO, native=openvino.available())
        if key in _PROFILES:
            return _PROFILES[key]
        raise OptionError(f"unknown target {name!r}; there are: {', '.join(target_names())}")


def target_names() -> list[str]:
    """Names that `Target.named` knows, the detected one first."""
    return ["ort-cpu", *_PROFILES]


def isa_of(machine: str, flags: Iterable[str]) -> tuple[str, ...]:
    """ISA extensions that matter here, from a machine name and the flags of /proc/cpuinfo.

    On x86 without flags (Windows, macOS) AVX2 without VNNI is assumed: its types are right everywhere, only not the
    most accurate.
    """
    have = set(flags)
    if machine.lower() in ("arm64", "aarch64"):
        extra = [n for n, f in (("dotprod", "asimddp"), ("i8mm", "i8mm")) if f in have]
        return ("arm", *(extra or (["dotprod"] if not have else [])))
    if machine.lower() not in ("x86_64", "amd64", "i686", "x86"):
        return ()
    if not have:
        return ("avx2",)
    found = [
        ("avx2", "avx2" in have),
        ("avx512", {"avx512f", "avx512bw"} <= have),
        ("vnni", bool({"avx512_vnni", "avx_vnni"} & have)),
        ("amx", "amx_int8" in have),
    ]
    return tuple(n for n, there in found if there)


def _cpuinfo() -> list[str]:
    """Flags of the first processor, empty where there is no /proc/cpuinfo."""
    try:
        text = Path("/proc/cpuinfo").read_text(encoding="utf-8", errors="replace")
    except OSError:
        return []
    for line in text.splitlines():
        key, _, value = line.partition(":")
        if key.strip() in ("flags", "Features"):
            return value.split()
    return []


def _ort(isa: tuple[str, ...], name: str, native: bool = False) -> Target:
    """ONNX Runtime on a CPU with these extensions."""
    arm, vnni = "arm" in isa, "vnni" in isa
    return Target(
        name=name,
        isa=isa,
        activation="s8" if arm else "u8",
        saturates=bool(isa) and not arm and not vnni,
        channel_multiple=16 if "avx512" in isa else 8,
        native=native,
    )


_OTHERS_LINEAR = LINEAR | {"ConvTranspose"}
_TENSORRT = Target(
    name="tensorrt",
    runtime="tensorrt",
    activation="s8",
    symmetric=True,
    linear=_OTHERS_LINEAR,
    computes=frozenset({"Add", "AveragePool", "GlobalAveragePool"}),
    moves=frozenset({"MaxPool", "Concat", "Resize", "Transpose", "Slice", "Reshape", "Flatten"}),
    hands_out=_OTHERS_LINEAR | ORT_FOLDS,
    residual=False,
    integer_biases=False,
    channel_multiple=32,
    halves=frozenset({"fp16"}),
    provider="TensorrtExecutionProvider",
    native=False,
)

_OPENVINO = Target(
    name="openvino",
    runtime="openvino",
    activation="u8",
    linear=_OTHERS_LINEAR,
    computes=frozenset({"Add", "Mul", "Concat", "AveragePool", "GlobalAveragePool"}),
    hands_out=_OTHERS_LINEAR | ORT_FOLDS,
    residual=False,
    provider="OpenVINOExecutionProvider",
    native=False,
)

_PROFILES: dict[str, Target] = {
    "ort-cpu-avx2": _ort(("avx2",), "ort-cpu-avx2"),
    "ort-cpu-avx512": _ort(("avx2", "avx512"), "ort-cpu-avx512"),
    "ort-cpu-vnni": _ort(("avx2", "avx512", "vnni"), "ort-cpu-vnni"),
    "ort-cpu-amx": _ort(("avx2", "avx512", "vnni", "amx"), "ort-cpu-amx"),
    "ort-cpu-arm": _ort(("arm", "dotprod"), "ort-cpu-arm"),
    "tensorrt": _TENSORRT,
    "openvino": _OPENVINO,
}
