from typing import Literal

import pytest

from qwen_edit.machine.backend import Card, no_bfloat16, no_fp8, no_int4


def card(name: str, capability: tuple[int, int], vendor: Literal["NVIDIA", "AMD"] = "NVIDIA") -> Card:
    return Card(name, capability, 0, 0, vendor)


# card, whether it has bfloat16, int4 kernels and fp8
TABLE = [
    (card("Tesla V100", (7, 0)), False, False, False),
    (card("Tesla T4", (7, 5)), False, False, False),
    (card("A100", (8, 0)), True, True, False),
    (card("RTX 3090", (8, 6)), True, True, False),
    (card("Orin", (8, 7)), True, False, False),
    (card("L40S", (8, 9)), True, True, True),
    (card("H200", (9, 0)), True, False, True),
    (card("B200", (10, 0)), True, False, True),
    (card("RTX 5090", (12, 0)), True, False, True),
    (card("MI300X", (9, 4), "AMD"), True, False, False),
    (None, True, False, True),
]


@pytest.mark.parametrize(("device", "bfloat16", "int4", "fp8"), TABLE, ids=str)
def test_a_device_runs_what_its_compute_capability_says(
    device: Card | None, bfloat16: bool, int4: bool, fp8: bool
) -> None:
    assert [no_bfloat16(device) is None, no_int4(device) is None, no_fp8(device) is None] == [bfloat16, int4, fp8]


def test_why_a_device_does_not_run_something_names_it() -> None:
    assert no_bfloat16(card("Tesla T4", (7, 5))) == (
        "the GPU Tesla T4 has compute capability 7.5, expected 8.0 or later: it has no bfloat16"
    )
    assert no_int4(card("Orin", (8, 7))) == (
        "the GPU Orin (compute capability 8.7) is none that Nunchaku's wheels are built for"
    )
    assert no_fp8(card("A100", (8, 0))) == (
        "the GPU A100 (compute capability 8.0) has no fp8 tensor cores, which begin with 8.9"
    )
