import subprocess
import sys

import torch
from diffusers.models.autoencoders.autoencoder_kl_qwenimage import AutoencoderKLQwenImage
from transformers.models.qwen2_5_vl.configuration_qwen2_5_vl import Qwen2_5_VLConfig
from transformers.models.qwen2_5_vl.modeling_qwen2_5_vl import Qwen2_5_VLForConditionalGeneration

from builder.bake.parts import COMPONENTS
from builder.bake.printed import amount, duration, megabytes
from builder.sizes import Autoencoder, Language, Vision, header_bytes, sizes, table
from qwen_edit.svdq.modules import expected_tensors, total_bytes


def parameters(model: torch.nn.Module) -> int:
    return sum(parameter.numel() for parameter in model.parameters())


def test_the_autoencoder_has_the_parameters_of_the_real_class() -> None:
    with torch.device("meta"):
        assert Autoencoder().parameters == parameters(AutoencoderKLQwenImage()) == 126_892_531


def test_another_autoencoder_has_the_parameters_of_the_real_class() -> None:
    with torch.device("meta"):
        real = AutoencoderKLQwenImage(
            base_dim=8, z_dim=4, dim_mult=[1, 2, 3, 3], num_res_blocks=1, temperal_downsample=[True, False, True]
        )
    assert Autoencoder(8, 4, (1, 2, 3, 3), 1, (True, False, True)).parameters == parameters(real)


def test_the_text_encoder_has_the_parameters_of_the_real_class() -> None:
    language, vision = Language(), Vision()
    config = Qwen2_5_VLConfig(
        tie_word_embeddings=False,
        text_config={
            "vocab_size": language.vocabulary,
            "hidden_size": language.hidden,
            "intermediate_size": language.intermediate,
            "num_hidden_layers": language.layers,
            "num_attention_heads": language.heads,
            "num_key_value_heads": language.key_value_heads,
        },
        vision_config={
            "depth": vision.depth,
            "hidden_size": vision.hidden,
            "intermediate_size": vision.intermediate,
            "out_hidden_size": vision.out,
        },
    )
    with torch.device("meta"):
        real = Qwen2_5_VLForConditionalGeneration(config)
    assert language.parameters + vision.parameters == parameters(real) == 8_292_166_656


def test_a_checkpoint_weighs_its_tensors_and_a_header() -> None:
    tensors = expected_tensors({}, 128)
    assert total_bytes(tensors) == 12_653_943_936
    published = [size for size in sizes() if size.name in ("lightning", "original")]
    assert [megabytes(size.bytes) for size in published] == ["12654.4 MB", "12654.4 MB"]
    assert published[0].bytes == total_bytes(tensors) + header_bytes(tensors)


def test_every_part_has_the_name_of_a_component() -> None:
    names = [size.name for size in sizes()]
    assert names == [name for name in COMPONENTS if "-" not in name]


def test_the_table_ends_with_the_sum_and_the_image() -> None:
    *_, baked, image = table().splitlines()
    assert baked == "all of it      42.167 GB  what MODEL_CACHE_DIR holds"
    assert image.startswith("image          49.667 GB  with about 7.5 GB of Python, torch and CUDA: an estimate")


def test_the_command_prints_the_table_without_torch_and_without_a_network() -> None:
    program = "import sys; from builder.__main__ import main; main(['sizes']); sys.exit('torch' in sys.modules)"
    run = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, check=False)
    assert run.returncode == 0
    assert run.stdout == table() + "\n"


def test_amounts_read_in_the_unit_that_suits() -> None:
    assert [amount(n) for n in (7, 1_500, 253_785_062, 999_960_000, 42_167_000_000)] == [
        "7 bytes",
        "1.5 kB",
        "253.8 MB",
        "1.0 GB",
        "42.2 GB",
    ]


def test_durations_read_in_minutes_and_seconds() -> None:
    assert [duration(seconds) for seconds in (0.4, 59.6, 185)] == ["0 s", "1 min 0 s", "3 min 5 s"]
