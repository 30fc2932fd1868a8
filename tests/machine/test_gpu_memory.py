from typing import Any

import pytest
from safetensors.torch import load_file

from qwen_edit.errors import ModelUnavailable
from qwen_edit.machine.backend import BackendName
from qwen_edit.machine.gpu_memory import (
    DECODE_BYTES,
    HEADROOM_BYTES,
    TILED_BYTES,
    Parts,
    fits,
    parts_of,
    plan_memory,
    weight_bytes,
)
from qwen_edit.store.catalog import LIGHTNING
from qwen_edit.store.folder import base_weights
from qwen_edit.svdq import dense_state_dict, read_header
from qwen_edit.svdq.checkpoint import CheckpointInfo
from qwen_edit.svdq.modules import CONFIG_DEFAULTS, expected_tensors

GB = 10**9
TEXT_ENCODER, VAE, PACKED = 2 * 8_292_166_656, 2 * 126_892_531, 12_653_943_936


def real(backend: BackendName, *, packed_modulation: bool = False, window: int | None = None) -> Parts:
    tensors: Any = expected_tensors(CONFIG_DEFAULTS, rank=128)
    checkpoint = CheckpointInfo("", CONFIG_DEFAULTS, 128, tensors, {})
    return parts_of(backend, TEXT_ENCODER, VAE, checkpoint, packed_modulation=packed_modulation, window=window)


def test_the_transformer_weighs_what_is_known_of_it() -> None:
    assert real("nunchaku").transformer == PACKED
    assert real("dense").transformer / GB == pytest.approx(40.85, abs=0.01)
    assert real("dense", packed_modulation=True).transformer / GB == pytest.approx(40.85 - 13.59 + 3.83, abs=0.02)
    assert real("dense-fp8").transformer / GB == pytest.approx(40.85 - 13.59, abs=0.02)
    assert real("dense-fp8", packed_modulation=True).transformer / GB == pytest.approx(17.5, abs=0.02)
    assert real("nunchaku").resident / GB == pytest.approx(0.083 + 3 * 12.57 / 60, abs=0.01)


def test_the_prediction_is_the_size_of_the_weights_that_are_made(models) -> None:
    path = models / LIGHTNING.path
    made = sum(tensor.nbytes for tensor in dense_state_dict(path).values())

    predicted = parts_of("dense", 0, 0, read_header(path)).transformer

    assert predicted == pytest.approx(made, rel=0.01)
    assert parts_of("dense", 0, 0, read_header(path), itemsize=4).transformer == 2 * predicted


# free memory in GB, backend, whether the modulation layers stay packed, what is planned; None is a refusal
TABLE = [
    (23.1, "nunchaku", False, "model"),  # 3090, 4090, A10, L4
    (23.1, "dense-fp8", True, None),
    (33.0, "dense", True, None),  # 5090
    (33.0, "dense-fp8", False, None),
    (33.0, "dense-fp8", True, "model"),
    (41.8, "nunchaku", False, "none"),  # A100 40 GB
    (41.8, "dense", True, None),
    (47.1, "nunchaku", False, "none"),  # A40, A6000, L40S
    (47.1, "dense", False, None),
    (47.1, "dense", True, "model"),
    (47.1, "dense-fp8", False, "model"),
    (84.4, "dense", False, "none"),  # A100, H100
    (84.4, "nunchaku", False, "none"),
    (149.0, "dense", False, "none"),  # H200
    (149.0, "dense-fp8", False, "none"),
]


@pytest.mark.parametrize(("free", "backend", "packed", "offload"), TABLE)
def test_each_class_of_card_gets_its_plan(free: float, backend: BackendName, packed: bool, offload: str | None) -> None:
    parts = real(backend, packed_modulation=packed)
    if offload is None:
        with pytest.raises(ModelUnavailable, match=rf"and the card has {free} GB free"):
            plan_memory(parts, int(free * GB), "auto", "the card")
    else:
        plan = plan_memory(parts, int(free * GB), "auto", "the card")
        assert (plan.offload, plan.tiling) == (offload, False)
        assert plan.peak <= free * GB


def test_all_of_it_at_once_is_what_is_counted_without_offload() -> None:
    plan = plan_memory(real("dense"), 200 * GB, "auto", "")

    weights = TEXT_ENCODER + VAE + real("dense").transformer
    assert plan.load == weights + PACKED + HEADROOM_BYTES
    assert plan.edit == weights + DECODE_BYTES + HEADROOM_BYTES
    assert plan.host == 0


def test_fp8_is_quantized_from_a_block_in_float32_that_is_there_beside_it() -> None:
    parts = real("dense-fp8", packed_modulation=True)
    plan = plan_memory(parts, 200 * GB, "auto", "")

    assert parts.arriving - PACKED == 4 * (8 + 4 * 4) * 3072**2  # eight layers of d² and four of 4d²
    assert plan.load == TEXT_ENCODER + VAE + parts.arriving + parts.transformer + HEADROOM_BYTES
    assert real("dense-fp8").arriving > parts.arriving


def test_of_a_file_that_is_read_in_blocks_only_a_few_are_counted() -> None:
    whole, window = real("dense"), real("dense", window=2)

    assert whole.arriving == PACKED
    assert window.arriving == pytest.approx(2 * (PACKED - 0.083 * GB) / 60, rel=0.001)
    assert whole.transformer == window.transformer


def test_only_the_tensors_that_are_wanted_are_weighed(models) -> None:
    files = [path for path in base_weights(models) if path.parent.name == "text_encoder"]
    everything = sum(tensor.nbytes for path in files for tensor in load_file(path).values())

    assert weight_bytes(files) == everything
    head = load_file(files[0])["lm_head.weight"].nbytes
    assert weight_bytes(files, lambda name: name != "lm_head.weight") == everything - head


def test_the_larger_of_the_two_is_what_is_counted_where_they_take_turns() -> None:
    plan = plan_memory(real("nunchaku"), 24 * GB, "model", "")

    assert plan.edit / GB == pytest.approx((TEXT_ENCODER + VAE) / GB + 2.1 + 1.0, abs=0.01)
    assert plan.load < 2 * GB
    assert plan.host == TEXT_ENCODER + PACKED


def test_blocks_that_the_engine_pins_take_powers_of_two_of_the_host() -> None:
    plan = plan_memory(real("nunchaku"), 24 * GB, "blocks", "")

    sizes = [spec.bytes for name, spec in expected_tensors(CONFIG_DEFAULTS, rank=128).items() if "blocks.7." in name]
    rounded = [next(1 << i for i in range(40) if 1 << i >= size) for size in sizes]
    assert 1.4 * sum(sizes) < sum(rounded) < 1.5 * sum(sizes)
    assert plan.host == TEXT_ENCODER + 59 * sum(rounded)


def test_the_vae_works_in_tiles_only_where_it_would_not_fit_otherwise() -> None:
    parts = Parts("dense", text_encoder=1 * GB, vae=0, transformer=5 * GB, resident=GB, arriving=0)
    whole = 6 * GB + DECODE_BYTES + HEADROOM_BYTES

    assert not plan_memory(parts, whole, "none", "").tiling
    tiled = plan_memory(parts, whole - 1, "none", "")
    assert tiled.tiling
    assert tiled.edit < whole - DECODE_BYTES + TILED_BYTES + GB + 1


def test_blocks_come_last_and_for_a_text_encoder_that_is_small() -> None:
    parts = Parts("nunchaku", 6 * GB, vae=0, transformer=13 * GB, resident=1 * GB, arriving=0)

    assert plan_memory(parts, 24 * GB, "auto", "").offload == "none"
    assert plan_memory(parts, 18 * GB, "auto", "").offload == "model"
    assert plan_memory(parts, 10 * GB, "auto", "").offload == "blocks"


@pytest.mark.parametrize("backend", ["dense", "dense-fp8"])
def test_blocks_are_refused_to_a_backend_that_has_them_all_or_none(backend: BackendName) -> None:
    with pytest.raises(ModelUnavailable) as refused:
        plan_memory(real(backend), 200 * GB, "blocks", "")

    assert refused.value.sentence == (
        f"QWEN_EDIT_OFFLOAD is blocks, which the {backend} backend does not do; expected one of auto, none, model"
    )


def test_a_plan_that_is_asked_for_holds_where_a_faster_one_would_fit_and_is_refused_where_it_does_not() -> None:
    assert plan_memory(real("nunchaku"), 200 * GB, "blocks", "").offload == "blocks"
    with pytest.raises(
        ModelUnavailable, match=r"needs 30\.5 GB .* 31\.8 GB .* offload none, and NAME has 24\.0 GB free"
    ):
        plan_memory(real("nunchaku"), 24 * GB, "none", "NAME")


def test_fitting_means_as_a_whole_unless_an_offload_is_asked_for() -> None:
    parts = real("dense", packed_modulation=True)

    assert not fits(parts, 47 * GB, "auto")
    assert not fits(parts, 47 * GB, "none")
    assert fits(parts, 47 * GB, "model")
    assert fits(parts, 84 * GB, "auto")
