"""Targets: detection from flags, names, and the types that follow from them."""

import dataclasses

import pytest
from onnxslim_opt.ir.errors import OptionError
from onnxslim_opt.passes.target import Target, isa_of, target_names
from onnxslim_opt.runtime import openvino

AVX2 = ["avx2", "fma"]
AVX512 = [*AVX2, "avx512f", "avx512bw"]


@pytest.mark.parametrize(
    ("machine", "flags", "isa"),
    [
        ("x86_64", AVX2, ("avx2",)),
        ("x86_64", AVX512, ("avx2", "avx512")),
        ("x86_64", [*AVX512, "avx512_vnni"], ("avx2", "avx512", "vnni")),
        ("x86_64", [*AVX2, "avx_vnni"], ("avx2", "vnni")),
        ("x86_64", [*AVX512, "avx512_vnni", "amx_int8"], ("avx2", "avx512", "vnni", "amx")),
        ("AMD64", [], ("avx2",)),
        ("aarch64", ["asimd", "asimddp"], ("arm", "dotprod")),
        ("aarch64", ["asimd"], ("arm",)),
        ("arm64", [], ("arm", "dotprod")),
        ("riscv64", [], ()),
    ],
)
def test_isa_from_flags(machine, flags, isa):
    assert isa_of(machine, flags) == isa


@pytest.mark.parametrize(
    ("name", "activation", "saturates"),
    [
        ("ort-cpu-avx2", "u8", True),
        ("ort-cpu-avx512", "u8", True),
        ("ort-cpu-vnni", "u8", False),
        ("ort-cpu-amx", "u8", False),
        ("ort-cpu-arm", "s8", False),
        ("tensorrt", "s8", False),
        ("openvino", "u8", False),
    ],
)
def test_types_follow_the_isa(name, activation, saturates):
    target = Target.named(name)
    assert (target.activation, target.saturates, target.name) == (activation, saturates, name)


def test_only_what_can_be_timed_here_is_native(monkeypatch):
    monkeypatch.setattr(openvino, "available", lambda: False)
    assert Target.detect().native
    assert not any(Target.named(n).native for n in target_names()[1:])
    assert Target.named("openvino").engine == "onnxruntime"
    monkeypatch.setattr(openvino, "available", lambda: True)
    assert [n for n in target_names()[1:] if Target.named(n).native] == ["openvino"]
    assert Target.named("openvino").engine == "openvino"


def test_every_listed_name_is_known():
    assert all(Target.named(n).name == n for n in target_names())


def test_an_unknown_name_lists_the_known_ones():
    with pytest.raises(OptionError, match=r"unknown target 'gpu'.*ort-cpu.*tensorrt"):
        Target.named("gpu")


def test_frozen_and_hashable():
    target = Target.detect()
    with pytest.raises(dataclasses.FrozenInstanceError):
        target.name = "x"
    assert hash(target) == hash(Target.detect())


def test_tensorrt_is_symmetric_and_leaves_residuals():
    target = Target.named("tensorrt")
    assert target.symmetric and not target.residual and "Conv" in target.quantizable
