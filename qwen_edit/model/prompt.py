"""Prompt and picture → the states that the transformer is conditioned on.

transformers' `Qwen2VLProcessor` cannot be built without torchvision, for a video processor that an edit never uses.
`PromptEncoder` joins the two halves that an edit uses: the PIL image processor and the tokenizer.
"""

from typing import NamedTuple

import torch
from PIL import Image
from torch import Tensor
from transformers.models.qwen2.tokenization_qwen2 import Qwen2Tokenizer
from transformers.models.qwen2_5_vl.modeling_qwen2_5_vl import Qwen2_5_VLModel
from transformers.models.qwen2_vl.image_processing_pil_qwen2_vl import Qwen2VLImageProcessorPil

from qwen_edit.model.vision_windows import window_inputs

IMAGE_TOKEN = "<|image_pad|>"  # noqa: S105 - a token of the vocabulary, not a secret

HEAD = (
    "<|im_start|>system\nDescribe the key features of the input image (color, shape, size, texture, objects, "
    "background), then explain how the user's text instruction should alter or modify the image. Generate a new image "
    "that meets the user's requirements while maintaining consistency with the original input where appropriate."
    f"<|im_end|>\n<|im_start|>user\n<|vision_start|>{IMAGE_TOKEN}<|vision_end|>"
)
TAIL = "<|im_end|>\n<|im_start|>assistant\n"
"""What the model was trained to read before and behind a prompt: `prompt_template_encode` of diffusers'
`QwenImageEditPipeline`."""

DROPPED = 64
"""Tokens of the head that the transformer does not see: `prompt_template_encode_start_idx` there."""


class PromptInputs(NamedTuple):
    """What Qwen2.5-VL reads of one prompt with one picture.

    `input_ids`, `attention_mask`: int64 [1, tokens]; `pixel_values`: float32 [patches, 1176]; `image_grid_thw`: int64
    [1, 3], patches by frame, row and column.
    """

    input_ids: Tensor
    attention_mask: Tensor
    pixel_values: Tensor
    image_grid_thw: Tensor


class PromptEncoder:
    """Tokenizes the template, patches its picture and runs the text encoder.

    A prompt is tokenized as plain text, so that it cannot close its own turn or add an image.
    """

    def __init__(
        self, tokenizer: Qwen2Tokenizer, image_processor: Qwen2VLImageProcessorPil, text_encoder: Qwen2_5_VLModel
    ) -> None:
        self.text_encoder = text_encoder
        self._tokenizer = tokenizer
        self._image_processor = image_processor
        self._image_token_id: int = tokenizer.convert_tokens_to_ids(IMAGE_TOKEN)

    def states(self, prompt: str, picture: Image.Image) -> Tensor:
        """The text encoder's last hidden states: [1, tokens, width] in its dtype.

        Args:
            picture: RGB.
        """
        device = self.text_encoder.device
        inputs = PromptInputs(*(tensor.to(device) for tensor in self.inputs(prompt, picture)))
        seen = self.text_encoder.get_image_features(
            inputs.pixel_values,
            inputs.image_grid_thw,
            return_dict=True,
            **window_inputs(self.text_encoder.visual, inputs.image_grid_thw),
        )
        output = self.text_encoder(
            input_ids=inputs.input_ids,
            attention_mask=inputs.attention_mask,
            image_grid_thw=inputs.image_grid_thw,
            mm_encoder_outputs={"image": seen},
        )
        states: Tensor = output.last_hidden_state[:, DROPPED:]
        return states.contiguous()

    def inputs(self, prompt: str, picture: Image.Image) -> PromptInputs:
        """What the text encoder reads, on the CPU."""
        features = self._image_processor(images=picture, return_tensors="pt")
        ids = self._tokenize(prompt, int(features["image_grid_thw"].prod()))
        return PromptInputs(ids[None], torch.ones_like(ids)[None], features["pixel_values"], features["image_grid_thw"])

    def token_count(self, prompt: str, size: tuple[int, int]) -> int:
        """How many tokens `states` has for a picture of this width and height, in pixels."""
        width, height = size
        patches = self._image_processor.get_number_of_image_patches(height, width)
        return self._tokenize(prompt, patches).numel() - DROPPED

    def _tokenize(self, prompt: str, patches: int) -> Tensor:
        head, tail = (self._ids(text, special=True) for text in (HEAD, TAIL))
        at = head.index(self._image_token_id)
        shown = [self._image_token_id] * (patches // self._image_processor.merge_size**2)
        ids = [*head[:at], *shown, *head[at + 1 :], *self._ids(prompt, special=False), *tail]
        return torch.tensor(ids, dtype=torch.int64)

    def _ids(self, text: str, *, special: bool) -> list[int]:
        return list(self._tokenizer(text, add_special_tokens=False, split_special_tokens=not special)["input_ids"])
