"""What each checkpoint learns to predict, and at which noise levels."""

import math
from collections.abc import Callable
from dataclasses import dataclass

import torch
from torch import Tensor

LIGHTNING_SIGMAS = torch.tensor([3 * s / (1 + 2 * s) for s in torch.arange(8, 0, -1).div(8).tolist()])
"""Where the eight steps of the lightning schedule stand: a constant shift of 3."""

GUIDANCE = 4.0
"""What the original checkpoint is served with."""

NEGATIVE_SHARE = 0.5
"""How much of `noisy − reference` the original predicts for the empty prompt."""

_SHIFT = math.exp(0.69)  # of the base model's schedule at a megapixel
_TERMINAL = 0.02


@dataclass(frozen=True)
class Objective:
    """How a checkpoint is trained.

    `sigmas` draws noise levels [batch]. `velocity` gives what to predict from noisy tokens, noise, target, reference
    and which pictures of the batch have the empty prompt. `empty` is the share of those.
    """

    sigmas: Callable[[int, torch.Generator], Tensor]
    velocity: Callable[[Tensor, Tensor, Tensor, Tensor, Tensor], Tensor]
    empty: float


def _lightning_sigmas(count: int, generator: torch.Generator) -> Tensor:
    return LIGHTNING_SIGMAS[torch.randint(len(LIGHTNING_SIGMAS), (count,), generator=generator)]


def _straight(_noisy: Tensor, noise: Tensor, target: Tensor, _reference: Tensor, _empty: Tensor) -> Tensor:
    """Flow matching: the target of the empty prompt is the reference itself."""
    return noise - target


def _original_sigmas(count: int, generator: torch.Generator) -> Tensor:
    uniform = torch.rand(count, generator=generator)
    return _TERMINAL + (1 - _TERMINAL) * _SHIFT * uniform / (1 + (_SHIFT - 1) * uniform)


def _guided(noisy: Tensor, noise: Tensor, target: Tensor, reference: Tensor, empty: Tensor) -> Tensor:
    """The prediction that guidance turns into the velocity.

    The pipeline adds up `n + 4 (c − n)` of the predictions c for the prompt and n for the empty one and scales the sum
    of each token to the length of c. With n fixed, c follows: `4 c − 3 n = λ v`, λ such that c is as long as v.
    A model that learnt v itself would overshoot the edit fourfold; this one needs its guidance to reach it.
    """
    velocity, negative = noise - target, NEGATIVE_SHARE * (noisy - reference)
    rest = (GUIDANCE - 1) * negative
    along, length = (velocity * rest).sum(-1, keepdim=True), velocity.square().sum(-1, keepdim=True)
    spare = (GUIDANCE**2 * length - rest.square().sum(-1, keepdim=True)).clamp(min=0)
    scale = (-along + (along.square() + spare * length).sqrt()) / length
    return torch.where(empty[:, None, None], negative, (scale * velocity + rest) / GUIDANCE)


LIGHTNING = Objective(_lightning_sigmas, _straight, empty=0.05)
ORIGINAL = Objective(_original_sigmas, _guided, empty=0.3)
