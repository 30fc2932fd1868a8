from pathlib import Path

import pytest
from safetensors.torch import load_file

from qwen_edit.machine.gpu_memory import (
    DECODE_BYTES,
    DENOISE_BYTES,
    HEADROOM_BYTES,
    TILED_BYTES,
    memory_way,
    sizes_of,
    weight_bytes,
)
from qwen_edit.store.catalog import LIGHTNING
from qwen_edit.store.folder import base_weights
from qwen_edit.svdq.checkpoint import read_header
from qwen_edit.svdq.modules import AWQ_MODULES, CONFIG_DEFAULTS, expected_tensors
from tests.support.dense import dense_state_dict
from tests.support.published import PACKED, TEXT_ENCODER, VAE, published_sizes

GB = 10**9


def test_the_transformer_weighs_what_is_known_of_it() -> None:
    assert published_sizes("nunchaku").transformer == PACKED
    assert published_sizes("dense").transformer / GB == pytest.approx(40.85 - 13.59 + 3.83, abs=0.02)
    assert published_sizes("dense-fp8").transformer / GB == pytest.approx(17.5, abs=0.02)
    assert published_sizes("nunchaku").resident / GB == pytest.approx(0.083 + 3 * 12.57 / 60, abs=0.01)


def is_modulation(name: str) -> bool:
    return any(f".{module}." in name for module in AWQ_MODULES)


def test_the_prediction_is_the_size_of_the_weights_that_are_made_and_of_the_modulations_in_the_file(
    models: Path,
) -> None:
    path = models / LIGHTNING.path
    checkpoint = read_header(path)
    made = sum(tensor.nbytes for name, tensor in dense_state_dict(path).items() if not is_modulation(name))
    kept = sum(entry.bytes for name, entry in checkpoint.tensors.items() if is_modulation(name))

    predicted = sizes_of("dense", 0, 0, checkpoint).transformer

    assert predicted - kept == pytest.approx(made, rel=0.01)
    assert sizes_of("dense", 0, 0, checkpoint, itemsize=4).transformer - kept == 2 * (predicted - kept)


def test_weights_that_are_read_as_bfloat16_take_twice_their_bytes_in_float32() -> None:
    half, single = published_sizes("dense"), published_sizes("dense", itemsize=4)

    assert (half.text_encoder, half.vae) == (TEXT_ENCODER, VAE)
    assert (single.text_encoder, single.vae) == (2 * TEXT_ENCODER, 2 * VAE)
    assert single.weights == single.text_encoder + single.vae + single.transformer


def test_all_of_it_at_once_is_what_is_counted_without_offload() -> None:
    sizes = published_sizes("dense")
    way = memory_way(sizes, "none", tiling=False)

    assert sizes.weights == TEXT_ENCODER + VAE + sizes.transformer
    assert way.load == sizes.weights + sizes.arriving + HEADROOM_BYTES
    assert way.edit == sizes.weights + DECODE_BYTES + HEADROOM_BYTES
    assert way.host == 0


def test_tiles_take_the_place_of_the_whole_picture_in_the_vae() -> None:
    sizes = published_sizes("dense")
    whole, tiled = memory_way(sizes, "none", tiling=False), memory_way(sizes, "none", tiling=True)

    assert tiled.load == whole.load
    assert tiled.edit == whole.edit - DECODE_BYTES + max(TILED_BYTES, DENOISE_BYTES)


def test_fp8_is_quantized_from_a_block_in_float32_that_is_there_beside_it() -> None:
    sizes = published_sizes("dense-fp8")
    way = memory_way(sizes, "none", tiling=False)

    # eight layers of d² and four of 4d²
    assert sizes.arriving - published_sizes("dense").arriving == 4 * (8 + 4 * 4) * 3072**2
    assert way.load == TEXT_ENCODER + VAE + sizes.arriving + sizes.transformer + HEADROOM_BYTES


def test_of_a_file_that_is_read_in_blocks_only_two_are_counted() -> None:
    assert published_sizes("dense").arriving == pytest.approx(2 * (PACKED - 0.083 * GB) / 60, rel=0.001)


def test_only_the_tensors_that_are_wanted_are_weighed(models: Path) -> None:
    files = [path for path in base_weights(models) if path.parent.name == "text_encoder"]
    everything = sum(tensor.nbytes for path in files for tensor in load_file(path).values())

    assert weight_bytes(files) == everything
    head = load_file(files[0])["lm_head.weight"].nbytes
    assert weight_bytes(files, lambda name: name != "lm_head.weight") == everything - head


def test_the_larger_of_the_two_is_what_is_counted_where_they_take_turns() -> None:
    way = memory_way(published_sizes("nunchaku"), "model", tiling=False)

    assert way.edit / GB == pytest.approx((TEXT_ENCODER + VAE) / GB + 2.1 + 1.5, abs=0.01)
    assert way.load < 2 * GB
    assert way.host == TEXT_ENCODER + PACKED


def test_blocks_that_the_engine_pins_take_powers_of_two_of_the_host() -> None:
    way = memory_way(published_sizes("nunchaku"), "blocks", tiling=False)

    sizes = [spec.bytes for name, spec in expected_tensors(CONFIG_DEFAULTS, rank=128).items() if "blocks.7." in name]
    rounded = [next(1 << i for i in range(40) if 1 << i >= size) for size in sizes]
    assert 1.4 * sum(sizes) < sum(rounded) < 1.5 * sum(sizes)
    assert way.host == TEXT_ENCODER + 59 * sum(rounded)
