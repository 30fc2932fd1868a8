"""Prompt and picture → the tensors that Qwen2.5-VL reads, as diffusers' `QwenImageEditPipeline` calls for them.

transformers' `Qwen2VLProcessor` cannot be built without torchvision, for a video processor that an edit never uses.
This joins the two halves that are used: the PIL image processor and the tokenizer.
"""

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import torch
from PIL import Image
from torch import Tensor
from transformers.feature_extraction_utils import BatchFeature
from transformers.models.qwen2.tokenization_qwen2 import Qwen2Tokenizer
from transformers.models.qwen2_vl.image_processing_pil_qwen2_vl import Qwen2VLImageProcessorPil

IMAGE_TOKEN = "<|image_pad|>"  # noqa: S105 - a token of the vocabulary, not a secret
PICTURE_END = "<|vision_end|>"
TURN_END = "<|im_end|>"


class EditProcessor:
    """Tokenizes the pipeline's template and patches its pictures.

    The template holds the prompt between its first `<|vision_end|>` and its last `<|im_end|>`. What stands there was
    written by the caller and is tokenized as plain text, so that a prompt cannot close its own turn or add an image.
    """

    def __init__(self, tokenizer: Qwen2Tokenizer, image_processor: Qwen2VLImageProcessorPil) -> None:
        self.tokenizer = tokenizer
        self.image_processor = image_processor
        self.image_token_id: int = tokenizer.convert_tokens_to_ids(IMAGE_TOKEN)

    @classmethod
    def load(cls, tokenizer: Qwen2Tokenizer, folder: Path) -> "EditProcessor":
        """Read `preprocessor_config.json` from the base model's `processor/` folder."""
        return cls(tokenizer, Qwen2VLImageProcessorPil.from_pretrained(folder))

    def __call__(
        self,
        text: Sequence[str],
        images: Image.Image,
        padding: bool = True,  # noqa: ARG002 - the pipeline passes it; one text needs none
        return_tensors: str = "pt",
    ) -> BatchFeature:
        """Prepare one text with one picture in it.

        Args:
            text: one filled template with one `<|image_pad|>` outside the prompt.
            images: the picture, RGB.

        Returns:
            `input_ids`, `attention_mask`: int64 [1, tokens]; `pixel_values`: float32 [patches, 1176];
            `image_grid_thw`: int64 [1, 3].
        """
        (template,) = text
        features = self.image_processor(images=images, return_tensors=return_tensors)
        patches = int(features["image_grid_thw"].prod())
        ids = self._tokenize(template, patches // self.image_processor.merge_size**2)
        return BatchFeature(
            {
                "input_ids": ids[None],
                "attention_mask": torch.ones_like(ids)[None],
                "pixel_values": features["pixel_values"],
                "image_grid_thw": features["image_grid_thw"],
            }
        )

    def token_count(self, text: str, width: int, height: int) -> int:
        """How many tokens `__call__` gives for this filled template with a picture of width × height pixels."""
        patches = self.image_processor.get_number_of_image_patches(height, width)
        return self._tokenize(text, patches // self.image_processor.merge_size**2).numel()

    def _tokenize(self, text: str, image_tokens: int) -> Tensor:
        head, picture_end, rest = text.partition(PICTURE_END)
        prompt, turn_end, tail = rest.rpartition(TURN_END)
        ids = [
            *self._ids(head + picture_end),
            *self._ids(prompt, split_special_tokens=True),
            *self._ids(turn_end + tail),
        ]
        at = ids.index(self.image_token_id)
        return torch.tensor([*ids[:at], *[self.image_token_id] * image_tokens, *ids[at + 1 :]], dtype=torch.int64)

    def _ids(self, text: str, **options: Any) -> list[int]:  # noqa: ANN401 - handed on to the tokenizer
        return list(self.tokenizer(text, add_special_tokens=False, **options)["input_ids"])
