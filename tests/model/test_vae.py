from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from diffusers import AutoencoderKLQwenImage
from diffusers.image_processor import VaeImageProcessor
from PIL import Image
from torch.overrides import TorchFunctionMode

from qwen_edit.errors import ModelUnavailable
from qwen_edit.model.vae import decode_latents, load_vae, to_pixels
from qwen_edit.store.catalog import BASE_FOLDER
from tests.support.reading import read_folder

CPU = torch.device("cpu")


@pytest.fixture(scope="module")
def vae(models: Path) -> AutoencoderKLQwenImage:
    folder = models / BASE_FOLDER / "vae"
    return load_vae(folder, read_folder(folder, CPU, torch.float32))


def test_the_vae_is_the_one_that_diffusers_loads(models: Path, vae: AutoencoderKLQwenImage) -> None:
    stock = AutoencoderKLQwenImage.from_pretrained(models / BASE_FOLDER / "vae", torch_dtype=torch.float32)

    for (name, ours), (_, theirs) in zip(vae.state_dict().items(), stock.state_dict().items(), strict=True):
        assert torch.equal(ours, theirs), name
    assert not [name for name, tensor in [*vae.named_parameters(), *vae.named_buffers()] if tensor.is_meta]


class Convolutions(TorchFunctionMode):
    """Notes which are asked for, and whether each is given its kernel in one piece."""

    def __init__(self) -> None:
        super().__init__()
        self.names: set[str] = set()
        self.in_one_piece: set[bool] = set()

    def __torch_function__(
        self,
        function: Callable[..., Any],
        types: object,
        args: tuple[Any, ...] = (),
        kwargs: dict[str, Any] | None = None,
    ) -> object:
        if (name := getattr(function, "__name__", "")).startswith("conv"):
            self.names.add(name)
            self.in_one_piece.add(args[1].is_contiguous())
        return function(*args, **(kwargs or {}))


def test_a_picture_is_encoded_and_decoded_in_two_dimensions_as_diffusers_does_it_in_three(
    models: Path, vae: AutoencoderKLQwenImage
) -> None:
    stock = AutoencoderKLQwenImage.from_pretrained(models / BASE_FOLDER / "vae", torch_dtype=torch.float32)
    pixels = torch.rand(1, 3, 1, 64, 96, generator=torch.Generator().manual_seed(5)) * 2 - 1
    with torch.inference_mode():
        latents = stock.encode(pixels).latent_dist.mode()
        expected = stock.decode(latents).sample
        with Convolutions() as convolutions:
            torch.testing.assert_close(vae.encode(pixels).latent_dist.mode(), latents, rtol=1e-4, atol=1e-5)
            torch.testing.assert_close(vae.decode(latents).sample, expected, rtol=1e-4, atol=1e-5)

    assert convolutions.names == {"conv2d"}
    assert convolutions.in_one_piece == {True}


def test_several_frames_are_still_convolved_in_time(models: Path, vae: AutoencoderKLQwenImage) -> None:
    stock = AutoencoderKLQwenImage.from_pretrained(models / BASE_FOLDER / "vae", torch_dtype=torch.float32)
    frames = torch.rand(1, 3, 5, 32, 32, generator=torch.Generator().manual_seed(6)) * 2 - 1
    with torch.inference_mode():
        expected = stock.encode(frames).latent_dist.mode()

        torch.testing.assert_close(vae.encode(frames).latent_dist.mode(), expected, rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize("size", [(448, 288), (64, 96), (160, 160)])
def test_the_vae_is_given_the_bits_of_the_stock_processor(photo: Image.Image, size: tuple[int, int]) -> None:
    width, height = size
    picture = photo.resize(size)

    ours = to_pixels(picture)[:, :, 0]

    stock = VaeImageProcessor(vae_scale_factor=16).preprocess(picture, height, width)
    assert torch.equal(ours, stock)
    assert ours.stride()[1:] == stock.stride()[1:]  # on which the choice of kernels depends


def test_latents_become_the_pictures_of_the_stock_pipeline(vae: AutoencoderKLQwenImage) -> None:
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


def test_a_configuration_of_another_size_names_the_tensor(models: Path, tmp_path: Path) -> None:
    folder = tmp_path / "vae"
    folder.mkdir()
    source = models / BASE_FOLDER / "vae"
    (folder / "config.json").write_text((source / "config.json").read_text().replace('"base_dim": 8', '"base_dim": 16'))
    (folder / "diffusion_pytorch_model.safetensors").symlink_to(source / "diffusion_pytorch_model.safetensors")

    with pytest.raises(
        ModelUnavailable, match=r"vae has the tensor encoder\.conv_in\.weight as \(8, .* expects \(16, "
    ):
        load_vae(folder, read_folder(folder, CPU, torch.float32))
