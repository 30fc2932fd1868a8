"""Tensors that were computed from a picture or a prompt, kept for the next edit of the same."""

from collections import OrderedDict
from collections.abc import Callable
from hashlib import blake2b

from PIL import Image
from torch import Tensor

MAX_BYTES = 128 << 20
"""A prompt with its picture makes 11 MB at full size (1,500 tokens of 3,584 bfloat16), a picture's latents 0.5 MB."""

Key = tuple[object, ...]
Tensors = tuple[Tensor, ...]


def picture_key(picture: Image.Image) -> Key:
    """What tells one picture from another: the layout of its pixels, its size and a digest of the pixels."""
    return (picture.mode, picture.size, blake2b(picture.tobytes(), digest_size=32).digest())


class ContentCache:
    """The latest results by the content that they were computed from, of at most so many bytes together."""

    def __init__(self, max_bytes: int = MAX_BYTES) -> None:
        self._max_bytes = max_bytes
        self._entries: OrderedDict[Key, Tensors] = OrderedDict()

    @property
    def bytes(self) -> int:
        """Of all tensors that are kept."""
        return sum(map(_bytes, self._entries.values()))

    def get(self, key: Key, compute: Callable[[], Tensors]) -> Tensors:
        """The result for a key, computed where it is not kept. The caller must not write to it.

        Args:
            key: everything that the result depends on.
        """
        if key not in self._entries:
            result = compute()
            if _bytes(result) > self._max_bytes:
                return result
            self._entries[key] = result
        self._entries.move_to_end(key)
        while self.bytes > self._max_bytes:
            self._entries.popitem(last=False)
        return self._entries[key]

    def clear(self) -> None:
        """Let everything go."""
        self._entries.clear()


def _bytes(tensors: Tensors) -> int:
    return sum(tensor.nbytes for tensor in tensors)
