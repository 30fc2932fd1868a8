"""diffusers' own `QwenImageEditPipeline`, assembled from parts that were loaded here, and driven by a plan."""

import gc
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, contextmanager
from typing import Any

import torch
from diffusers.models.transformers.transformer_qwenimage import QwenImageTransformer2DModel
from diffusers.schedulers.scheduling_flow_match_euler_discrete import FlowMatchEulerDiscreteScheduler
from PIL import Image
from torch import Tensor

from qwen_edit.edit.geometry import default_size
from qwen_edit.edit.hooks import OnStep, Step
from qwen_edit.edit.plan import Plan
from qwen_edit.edit.stopwatch import Stopwatch
from qwen_edit.errors import Cancelled, InvalidRequest
from qwen_edit.machine.backend import BackendName
from qwen_edit.machine.device import device_name, out_of_memory, wait_for
from qwen_edit.model.offload import Turns
from qwen_edit.model.preview import Projection
from qwen_edit.model.stages import StagedPipeline
from qwen_edit.model.transformer.compile import compile_blocks
from qwen_edit.model.transformer.modulation import Modulations
from qwen_edit.model.vae import decode_latents

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


class EditPipeline(StagedPipeline):
    """The stock pipeline in stages, with a transformer that can be changed."""

    compiled = False  # whether the transformer's blocks are compiled, which the first edit waits for
    backend: BackendName = "dense"
    modulations: Modulations | None = None
    turns: Turns | None = None  # of the modules that do not fit the device together
    _always_tiled = False

    def use(
        self,
        scheduler: FlowMatchEulerDiscreteScheduler,
        transformer: QwenImageTransformer2DModel,
        modulations: Modulations | None,
        backend: BackendName,
    ) -> None:
        """Take a checkpoint's transformer and its scheduler. The rest stays.

        Args:
            modulations: those that were attached to the transformer, or None where it computes its own.
            backend: what the transformer was built for.
        """
        self.transformer = transformer
        self.modulations = modulations
        self.backend = backend
        self.follow(scheduler)
        if self.compiled:
            compile_blocks(transformer)

    def tile(self, *, always: bool) -> None:
        """Let the VAE work in tiles, not only where memory does not suffice."""
        self._always_tiled = always
        if always:
            self.vae.enable_tiling()

    def follow(self, scheduler: FlowMatchEulerDiscreteScheduler) -> None:
        """Take another schedule for the transformer that is there."""
        self.scheduler = scheduler
        if self.modulations is not None:
            self.modulations.follow(scheduler, self.transformer)

    def drop_transformer(self) -> None:
        """Let the transformer go, and its memory."""
        if self.turns is not None:
            self.turns.remove(self.transformer)
        self.transformer = self.modulations = None
        _free()

    def describe(self) -> dict[str, Any]:
        """What makes the pictures, in the words of `ModelInfo`."""
        schedule = {key: self.scheduler.config[key] for key in _SHOWN_SCHEDULE}
        return {
            "precision": "int4",
            "backend": self.backend,
            "device": device_name(self.text_encoder.device),
            "dtype": str(self.text_encoder.dtype).removeprefix("torch."),
            "scheduler": {"name": type(self.scheduler).__name__, **schedule},
        }

    def start_stopwatch(self) -> Stopwatch:
        """Time what comes next."""
        device = self.text_encoder.device
        self.stopwatch = Stopwatch(lambda: wait_for(device))
        return self.stopwatch

    def render(
        self, picture: Image.Image, prompt: str, plan: Plan, on_step: OnStep, cancelled: Callable[[], bool]
    ) -> list[Image.Image]:
        """Edit one picture as planned, where memory suffices for it; see `denoise` for the arguments.

        Returns:
            `plan.num_images` pictures of `plan.width` × `plan.height` pixels, the one at i drawn from the seed plus i.

        Raises:
            InvalidRequest, Cancelled, OutOfMemory: see `denoise`.
        """
        return self.decode(self.denoise(picture, prompt, plan, on_step, cancelled))

    @torch.inference_mode()
    def denoise(
        self, picture: Image.Image, prompt: str, plan: Plan, on_step: OnStep, cancelled: Callable[[], bool]
    ) -> Tensor:
        """All of an edit up to the latents.

        Args:
            picture: RGB.
            on_step: called after each step, but not once the flag is set.
            cancelled: the flag, asked before the first step and after each one.

        Returns:
            Normalized latents of `plan.num_images` pictures: [batch, channels, 1, height / 8, width / 8].

        Raises:
            InvalidRequest: the prompt has more tokens than the picture leaves room for.
            Cancelled: the flag was set.
            OutOfMemory: the device's memory does not suffice.
        """
        for field, text in (("prompt", prompt), ("negative_prompt", plan.negative_prompt)):
            self._require_room(field, text or "", picture, plan)
        try:
            with _fitting(plan.num_images, plan.width, plan.height), self.stopwatch.stage("denoise"):
                return self._denoise(picture, prompt, plan, on_step, cancelled)
        finally:
            self.reference = None  # the next job's memory

    def skip_the_rest(self) -> None:
        """Let the present edit end with the latents that it has. For `on_step`, of which none follows."""
        self._interrupt = True

    @torch.inference_mode()
    def decode(self, latents: Tensor) -> list[Image.Image]:
        """The pictures that `denoise` gave the latents of.

        Raises:
            OutOfMemory: the device's memory does not suffice.
        """
        height, width = (side * self.vae_scale_factor for side in latents.shape[-2:])
        with _fitting(len(latents), width, height), self.stopwatch.stage("vae_decode"):
            return decode_latents(self.vae, latents)

    @contextmanager
    def saving_memory(self) -> Iterator[None]:
        """Give back what is cached, and let the VAE work in tiles for a while."""
        self.contents.clear()
        if self.modulations is not None:
            self.modulations.forget()
        _free()
        self.vae.enable_tiling()
        try:
            yield
        finally:
            if not self._always_tiled:
                self.vae.disable_tiling()

    def answers(self) -> bool:
        """Whether the device still works; after some CUDA errors nothing does until the process ends."""
        try:
            wait_for(self.text_encoder.device)
        except RuntimeError:
            return False
        return True

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
        return self._unpacked(output.images, plan.width, plan.height)

    def _preview(self, latents: Tensor, plan: Plan) -> Image.Image:
        if self.reference is None:
            raise RuntimeError("a preview is offered within on_step alone")
        pixels, reference = self.reference
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


def _fitting(count: int, width: int, height: int) -> AbstractContextManager[None]:
    return out_of_memory(
        f"{count} picture(s) of {width} × {height} pixels do not fit the device's memory; "
        "ask for a smaller width and height or fewer num_images"
    )


def _free() -> None:
    gc.collect()
    if torch.cuda.is_available():
        torch.cuda.empty_cache()


def _stop_if(cancelled: Callable[[], bool]) -> None:
    if cancelled():
        raise Cancelled("the edit was cancelled")
