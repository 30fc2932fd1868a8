import torch
from PIL import Image
from torch import Tensor

from qwen_edit.model.content_cache import ContentCache, picture_key


class Source:
    """Computes tensors of 1,000 bytes, and counts how often."""

    def __init__(self) -> None:
        self.calls = 0

    def __call__(self) -> tuple[Tensor, ...]:
        self.calls += 1
        return torch.full((900,), self.calls, dtype=torch.uint8), torch.zeros(100, dtype=torch.uint8)


def test_a_key_that_is_kept_is_not_computed_again() -> None:
    cache, source = ContentCache(5000), Source()

    first = cache.get(("a",), source)

    assert cache.get(("a",), source) is first
    assert cache.get(("b",), source) is not first
    assert source.calls == 2
    assert cache.bytes == 2000


def test_the_one_that_was_not_used_for_longest_makes_room() -> None:
    cache, source = ContentCache(2999), Source()
    for key in "abac":
        cache.get((key,), source)
    calls = source.calls

    cache.get(("a",), source)
    assert source.calls == calls
    cache.get(("b",), source)
    assert source.calls == calls + 1
    assert cache.bytes <= 2999


def test_what_is_larger_than_the_limit_is_handed_on_and_not_kept() -> None:
    cache, source = ContentCache(999), Source()

    assert cache.get(("a",), source)[0].numel() == 900

    assert cache.bytes == 0


def test_a_cleared_cache_holds_nothing() -> None:
    cache, source = ContentCache(5000), Source()
    cache.get(("a",), source)

    cache.clear()

    assert cache.bytes == 0
    cache.get(("a",), source)
    assert source.calls == 2


def test_a_picture_is_known_by_its_pixels_and_shape_alone() -> None:
    picture = Image.new("RGB", (6, 4), "grey")
    changed = picture.copy()
    changed.putpixel((5, 3), (128, 128, 129))

    assert picture_key(picture) == picture_key(picture.copy())
    others = [changed, Image.new("RGB", (4, 6), "grey"), Image.new("RGBX", (6, 4), "grey"), Image.new("RGB", (2, 12))]
    assert picture_key(picture) not in map(picture_key, others)


def test_pixels_of_the_same_bytes_in_another_shape_are_another_picture() -> None:
    assert picture_key(Image.new("RGB", (6, 4), "grey")) != picture_key(Image.new("RGB", (4, 6), "grey"))
    assert picture_key(Image.new("L", (12, 4), 9)) != picture_key(Image.new("RGB", (4, 4), (9, 9, 9)))
