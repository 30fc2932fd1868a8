import numpy as np
import pytest
import torch
from diffusers import AutoencoderKLQwenImage
from diffusers.image_processor import VaeImageProcessor

from qwen_edit.catalog import BASE_FOLDER
from qwen_edit.errors import ModelUnavailable
from qwen_edit.models.vae import decode_latents, load_vae
from tests.reading import read_folder

CPU = torch.device("cpu")


@pytest.fixture(scope="module")
def vae(models) -> AutoencoderKLQwenImage:
    folder = models / BASE_FOLDER / "vae"
    return load_vae(folder, read_folder(folder, CPU, torch.float32))


def test_the_vae_is_the_one_that_diffusers_loads(models, vae) -> None:
    stock = AutoencoderKLQwenImage.from_pretrained(models / BASE_FOLDER / "vae", torch_dtype=torch.float32)

    for (name, ours), (_, theirs) in zip(vae.state_dict().items(), stock.state_dict().items(), strict=True):
        assert torch.equal(ours, theirs), name
    assert not [name for name, tensor in [*vae.named_parameters(), *vae.named_buffers()] if tensor.is_meta]


def test_latents_become_the_pictures_of_the_stock_pipeline(vae) -> None:
    latents = torch.randn(2, 16, 1, 8, 12, generator=torch.Generator().manual_seed(3))
    with torch.inference_mode():
        ours = decode_latents(vae, latents)
        mean = torch.tensor(vae.config.latents_mean).view(1, 16, 1, 1, 1)
        std = torch.tensor(vae.config.latents_std).view(1, 16, 1, 1, 1)
        pixels = vae.decode(latents * std + mean, return_dict=False)[0][:, :, 0]
    theirs = VaeImageProcessor().postprocess(pixels, output_type="pil")

    for one, other in zip(ours, theirs, strict=True):
        assert one.size == other.size == (96, 64)
        assert one.mode == "RGB"
        assert np.abs(np.asarray(one, dtype=int) - np.asarray(other, dtype=int)).max() <= 1


def test_a_configuration_of_another_size_names_the_tensor(models, tmp_path) -> None:
    folder = tmp_path / "vae"
    folder.mkdir()
    source = models / BASE_FOLDER / "vae"
    (folder / "config.json").write_text((source / "config.json").read_text().replace('"base_dim": 8', '"base_dim": 16'))
    (folder / "diffusion_pytorch_model.safetensors").symlink_to(source / "diffusion_pytorch_model.safetensors")

    with pytest.raises(
        ModelUnavailable, match=r"vae has the tensor encoder\.conv_in\.weight as \(8, .* expects \(16, "
    ):
        load_vae(folder, read_folder(folder, CPU, torch.float32))
