"""The parts that an edit runs through, and how they change. The loop that runs them is `sampling`."""

import gc
from collections.abc import Callable, Iterator
from contextlib import contextmanager

import torch
from diffusers.models.autoencoders.autoencoder_kl_qwenimage import AutoencoderKLQwenImage
from diffusers.models.transformers.transformer_qwenimage import QwenImageTransformer2DModel
from diffusers.schedulers.scheduling_flow_match_euler_discrete import FlowMatchEulerDiscreteScheduler
from PIL import Image
from torch import Tensor

from qwen_edit.edit.receipt import Made
from qwen_edit.edit.stopwatch import Stopwatch
from qwen_edit.machine.backend import BackendName
from qwen_edit.machine.device import device_name, wait_for
from qwen_edit.model.attention import attention_of_encoders
from qwen_edit.model.content_cache import ContentCache, Key
from qwen_edit.model.offload.turns import DeviceTurns
from qwen_edit.model.prompt import PromptEncoder
from qwen_edit.model.transformer.modulation import Modulations

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


class EditPipeline:
    """The base model's parts, and a transformer with its scheduler that can be changed."""

    def __init__(
        self,
        prompts: PromptEncoder,
        vae: AutoencoderKLQwenImage,
        device: torch.device,
        dtype: torch.dtype,
        *,
        tiling: bool = False,
        turns: DeviceTurns | None = None,
    ) -> None:
        """Take everything but the transformer.

        Args:
            device: where the parts run.
            dtype: what they compute with.
            tiling: whether the VAE always works in tiles, not only where memory does not suffice.
            turns: of the modules that do not fit the device together.
        """
        self.prompts = prompts
        self.vae = vae
        self.device = device
        self.dtype = dtype
        self.contents = ContentCache()
        self.stopwatch = Stopwatch()
        self.backend: BackendName = "dense"
        self.modulations: Modulations | None = None
        self._turns = turns
        self._tiling = tiling
        if tiling:
            vae.enable_tiling()
        if turns is not None:
            turns.add(prompts.text_encoder, turns.stays.text_encoder)

    def use(
        self,
        scheduler: FlowMatchEulerDiscreteScheduler,
        transformer: QwenImageTransformer2DModel,
        modulations: Modulations | None,
        backend: BackendName,
        *,
        in_turns: bool = False,
    ) -> None:
        """Take a checkpoint's transformer and its scheduler. The rest stays.

        Args:
            modulations: those that were attached to the transformer, or None where it computes its own.
            backend: what the transformer was built for.
            in_turns: whether the transformer waits in the host's memory while the text encoder is on the device.
        """
        self.transformer = transformer
        self.modulations = modulations
        self.backend = backend
        self.use_schedule(scheduler)
        if in_turns and self._turns is not None:
            self._turns.add(transformer, self._turns.stays.transformer)

    def use_schedule(self, scheduler: FlowMatchEulerDiscreteScheduler) -> None:
        """Take another schedule for the transformer that is there."""
        self.scheduler = scheduler

    def drop_transformer(self) -> None:
        """Let the transformer go, and its memory."""
        if self._turns is not None:
            self._turns.remove(self.transformer)
        self.transformer = self.modulations = None
        _free()

    def encoded_prompt(self, prompt: str, shown: Image.Image, key: Key) -> Tensor:
        """The text encoder's states for a prompt beside a picture, kept for the next edit: [1, tokens, width].

        Args:
            key: the picture's, from `picture_key`.
        """

        def compute() -> tuple[Tensor]:
            self._bring(self.prompts.text_encoder)
            with attention_of_encoders(self.device):
                return (self.prompts.states(prompt, shown),)

        (states,) = self.contents.get(("prompt", *key, prompt), compute)
        return states

    def encoded_picture(self, key: Key, encode: Callable[[], Tensor]) -> Tensor:
        """A picture's latents, kept for the next edit: [1, channels, 1, height / 8, width / 8].

        Args:
            key: everything that they depend on.
        """
        (latents,) = self.contents.get(("latents", *key), lambda: (encode(),))
        return latents

    @contextmanager
    def transformer_ready(self, dtype: torch.dtype) -> Iterator[Callable[[int], None]]:
        """Have the transformer on the device for the schedule that the scheduler was set to.

        Args:
            dtype: of the latents.

        Yields:
            What is told the index of each step before its first pass.
        """
        self._bring(self.transformer)
        if self.modulations is None:
            yield _nothing
            return
        timesteps = self.scheduler.timesteps
        with self.modulations.looked_up(self.transformer, timesteps, dtype, self._has_arrived) as set_step:
            yield set_step

    def describe(self) -> Made:
        """What makes the pictures, for the receipt."""
        schedule = {key: self.scheduler.config[key] for key in _SHOWN_SCHEDULE}
        return Made(
            precision="int4",
            backend=self.backend,
            device=device_name(self.device),
            dtype=str(self.dtype).removeprefix("torch."),
            scheduler={"name": type(self.scheduler).__name__, **schedule},
        )

    def start_stopwatch(self) -> Stopwatch:
        """Time what comes next."""
        device = self.device
        self.stopwatch = Stopwatch(lambda: wait_for(device))
        return self.stopwatch

    @contextmanager
    def saving_memory(self) -> Iterator[None]:
        """Give back what is cached, and let the VAE work in tiles for a while."""
        self.contents.clear()
        if self.modulations is not None:
            self.modulations.forget()
        if self._turns is not None:
            self._turns.keep_nothing()
        _free()
        self.vae.enable_tiling()
        try:
            yield
        finally:
            if not self._tiling:
                self.vae.disable_tiling()

    def answers(self) -> bool:
        """Whether the device still works; after some CUDA errors nothing does until the process ends."""
        try:
            wait_for(self.device)
        except RuntimeError:
            return False
        return True

    def _bring(self, module: torch.nn.Module) -> None:
        if self._turns is not None:
            self._turns.bring(module)

    def _has_arrived(self) -> None:
        if self._turns is not None:
            self._turns.arrive(self.transformer)


def _nothing(_step: int) -> None:
    pass


def _free() -> None:
    gc.collect()
    if torch.cuda.is_available():
        torch.cuda.empty_cache()
