"""The dense backend: the int4 checkpoint expanded to diffusers' stock transformer, for devices without int4 kernels."""

from diffusers.models.transformers.transformer_qwenimage import QwenImageTransformer2DModel

from qwen_edit.model.blank import WithoutMemory, assign_tensors
from qwen_edit.model.transformer.expansion import Expanded
from qwen_edit.model.transformer.fp8_linear import use_fp8
from qwen_edit.model.transformer.rotary import RotaryTable


def build_dense(expanded: Expanded, *, fp8: bool = False) -> QwenImageTransformer2DModel:
    """Build the stock transformer around a checkpoint that was expanded for it; its modulations are looked up.

    Args:
        fp8: whether it was expanded with `fp8_block`.

    Raises:
        ModelUnavailable: the tensors are not those of the checkpoint's configuration.
    """
    with WithoutMemory():
        transformer = QwenImageTransformer2DModel.from_config(expanded.info.config)
    if fp8:
        use_fp8(transformer)
    if expanded.modulations is not None:
        expanded.modulations.attach(transformer)
    transformer.pos_embed = RotaryTable(transformer.config.axes_dims_rope)
    return assign_tensors(transformer, expanded.tensors, expanded.info.file)
