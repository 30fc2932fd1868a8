"""diffusers' own `QwenImageEditPipeline`, assembled from parts that were loaded here, and driven by a plan."""

import gc
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import torch
from diffusers.pipelines.qwenimage.pipeline_qwenimage_edit import QwenImageEditPipeline
from diffusers.schedulers.scheduling_flow_match_euler_discrete import FlowMatchEulerDiscreteScheduler
from PIL import Image
from torch import Tensor
from transformers.models.qwen2.tokenization_qwen2 import Qwen2Tokenizer

from qwen_edit.catalog import BASE_FOLDER, Checkpoint
from qwen_edit.errors import Cancelled, InvalidRequest, ModelUnavailable
from qwen_edit.models.device import choose_dtype, device_name, out_of_memory, wait_for
from qwen_edit.models.preview import Projection
from qwen_edit.models.processor import EditProcessor
from qwen_edit.models.text_encoder import load_text_encoder
from qwen_edit.models.transformer_dense import load_dense
from qwen_edit.models.vae import decode_latents, load_vae
from qwen_edit.selection import Plan, default_size
from qwen_edit.step import OnStep, Step
from qwen_edit.stopwatch import Stopwatch
from qwen_edit.svdq.checkpoint import read_header
from qwen_edit.weights.reader import Weights, folder_tensors

_SHOWN_SCHEDULE = (
    "base_image_seq_len",
    "base_shift",
    "max_image_seq_len",
    "max_shift",
    "shift",
    "shift_terminal",
    "time_shift_type",
    "use_dynamic_shifting",
)


class EditPipeline(QwenImageEditPipeline):
    """The stock pipeline, with a stopwatch around the stages inside its call and a transformer that can be changed."""

    # No constructor: diffusers reads a pipeline's modules from the signature of its own.
    stopwatch = Stopwatch()
    _reference: tuple[Tensor, Tensor] | None = None  # the picture that is edited: its pixels, its packed latents

    @classmethod
    def load(cls, base: Path, weights: Weights) -> "EditPipeline":
        """Assemble everything but the transformer and its scheduler, which come with a checkpoint.

        Args:
            base: the folder of the base model.
            weights: its files on their way to the device.

        Raises:
            ModelUnavailable: a part is missing or damaged.
        """
        dtype = choose_dtype(weights.device)
        with _readable("tokenizer"):
            tokenizer = Qwen2Tokenizer.from_pretrained(base / "tokenizer", local_files_only=True)
        with _readable("processor"):
            processor = EditProcessor.load(tokenizer, base / "processor")
        with _readable("text_encoder"):
            text_encoder = load_text_encoder(
                base / "text_encoder", folder_tensors(weights, base / "text_encoder", dtype), dtype
            )
        with _readable("vae"):
            vae = load_vae(base / "vae", folder_tensors(weights, base / "vae", dtype))
        pipeline = cls(
            scheduler=None,
            vae=vae,
            text_encoder=text_encoder,
            tokenizer=tokenizer,
            processor=processor,
            transformer=None,
        )
        pipeline.set_progress_bar_config(disable=True)
        return pipeline

    def use(self, checkpoint: Checkpoint, models: Path, weights: Weights) -> None:
        """Change to another checkpoint: its transformer and its scheduler. The rest stays.

        Call `drop_transformer` before the new one is read, so that the two are never in memory together.

        Args:
            models: the model directory.
            weights: the checkpoint's file on its way to the device.

        Raises:
            ModelUnavailable: the checkpoint is missing or damaged.
        """
        path = models / checkpoint.path
        info = read_header(path)
        with _readable("scheduler"):
            schedule = checkpoint.schedule or FlowMatchEulerDiscreteScheduler.load_config(
                models / BASE_FOLDER / "scheduler"
            )
            self.scheduler = FlowMatchEulerDiscreteScheduler.from_config(dict(schedule))
        self.transformer: Any = load_dense(info, weights.tensors(path), self.text_encoder.dtype)

    def drop_transformer(self) -> None:
        """Let the transformer go, and its memory."""
        self.transformer = None
        _free()

    def describe(self) -> dict[str, Any]:
        """What makes the pictures, in the words of `ModelInfo`."""
        schedule = {key: self.scheduler.config[key] for key in _SHOWN_SCHEDULE}
        return {
            "precision": "int4",
            "backend": "dense",
            "device": device_name(self.text_encoder.device),
            "dtype": str(self.text_encoder.dtype).removeprefix("torch."),
            "scheduler": {"name": type(self.scheduler).__name__, **schedule},
        }

    def start_stopwatch(self) -> Stopwatch:
        """Time what comes next."""
        device = self.text_encoder.device
        self.stopwatch = Stopwatch(lambda: wait_for(device))
        return self.stopwatch

    @torch.inference_mode()
    def render(
        self, picture: Image.Image, prompt: str, plan: Plan, on_step: OnStep, cancelled: Callable[[], bool]
    ) -> list[Image.Image]:
        """Edit one picture as planned.

        Args:
            picture: RGB.
            on_step: called after each step, but not once the flag is set.
            cancelled: the flag, asked before the first step and after each one.

        Returns:
            `plan.num_images` pictures of `plan.width` × `plan.height` pixels, the one at i drawn from the seed plus i.

        Raises:
            InvalidRequest: the prompt has more tokens than the picture leaves room for.
            Cancelled: the flag was set.
            OutOfMemory: the device's memory does not suffice.
        """
        for field, text in (("prompt", prompt), ("negative_prompt", plan.negative_prompt)):
            self._require_room(field, text or "", picture, plan)
        too_large = (
            f"{plan.num_images} picture(s) of {plan.width} × {plan.height} pixels do not fit the device's memory; "
            "ask for a smaller width and height or fewer num_images"
        )
        try:
            with out_of_memory(too_large), self.stopwatch.stage("denoise"):
                latents = self._denoise(picture, prompt, plan, on_step, cancelled)
            with out_of_memory(too_large), self.stopwatch.stage("vae_decode"):
                return decode_latents(self.vae, self._unpacked(latents, plan.width, plan.height))
        finally:
            self._reference = None  # the next job's memory

    @contextmanager
    def saving_memory(self) -> Iterator[None]:
        """Give back what is cached, and let the VAE work in tiles for a while."""
        _free()
        self.vae.enable_tiling()
        try:
            yield
        finally:
            self.vae.disable_tiling()

    def answers(self) -> bool:
        """Whether the device still works; after some CUDA errors nothing does until the process ends."""
        try:
            wait_for(self.text_encoder.device)
        except RuntimeError:
            return False
        return True

    def encode_prompt(self, *args: Any, **kwargs: Any) -> Any:  # noqa: ANN401 - the stock signature is handed on
        """See the stock pipeline; the time goes to `prompt`."""
        with self.stopwatch.stage("prompt"):
            return super().encode_prompt(*args, **kwargs)

    def prepare_latents(self, *args: Any, **kwargs: Any) -> Any:  # noqa: ANN401 - the stock signature is handed on
        """See the stock pipeline, which encodes the reference picture here; the time goes to `vae_encode`."""
        with self.stopwatch.stage("vae_encode"):
            latents, reference = super().prepare_latents(*args, **kwargs)
        self._reference = (args[0], reference)
        return latents, reference

    def _denoise(
        self, picture: Image.Image, prompt: str, plan: Plan, on_step: OnStep, cancelled: Callable[[], bool]
    ) -> Tensor:
        def after_step(
            _pipeline: object, step: int, _timestep: object, tensors: dict[str, Tensor]
        ) -> dict[str, Tensor]:
            _stop_if(cancelled)
            on_step(Step(step + 1, plan.steps, lambda: self._preview(tensors["latents"], plan)))
            return {}

        _stop_if(cancelled)
        # On the CPU whatever the device, so that a seed means the same noise everywhere.
        noise = [torch.Generator("cpu").manual_seed((plan.seed + i) % 2**63) for i in range(plan.num_images)]
        output = self(
            image=picture,
            prompt=prompt,
            negative_prompt=plan.negative_prompt,
            true_cfg_scale=plan.true_cfg_scale,
            height=plan.height,
            width=plan.width,
            num_inference_steps=plan.steps,
            num_images_per_prompt=plan.num_images,
            generator=noise,
            output_type="latent",
            callback_on_step_end=after_step,
        )
        latents: Tensor = output.images
        return latents

    def _preview(self, latents: Tensor, plan: Plan) -> Image.Image:
        if self._reference is None:
            raise RuntimeError("a preview is offered within on_step alone")
        pixels, reference = self._reference
        height, width = pixels.shape[-2:]
        projection = Projection(self._unpacked(reference, width, height)[0, :, 0], pixels[0, :, 0])
        return projection.preview(self._unpacked(latents, plan.width, plan.height)[0, :, 0])

    def _unpacked(self, latents: Tensor, width: int, height: int) -> Tensor:
        """[batch, tokens, channels · 4] → [batch, channels, 1, height / 8, width / 8]."""
        unpacked: Tensor = self._unpack_latents(latents, height, width, self.vae_scale_factor)
        return unpacked

    def _require_room(self, field: str, text: str, picture: Image.Image, plan: Plan) -> None:
        """Text and pictures share the rotary table: the text starts where the larger half side of a picture ends."""
        width, height = default_size(picture.size)
        tokens = self.processor.token_count(self.prompt_template_encode.format(text), width, height)
        tokens -= self.prompt_template_encode_start_idx
        pixels_per_token = self.vae_scale_factor * 2
        start = max(side // pixels_per_token // 2 for side in (width, height, plan.width, plan.height))
        room = len(self.transformer.pos_embed.pos_freqs) - start
        if tokens > room:
            raise InvalidRequest(
                f"{field} is too long: with this picture it makes {tokens} tokens, of which {room} fit; "
                f"shorten it by about {tokens - room} tokens"
            )


def _free() -> None:
    gc.collect()
    if torch.cuda.is_available():
        torch.cuda.empty_cache()


def _stop_if(cancelled: Callable[[], bool]) -> None:
    if cancelled():
        raise Cancelled("the edit was cancelled")


@contextmanager
def _readable(part: str) -> Iterator[None]:
    """Translate what the libraries raise on a damaged configuration."""
    try:
        yield
    except (OSError, ValueError, KeyError, TypeError) as error:
        raise ModelUnavailable(
            f"the base model's {part} cannot be loaded; check it with python3 verify_models.py"
        ) from error
