"""The nunchaku backend: the int4 checkpoint as it is, in the engine's own model and run by its kernels."""

from collections.abc import Mapping
from typing import Any

import torch
from diffusers.models.transformers.transformer_qwenimage import QwenImageTransformer2DModel
from torch import Tensor, nn

from qwen_edit.errors import ModelUnavailable
from qwen_edit.model.blank import WithoutMemory, assign_tensors
from qwen_edit.model.transformer.nunchaku_engine import engine_class
from qwen_edit.model.transformer.rotary import Rotary
from qwen_edit.svdq.checkpoint import CheckpointInfo
from qwen_edit.svdq.layout import GROUP
from qwen_edit.svdq.modules import AWQ_MODULES, NORMS, block_prefix, top_level_tensors

UNKNOWN_TO_ENGINE = ("zero_cond_t", "use_additional_t_cond", "use_layer3d_rope", "guidance_embeds")
"""Fields of newer models that change what a forward computes, which the engine's does not know."""


def load_nunchaku(
    info: CheckpointInfo, packed: Mapping[str, Tensor], dtype: torch.dtype
) -> QwenImageTransformer2DModel:
    """Build the engine's transformer around a checkpoint's tensors, which are taken as they are.

    Args:
        info: the checkpoint's header, which has passed `read_header`.
        packed: its tensors, on the device where they will be computed with, or on the CPU for `offload_blocks`.
        dtype: of what is not quantized; the kernels want bfloat16, the file's own.

    Raises:
        ModelUnavailable: the engine is not there or another, or the file is of a model that it does not know.
    """
    for field in UNKNOWN_TO_ENGINE:
        if info.config[field]:
            raise ModelUnavailable(
                f"{info.file}: metadata 'config' has {field} {info.config[field]}, expected false: "
                "Nunchaku's engine does not know it; QWEN_EDIT_BACKEND=dense does"
            )
    model = engine_class()
    with WithoutMemory():
        # Not from_config, which does not see through the class's constructor and would build sixty default layers.
        transformer: QwenImageTransformer2DModel = model(**info.config)
        # Not the class's own `to`, with which diffusers warns of modules to keep in float32, of which there are none.
        nn.Module.to(transformer, dtype)
        transformer._patch_model(precision="int4", rank=info.rank)
    # The engine puts its W4A16 layers on the CPU, whatever is said here: like all else they are replaced now.
    assign_tensors(transformer, _as_engine_has_them(info, packed, dtype), info.file)
    transformer.pos_embed = RotaryTable(list(info.config["axes_dims_rope"]))
    transformer.register_forward_pre_hook(_add_text_lengths, with_kwargs=True)
    return transformer


def offload_blocks(transformer: QwenImageTransformer2DModel) -> None:
    """Let the blocks wait in the host's pinned memory; the engine copies each ahead of its turn. CUDA only."""
    transformer.set_offload(True, num_blocks_on_gpu=1)


class RotaryTable(nn.Module):
    """diffusers' rotary table, which today is asked for one length of text, for an engine that gives a list of them."""

    def __init__(self, axes: list[int]) -> None:
        super().__init__()
        self._table = Rotary(axes)

    @property
    def pos_freqs(self) -> Tensor:
        """Complex frequencies of the positions from 0 on: as many rows as there are positions."""
        frequencies: Tensor = self._table.pos_freqs
        return frequencies

    def forward(
        self,
        video_fhw: object,
        txt_seq_lens: list[int] | torch.device | None = None,
        device: torch.device | None = None,
        max_txt_seq_len: int | None = None,
    ) -> tuple[Tensor, Tensor]:
        """Both `(video_fhw, txt_seq_lens, device)` and diffusers' `(video_fhw, device, max_txt_seq_len=n)`.

        Returns:
            Complex frequencies of the pictures [tokens, head / 2] and of the text [longest, head / 2].
        """
        if isinstance(txt_seq_lens, list):
            max_txt_seq_len = max(txt_seq_lens)
        elif txt_seq_lens is not None:
            device = txt_seq_lens
        frequencies: tuple[Tensor, Tensor] = self._table(video_fhw, device=device, max_txt_seq_len=max_txt_seq_len)
        return frequencies


def _add_text_lengths(
    _transformer: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any]
) -> tuple[tuple[Any, ...], dict[str, Any]]:
    """Say how long the text is; diffusers 0.37 and later leave that to the shape of the embeddings."""
    batch, length = kwargs["encoder_hidden_states"].shape[:2]
    return args, {**kwargs, "txt_seq_lens": [length] * batch}


def _as_engine_has_them(info: CheckpointInfo, packed: Mapping[str, Tensor], dtype: torch.dtype) -> dict[str, Tensor]:
    plain = set(top_level_tensors(info.config))
    plain |= {f"{block_prefix(block)}{norm}.weight" for block in range(info.num_layers) for norm in NORMS}
    tensors = {name: tensor.to(dtype) if name in plain else tensor for name, tensor in packed.items()}
    for block in range(info.num_layers):
        for module in AWQ_MODULES:
            prefix = f"{block_prefix(block)}{module}."
            groups = tensors[f"{prefix}qweight"].shape[1] * 2 // GROUP
            for part in ("wscales", "wzeros"):
                # A narrow model's file pads the rows; what the engine expects are the first.
                tensors[prefix + part] = tensors[prefix + part][:groups]
    return tensors
