"""The attention of the vision tower's windows, all windows of a layer in one call.

transformers splits a picture of one megapixel into about a hundred windows and attends to one after the other, 2,800
calls for 28 layers, and each layer reads the windows' bounds back from the device.

It waits for a figure from a GPU: `docs/architecture.md`, "Waiting for a GPU".
"""

from dataclasses import dataclass

import torch
from torch import Tensor, nn
from torch.nn.functional import scaled_dot_product_attention
from transformers.models.qwen2_5_vl.modeling_qwen2_5_vl import (
    Qwen2_5_VisionTransformerPretrainedModel,
    Qwen2_5_VLVisionAttention,
    apply_rotary_pos_emb_vision,
)
from transformers.vision_utils import get_vision_cu_seqlens, get_vision_position_ids, get_vision_window_index


def batch_windows(tower: Qwen2_5_VisionTransformerPretrainedModel) -> None:
    """Let each windowed layer of a vision tower attend to all its windows in one call.

    Names and weights stay. Given `window_inputs`, the tower reads nothing from the device. Without them, each windowed
    layer reads the windows' bounds, as in a stock tower.
    """
    for index, block in enumerate(tower.blocks):
        if index not in tower.fullatt_block_indexes:
            block.attn = WindowAttention(block.attn)


@dataclass(frozen=True)
class Windows:
    """How tokens that lie window after window fill a batch of windows.

    The rows of shorter windows are filled up with tokens of others, which the mask hides from their queries.

    Attributes:
        longest: how many tokens a row holds.
        tokens: the token at each place, row after row, int64 [windows × longest].
        places: the place of each token, int64 [tokens].
        mask: where a window has its own tokens, bool [windows, 1, 1, longest]; None if all are equally long.
    """

    longest: int
    tokens: Tensor
    places: Tensor
    mask: Tensor | None

    @classmethod
    def between(cls, bounds: Tensor, device: torch.device) -> "Windows":
        """For windows that begin and end at `bounds`, integers [windows + 1] on the CPU, from 0 to the last."""
        lengths = bounds.diff()
        longest = int(lengths.max())
        own = torch.arange(longest) < lengths[:, None]
        tokens = (bounds[:-1, None] + torch.arange(longest)).clamp(max=bounds[-1] - 1).flatten()
        places = own.flatten().nonzero().squeeze(1)
        mask = None if own.all() else own[:, None, None].to(device)
        return cls(longest, tokens.to(device), places.to(device), mask)

    def split(self, states: Tensor) -> Tensor:
        """From [tokens, heads, channels] to [windows, heads, longest, channels]."""
        return states.index_select(0, self.tokens).view(-1, self.longest, *states.shape[1:]).transpose(1, 2)

    def join(self, states: Tensor) -> Tensor:
        """The way back from `split`."""
        return states.transpose(1, 2).flatten(0, 1).index_select(0, self.places)


class WindowAttention(nn.Module):
    """The stock attention's weights, used on all windows together."""

    def __init__(self, stock: Qwen2_5_VLVisionAttention) -> None:
        """Take the projections of `stock`."""
        super().__init__()
        self.heads: int = stock.num_heads
        self.qkv: nn.Linear = stock.qkv
        self.proj: nn.Linear = stock.proj

    def forward(
        self,
        hidden_states: Tensor,
        position_embeddings: tuple[Tensor, Tensor],
        cu_seqlens: Tensor,
        windows: Windows | None = None,
        **_: object,
    ) -> Tensor:
        """Attend within each window.

        Args:
            hidden_states: [tokens, width], window after window.
            position_embeddings: cosines and sines, [tokens, width / heads] each.
            cu_seqlens: the windows' bounds, integers [windows + 1]; not read where `windows` are given.
            windows: which tokens are whose.
        """
        windows = windows or Windows.between(cu_seqlens.cpu(), hidden_states.device)
        query, key, value = self.qkv(hidden_states).unflatten(1, (3, self.heads, -1)).unbind(1)
        query, key = apply_rotary_pos_emb_vision(query, key, *position_embeddings)
        query, key, value = (windows.split(states) for states in (query, key, value))
        attended = scaled_dot_product_attention(query, key, value, attn_mask=windows.mask)
        output: Tensor = self.proj(windows.join(attended).flatten(1))
        return output


def window_inputs(tower: Qwen2_5_VisionTransformerPretrainedModel, grid_thw: Tensor) -> dict[str, object]:
    """All that a tower would otherwise compute from `grid_thw` in each layer, by the names that it looks for.

    Args:
        grid_thw: patches of each picture by frame, row and column: integers [pictures, 3]. It is read from its device.
    """
    grid = grid_thw.cpu()
    order, bounds = get_vision_window_index(grid, tower.spatial_merge_size, tower.window_size, tower.patch_size)
    return {
        "position_ids": get_vision_position_ids(grid, tower.spatial_merge_size).to(tower.device),
        "window_index": order.to(tower.device),
        "windows": Windows.between(bounds, tower.device),
        # The stock attention splits by these on the host.
        "cu_seqlens": get_vision_cu_seqlens(grid),
        "cu_window_seqlens": bounds,
    }
