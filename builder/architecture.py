"""How many parameters the base model's parts have, from their published configurations. No torch: it is arithmetic."""

from dataclasses import dataclass
from itertools import pairwise


@dataclass(frozen=True)
class Language:
    """The language model of Qwen2.5-VL-7B, by the numbers of its config.json; the head is not tied."""

    hidden: int = 3584
    layers: int = 28
    intermediate: int = 18944
    heads: int = 28
    key_value_heads: int = 4
    vocabulary: int = 152064

    @property
    def parameters(self) -> int:
        embedding_and_head = 2 * self.vocabulary * self.hidden
        return embedding_and_head + self.layers * self._layer() + self.hidden

    def _layer(self) -> int:
        key_value = self.key_value_heads * self.hidden // self.heads
        attention = linear(self.hidden, self.hidden) + 2 * linear(self.hidden, key_value) + self.hidden**2
        return attention + 3 * self.hidden * self.intermediate + 2 * self.hidden


@dataclass(frozen=True)
class Vision:
    """The vision tower of Qwen2.5-VL-7B. A patch is `frames` pictures deep; the merger joins `merge`² patches."""

    hidden: int = 1280
    depth: int = 32
    intermediate: int = 3420
    out: int = 3584
    patch: int = 14
    frames: int = 2
    merge: int = 2

    @property
    def parameters(self) -> int:
        patches = 3 * self.frames * self.patch**2 * self.hidden
        merged = self.merge**2 * self.hidden
        merger = self.hidden + linear(merged, merged) + linear(merged, self.out)
        return patches + self.depth * self._block() + merger

    def _block(self) -> int:
        attention = linear(self.hidden, 3 * self.hidden) + linear(self.hidden, self.hidden)
        mlp = 2 * linear(self.hidden, self.intermediate) + linear(self.intermediate, self.hidden)
        return attention + mlp + 2 * self.hidden


@dataclass(frozen=True)
class Autoencoder:
    """Qwen-Image's VAE, `AutoencoderKLQwenImage` with its default configuration: causal 3-D convolutions.

    `temporal` says of each change of resolution, as the encoder meets them, whether it also changes the frame rate.
    """

    width: int = 96
    latent: int = 16
    multiples: tuple[int, ...] = (1, 2, 4, 4)
    blocks: int = 2
    temporal: tuple[bool, ...] = (False, True, True)

    @property
    def parameters(self) -> int:
        quantization = linear(2 * self.latent, 2 * self.latent) + linear(self.latent, self.latent)
        return self._encoder() + quantization + self._decoder()

    def _encoder(self) -> int:
        widths = [self.width * multiple for multiple in (1, *self.multiples)]
        stages = pairwise(widths)
        blocks = sum(_residual(before, after) + (self.blocks - 1) * _residual(after, after) for before, after in stages)
        resampled = zip(widths[1:], self.temporal, strict=False)
        down = sum(_square(width, width) + temporal * linear(3 * width, width) for width, temporal in resampled)
        ends = _cube(3, self.width) + widths[-1] + _cube(widths[-1], 2 * self.latent)
        return ends + blocks + down + _middle(widths[-1])

    def _decoder(self) -> int:
        widths = [self.width * multiple for multiple in (self.multiples[-1], *reversed(self.multiples))]
        ends = _cube(self.latent, widths[0]) + widths[-1] + _cube(widths[-1], 3)
        # An upsampler halves the channels, so each stage but the first begins with half of the one before.
        first = [widths[0], *(width // 2 for width in widths[1:-1])]
        stages = zip(first, widths[1:], strict=True)
        blocks = sum(_residual(before, after) + self.blocks * _residual(after, after) for before, after in stages)
        resampled = zip(widths[1:], reversed(self.temporal), strict=False)
        up = sum(_square(width, width // 2) + temporal * linear(3 * width, 2 * width) for width, temporal in resampled)
        return ends + blocks + up + _middle(widths[0])


def linear(inputs: int, outputs: int) -> int:
    """Parameters of a linear layer with bias, or of a convolution whose taps are counted in `inputs`."""
    return (inputs + 1) * outputs


def _cube(inputs: int, outputs: int) -> int:
    return linear(27 * inputs, outputs)


def _square(inputs: int, outputs: int) -> int:
    return linear(9 * inputs, outputs)


def _residual(inputs: int, outputs: int) -> int:
    """Two norms and two convolutions, and a pointwise shortcut where the channels change."""
    shortcut = linear(inputs, outputs) if inputs != outputs else 0
    return inputs + _cube(inputs, outputs) + outputs + _cube(outputs, outputs) + shortcut


def _middle(width: int) -> int:
    """Two residual blocks around one attention."""
    return 2 * _residual(width, width) + width + linear(width, 3 * width) + linear(width, width)
