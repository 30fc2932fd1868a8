"""The stages inside a call of diffusers' pipeline: timed, and not gone through twice with the same content."""

from typing import Any

import torch
from diffusers.pipelines.qwenimage.pipeline_qwenimage_edit import QwenImageEditPipeline
from PIL import Image
from torch import Tensor

from qwen_edit.edit.stopwatch import Stopwatch
from qwen_edit.model.content_cache import ContentCache, Key, picture_key

_NOTHING = ContentCache(max_bytes=0)


class StagedPipeline(QwenImageEditPipeline):
    """The stock pipeline, with a stopwatch around its stages and a memory of what it has encoded.

    `contents` holds what does not depend on the checkpoint: embeddings of a prompt with its picture, and a picture's
    latents. Both are the bits that the encoders gave: of the VAE the pipeline takes the mean, and draws nothing.
    """

    # No constructor: diffusers reads a pipeline's modules from the signature of its own.
    stopwatch = Stopwatch()
    contents = _NOTHING
    reference: tuple[Tensor, Tensor] | None = None  # the picture that is edited: its pixels, its packed latents
    _shown: Key | None = None  # the picture that is edited, as the text encoder saw it

    def encode_prompt(self, *args: Any, **kwargs: Any) -> Any:  # noqa: ANN401 - the stock signature is handed on
        """See the stock pipeline; the time goes to `prompt`."""
        with self.stopwatch.stage("prompt"):
            return super().encode_prompt(*args, **kwargs)

    def prepare_latents(self, *args: Any, **kwargs: Any) -> Any:  # noqa: ANN401 - the stock signature is handed on
        """See the stock pipeline, which encodes the reference picture here; the time goes to `vae_encode`."""
        with self.stopwatch.stage("vae_encode"):
            latents, reference = super().prepare_latents(*args, **kwargs)
        self.reference = (args[0], reference)
        return latents, reference

    def maybe_free_model_hooks(self) -> None:
        """Nothing: no part of this pipeline is hooked, and to look for that imports the compiler."""

    def _get_qwen_prompt_embeds(
        self, prompt: list[str], image: Image.Image, device: torch.device
    ) -> tuple[Tensor, ...]:
        encode = super()._get_qwen_prompt_embeds
        self._shown = picture_key(image)
        return self.contents.get(("prompt", self._shown, *prompt), lambda: encode(prompt, image, device))

    def _encode_vae_image(self, image: Tensor, generator: object) -> Tensor:
        encode = super()._encode_vae_image
        shown, self._shown = self._shown, None  # used up, lest another call takes it for its own
        key = ("latents", shown, image.shape, self.vae.use_tiling)
        contents = self.contents if shown else _NOTHING
        (latents,) = contents.get(key, lambda: (encode(image, generator),))
        return latents
