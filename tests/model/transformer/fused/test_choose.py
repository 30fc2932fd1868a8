import math
import sys
from dataclasses import replace

import pytest
import torch
from torch import Tensor

from qwen_edit.model.transformer import fused
from qwen_edit.model.transformer.fused import choose, twins
from qwen_edit.model.transformer.fused.choose import Kernels, kernels_for, plain, warm
from qwen_edit.svdq import fp8

CPU = torch.device("cpu")
SIZES = (torch.bfloat16, 3, 16, 48)


def as_if_of_triton(monkeypatch: pytest.MonkeyPatch, **functions: object) -> Kernels:
    kernels = replace(plain(""), name="triton", **functions)  # type: ignore[arg-type]
    monkeypatch.setattr(choose, "kernels_for", lambda _device: kernels)
    return kernels


def test_a_cpu_has_those_of_pytorch() -> None:
    kernels = kernels_for(CPU)

    assert (kernels.name, kernels.reason) == ("torch", "no NVIDIA GPU")
    assert (kernels.norm_rotate, kernels.gated) == (twins.norm_rotate, twins.gated)
    assert warm(CPU, *SIZES) == kernels


def test_without_triton_a_gpu_has_those_of_pytorch(monkeypatch: pytest.MonkeyPatch) -> None:
    for name in ("launch", "triton_kernels"):
        monkeypatch.delitem(sys.modules, f"{fused.__name__}.{name}", raising=False)
        monkeypatch.delattr(fused, name, raising=False)
    monkeypatch.setitem(sys.modules, "triton", None)

    kernels = kernels_for(torch.device("cuda"))

    assert kernels.name == "torch"
    assert kernels.reason.startswith("Triton cannot be imported: ")


@pytest.mark.parametrize(("capability", "has_fp8"), [((8, 6), False), ((8, 9), True)])
def test_a_card_without_fp8_quantizes_by_pytorch(
    capability: tuple[int, int], has_fp8: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    pytest.importorskip("triton", reason="triton is not installed")
    monkeypatch.setattr(torch.cuda, "get_device_capability", lambda _device: capability)

    kernels = kernels_for(torch.device("cuda"))

    assert kernels.name == "triton"
    assert (kernels.quantize_rows is not fp8.quantize_rows) == has_fp8


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float32])
def test_kernels_that_compute_what_their_twins_do_are_kept(dtype: torch.dtype, monkeypatch: pytest.MonkeyPatch) -> None:
    def in_float32(residual: Tensor, gate: Tensor, update: Tensor) -> Tensor:
        return (residual.float() + gate.float() * update.float()).to(residual.dtype)

    kernels = as_if_of_triton(monkeypatch, gated=in_float32)

    assert warm(CPU, dtype, 3, 16, 48) is kernels


def test_a_kernel_that_cannot_be_had_is_no_end_of_a_start(monkeypatch: pytest.MonkeyPatch) -> None:
    def fail(*_arguments: object) -> Tensor:
        raise RuntimeError("Failed to find C compiler.")

    as_if_of_triton(monkeypatch, modulate=fail)
    kernels = warm(CPU, *SIZES)

    assert kernels == plain("RuntimeError: Failed to find C compiler.")


def test_a_kernel_that_computes_something_else_is_not_used(monkeypatch: pytest.MonkeyPatch) -> None:
    def off(matrix: Tensor) -> tuple[Tensor, Tensor]:
        codes, scales = fp8.quantize_rows(matrix)
        return (codes.float() * 1.5).to(fp8.DTYPE), scales

    as_if_of_triton(monkeypatch, gated=lambda residual, gate, _update: residual + gate, quantize_rows=off)

    assert warm(CPU, *SIZES) == plain("wrong result of gated, quantize_rows")


def test_a_kernel_that_writes_nothing_is_not_used(monkeypatch: pytest.MonkeyPatch) -> None:
    as_if_of_triton(monkeypatch, norm_rotate=lambda _x, _weight, _eps, _positions, out: out)

    assert warm(CPU, *SIZES).reason == "wrong result of norm_rotate"


@pytest.mark.parametrize("wrong", [math.nan, 1.01, torch.float32])
def test_neither_nan_nor_another_dtype_nor_one_percent_is_near(
    wrong: float | torch.dtype, monkeypatch: pytest.MonkeyPatch
) -> None:
    def off(x: Tensor, scale: Tensor, shift: Tensor, eps: float) -> Tensor:
        right = twins.modulate(x, scale, shift, eps)
        return right.to(wrong) if isinstance(wrong, torch.dtype) else right * wrong

    as_if_of_triton(monkeypatch, modulate=off)

    assert warm(CPU, *SIZES).reason == "wrong result of modulate"
