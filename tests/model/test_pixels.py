import pytest
import torch
from diffusers.image_processor import VaeImageProcessor
from PIL import Image

from qwen_edit.model.pixels import VaePixels

SIZES = [(448, 288), (64, 96), (160, 160)]


@pytest.mark.parametrize("size", SIZES)
def test_the_vae_is_given_the_bits_of_the_stock_processor(photo: Image.Image, size: tuple[int, int]) -> None:
    width, height = size
    picture = photo.resize(size)

    ours = VaePixels(vae_scale_factor=16).preprocess(picture, height, width)

    stock = VaeImageProcessor(vae_scale_factor=16).preprocess(picture, height, width)
    assert torch.equal(ours, stock)
    assert ours.stride()[1:] == stock.stride()[1:]  # on which the choice of kernels depends


def test_a_picture_of_another_size_is_not_taken_for_the_reference(photo: Image.Image) -> None:
    with pytest.raises(ValueError, match=r"\(451, 300\) pixels, expected \(448, 288\)"):
        VaePixels(vae_scale_factor=16).preprocess(photo, 288, 448)
