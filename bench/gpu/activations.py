"""What an edit of 1024 × 1024 pixels takes beside the weights: the largest sum of tensors that live at once.

    python -m bench.gpu.activations

Every stage runs with the real configuration on PyTorch's meta device, which computes shapes and no numbers, so this
needs neither weights nor a GPU. Counted are the tensors that PyTorch hands out, not what kernels take for themselves.
"""

import weakref
from collections.abc import Callable, Sequence
from typing import Any

import torch
from diffusers.models.autoencoders.autoencoder_kl_qwenimage import AutoencoderKLQwenImage
from torch import Tensor
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves
from transformers.models.qwen2_5_vl.configuration_qwen2_5_vl import Qwen2_5_VLTextConfig
from transformers.models.qwen2_5_vl.modeling_qwen2_5_vl import Qwen2_5_VLTextModel

from qwen_edit.model.transformer.dense import blank_dense

TEXT_TOKENS = 1500
"""Of a prompt with a picture of one megapixel."""

TEXT_CONFIG = {
    "vocab_size": 152064,
    "hidden_size": 3584,
    "intermediate_size": 18944,
    "num_hidden_layers": 2,
    "num_attention_heads": 28,
    "num_key_value_heads": 4,
    "rope_parameters": {"rope_type": "default", "mrope_section": [16, 24, 24], "rope_theta": 1000000.0},
    "use_cache": False,
}
"""Qwen2.5-VL-7B's language model; of its 28 layers two, which need no less at once than all."""


class LiveBytes(TorchDispatchMode):
    """Adds up the storages that operations hand out while they live."""

    def __init__(self) -> None:
        super().__init__()
        self.peak = self._live = 0
        self._seen: set[int] = set()

    def __torch_dispatch__(
        self,
        function: Callable[..., Any],
        types: object,
        args: Sequence[Any] = (),
        kwargs: dict[str, Any] | None = None,
    ) -> object:
        result = function(*args, **(kwargs or {}))
        for leaf in tree_leaves(result):
            if isinstance(leaf, Tensor) and leaf.is_meta:
                self._count(leaf.untyped_storage())
        return result

    def _count(self, storage: torch.UntypedStorage) -> None:
        key, size = storage._cdata, storage.nbytes()
        if key in self._seen:
            return
        self._seen.add(key)
        self._live += size
        self.peak = max(self.peak, self._live)
        weakref.finalize(storage, self._forget, key, size)

    def _forget(self, key: int, size: int) -> None:
        self._seen.discard(key)
        self._live -= size


def peak(run: Callable[[], object]) -> int:
    """Bytes of the tensors that live at once while `run` runs."""
    live = LiveBytes()
    with torch.inference_mode(), live:
        run()
    return live.peak


def empty(*shape: int) -> Tensor:
    return torch.empty(shape, dtype=torch.bfloat16, device="meta")


def transformer(batch: int) -> int:
    """One forward with 4,096 tokens of noise and 4,096 of the picture; two blocks need no less than sixty."""
    model = blank_dense({"num_layers": 2}).to(torch.bfloat16).eval()
    return peak(
        lambda: model(
            hidden_states=empty(batch, 2 * 4096, 64),
            encoder_hidden_states=empty(batch, TEXT_TOKENS, 3584),
            timestep=empty(batch),
            img_shapes=[[(1, 64, 64), (1, 64, 64)]] * batch,
        )
    )


def text_model() -> int:
    """The language model over a prompt; the vision tower before it takes less."""
    with torch.device("meta"):
        model = Qwen2_5_VLTextModel(Qwen2_5_VLTextConfig(**TEXT_CONFIG)).to(torch.bfloat16).eval()
        positions = torch.empty(3, 1, TEXT_TOKENS, dtype=torch.int64)
    return peak(lambda: model(inputs_embeds=empty(1, TEXT_TOKENS, 3584), position_ids=positions, attention_mask=None))


def vae_encode(side: int) -> int:
    with torch.device("meta"):
        vae = AutoencoderKLQwenImage().to(torch.bfloat16).eval()
    return peak(lambda: vae.encode(empty(1, 3, 1, side, side)))


def vae_decode(side: int, *, tiling: bool = False) -> int:
    with torch.device("meta"):
        vae = AutoencoderKLQwenImage().to(torch.bfloat16).eval()
    if tiling:
        vae.enable_tiling()
    return peak(lambda: vae.decode(empty(1, 16, 1, side // 8, side // 8)))


def main() -> None:
    rows = {
        "text encoder": text_model(),
        "VAE, encode": vae_encode(1024),
        "transformer": transformer(1),
        "transformer, 2 pictures": transformer(2),
        "VAE, decode": vae_decode(1024),
        "VAE, decode in tiles": vae_decode(1024, tiling=True),
        "VAE, decode 2048 × 2048": vae_decode(2048),
    }
    for name, size in rows.items():
        print(f"| {name} | {size / 1e9:.2f} |")


if __name__ == "__main__":
    main()
