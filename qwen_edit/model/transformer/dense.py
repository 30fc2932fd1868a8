"""The dense backend: the int4 checkpoint expanded to plain layers, for devices without int4 kernels.

The transformer is diffusers' own around blocks of ours.
"""

from collections.abc import Mapping
from typing import Any

from diffusers.models.transformers.transformer_qwenimage import QwenImageTransformer2DModel
from torch import nn

from qwen_edit.model.blank import WithoutMemory, assign_tensors
from qwen_edit.model.transformer.block import Block
from qwen_edit.model.transformer.expansion import Expanded
from qwen_edit.model.transformer.fp8_linear import use_fp8
from qwen_edit.model.transformer.fused.choose import PLAIN, Kernels
from qwen_edit.model.transformer.rotary import RealRotaryTable
from qwen_edit.svdq.modules import CONFIG_DEFAULTS


def build_dense(expanded: Expanded, kernels: Kernels = PLAIN, *, fp8: bool = False) -> QwenImageTransformer2DModel:
    """Build the transformer around a checkpoint that was expanded for it; its modulations are looked up.

    Args:
        kernels: what its blocks compute with between their products.
        fp8: whether it was expanded with `fp8_block`.

    Raises:
        ModelUnavailable: the tensors are not those of the checkpoint's configuration.
    """
    transformer = blank_dense(expanded.info.config, kernels, fp8=fp8)
    if expanded.modulations is not None:
        expanded.modulations.attach(transformer)
    return assign_tensors(transformer, expanded.tensors, expanded.info.file)


def blank_dense(
    config: Mapping[str, Any], kernels: Kernels = PLAIN, *, fp8: bool = False
) -> QwenImageTransformer2DModel:
    """The transformer of a configuration on the meta device; its modulations are layers like others.

    Args:
        config: of the checkpoint.
        kernels: see `build_dense`.
        fp8: whether the layers of `FP8_MODULES` are in fp8.
    """
    config = {**CONFIG_DEFAULTS, **config}
    heads, channels = config["num_attention_heads"], config["attention_head_dim"]
    layers, zero_cond_t = config["num_layers"], config["zero_cond_t"]
    with WithoutMemory():
        transformer = QwenImageTransformer2DModel.from_config({**config, "num_layers": 0})
        blocks = nn.ModuleList(Block(heads, channels, kernels, zero_cond_t=zero_cond_t) for _ in range(layers))
    transformer.register_to_config(num_layers=layers)
    transformer.transformer_blocks = blocks
    transformer.pos_embed = RealRotaryTable(config["axes_dims_rope"])
    if fp8:
        use_fp8(transformer, kernels)
    return transformer
