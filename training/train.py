"""Makes the demo model from nothing: text encoder, VAE, latents, transformers, files."""

import math
import random
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path

import torch
from diffusers.models.autoencoders.autoencoder_kl_qwenimage import AutoencoderKLQwenImage
from diffusers.models.transformers.transformer_qwenimage import QwenImageTransformer2DModel
from PIL import Image
from torch import Tensor, nn

from builder.made import layout
from qwen_edit.model.prompt import HEAD, TAIL
from qwen_edit.store import catalog
from qwen_edit.store.catalog import BASE_FOLDER, RANK
from qwen_edit.svdq.quantize import write_checkpoint
from training import autoencoder, flow, text
from training.edits import EDITS, OTHERS, sentences
from training.latents import SIDE, Bank, encode_bank
from training.objectives import LIGHTNING, ORIGINAL, Objective
from training.packing import pack
from training.photos import Sampler
from training.prompts import Prompt, embed, open_encoder

Log = Callable[[str], None]

_WINDOWS = ((8, 8), (6, 10), (10, 6), (8, 12), (12, 8), (4, 4))
_SAVE_EVERY = 500

LIGHTNING_BRANCH, ORIGINAL_BRANCH = 32, 64
"""Directions of the low-rank branches; guidance enlarges what 4 bits lose, so the original keeps more."""


@dataclass(frozen=True)
class Effort:
    """How long to train: steps and batch sizes."""

    vae_steps: int = 1400
    vae_batch: int = 8
    pictures: int = 600
    sentences: int = 1000  # for each edit, at most
    lightning_steps: int = 3000
    original_steps: int = 2500  # of each of its two rounds
    batch: int = 16


@dataclass(frozen=True)
class _Prompts:
    by_edit: Mapping[str, list[Prompt]]
    empty: Prompt


def train(models: Path, work: Path, photos: list[Tensor], effort: Effort, log: Log) -> None:
    """Write the demo model below `models`.

    Args:
        work: where each stage leaves what it made; a stage that is there is not done again.
        photos: float [3, height, width] in 0 … 1, of at least 128 pixels a side.
    """
    work.mkdir(parents=True, exist_ok=True)
    base = models / BASE_FOLDER
    vae = _vae(work / "vae.pt", Sampler(photos, seed=0), effort, log)
    layout.write_configurations(base, flow.CONFIG)
    write_text_encoder(base)
    layout.write_vae(base / "vae", vae.config, vae)
    prompts = _prompts(models, effort.sentences)
    bank = _bank(work / "latents.pt", vae, Sampler(photos, seed=1), effort, log)
    model = flow.build()
    stages = (
        (catalog.LIGHTNING, LIGHTNING, effort.lightning_steps, 1, LIGHTNING_BRANCH),
        (catalog.ORIGINAL, ORIGINAL, effort.original_steps, 2, ORIGINAL_BRANCH),
    )
    for checkpoint, objective, steps, rounds, rank in stages:
        for number in range(rounds):
            run = Run(work / f"{checkpoint.name}-{number}.pt", steps, number * steps, effort.batch, log)
            with flow.as_stored(model):
                _fit(model, objective, bank, prompts, run)
        path = models / checkpoint.path
        path.parent.mkdir(parents=True, exist_ok=True)
        write_checkpoint(path, pack(layout.bf16(model), rank), flow.CONFIG, RANK)


def write_text_encoder(base: Path) -> None:
    """The tokenizer and the frozen text encoder."""
    merges = text.merges(f"{HEAD}{{}}{TAIL}")
    layout.write_tokenizer(base, merges)
    config = layout.text_encoder_config(text.WIDTH, merges)
    layout.write_text_encoder(base / "text_encoder", config, text.encoder(config, seed=1))


def _vae(path: Path, sampler: Sampler, effort: Effort, log: Log) -> AutoencoderKLQwenImage:
    if not path.exists():
        errors: list[float] = []

        def report(step: int, _loss: float, error: float) -> None:
            errors.append(error)
            if step % 25 == 24:
                log(f"vae {step + 1} {_psnr(sum(errors[-25:]) / 25):.2f} dB")

        torch.manual_seed(0)
        trained = autoencoder.train(sampler, effort.vae_steps, effort.vae_batch, report)
        torch.save({"weights": trained.state_dict(), "config": dict(trained.config)}, path)
    saved = torch.load(path)
    vae = AutoencoderKLQwenImage.from_config(saved["config"])
    vae.load_state_dict({name: tensor.bfloat16().float() for name, tensor in saved["weights"].items()})
    return vae


def _bank(path: Path, vae: AutoencoderKLQwenImage, sampler: Sampler, effort: Effort, log: Log) -> Bank:
    if not path.exists():
        log("encoding the training pictures")
        torch.save(vars(encode_bank(vae, sampler, effort.pictures)), path)
    return Bank(**torch.load(path))


def _psnr(error: float) -> float:
    return -10 * math.log10(error)


def _prompts(models: Path, most: int) -> _Prompts:
    """Every sentence beside a small grey picture."""
    encoder = open_encoder(models / BASE_FOLDER)
    picture = Image.new("RGB", (112, 112), "grey")
    by_edit = {name: [embed(encoder, one, picture) for one in sentences(edit)[:most]] for name, edit in EDITS.items()}
    by_edit["keep"] += [embed(encoder, one, picture) for one in OTHERS]
    return _Prompts(by_edit, embed(encoder, " ", picture))


@dataclass(frozen=True)
class Run:
    """One training of the transformer: where it is kept, how long it is, its first seed, who hears of it."""

    path: Path
    steps: int
    seed: int
    batch: int
    log: Log


def _fit(model: QwenImageTransformer2DModel, objective: Objective, bank: Bank, prompts: _Prompts, run: Run) -> None:
    """Train on, from what `run.path` holds where it exists."""
    optimizer = torch.optim.AdamW(model.parameters(), betas=(0.9, 0.98), weight_decay=0)
    schedule = torch.optim.lr_scheduler.OneCycleLR(optimizer, 2e-3, total_steps=run.steps, pct_start=0.05)
    start = 0
    if run.path.exists():
        saved = torch.load(run.path)
        model.load_state_dict(saved["model"])
        optimizer.load_state_dict(saved["optimizer"])
        schedule.load_state_dict(saved["schedule"])
        start = schedule.last_epoch
    losses: list[float] = []
    for step in range(start, run.steps):
        loss = _loss(model, objective, bank, prompts, _Draw(run.seed + step, run.batch))
        optimizer.zero_grad()
        torch.autograd.backward(loss)
        nn.utils.clip_grad_norm_(model.parameters(), 1.0)
        optimizer.step()
        schedule.step()
        losses.append(loss.item())
        if (step + 1) % 100 == 0 or step + 1 == run.steps:
            run.log(f"{run.path.stem} {step + 1} loss {sum(losses[-100:]) / len(losses[-100:]):.4f}")
        if (step + 1) % _SAVE_EVERY == 0 or step + 1 == run.steps:
            states = {"model": model, "optimizer": optimizer, "schedule": schedule}
            torch.save({name: part.state_dict() for name, part in states.items()}, run.path)


class _Draw:
    """The random choices of one step, the same whenever it is done."""

    def __init__(self, seed: int, batch: int) -> None:
        self.random = random.Random(seed)
        self.generator = torch.Generator().manual_seed(seed)
        self.count = batch

    def noise(self, like: Tensor) -> Tensor:
        return torch.randn(like.shape, generator=self.generator)

    def batch(self, bank: Bank, prompts: _Prompts, empty: float) -> tuple[flow.Batch, Tensor]:
        """Windows of pictures, their edits, their prompts, and which of the prompts are empty."""
        height, width = self.random.choice(_WINDOWS)
        top, left = self.random.randint(0, SIDE - height), self.random.randint(0, SIDE - width)
        references: list[Tensor] = []
        targets: list[Tensor] = []
        chosen: list[Prompt] = []
        blank: list[bool] = []
        for _ in range(self.count):
            picture = self.random.randrange(len(bank.edited["keep"]))
            blank.append(self.random.random() < empty)
            name = "keep" if blank[-1] else self.random.choice(list(bank.edited))
            chosen.append(prompts.empty if blank[-1] else self.random.choice(prompts.by_edit[name]))
            for kept, tokens in ((references, bank.edited["keep"]), (targets, bank.edited[name])):
                kept.append(tokens[picture, top : top + height, left : left + width].reshape(-1, tokens.shape[-1]))
        return flow.Batch(torch.stack(references), torch.stack(targets), chosen, height, width), torch.tensor(blank)


def _loss(
    model: QwenImageTransformer2DModel, objective: Objective, bank: Bank, prompts: _Prompts, draw: _Draw
) -> Tensor:
    batch, empty = draw.batch(bank, prompts, objective.empty)
    window = flow.Window(model, batch.height, batch.width, draw.generator)
    sigmas, noise = objective.sigmas(draw.count, draw.generator), draw.noise(batch.target)
    noisy = torch.lerp(batch.target, noise, sigmas[:, None, None])
    wanted = objective.velocity(noisy, noise, batch.target, batch.reference, empty)
    return ((flow.predict(model, noisy, sigmas, batch, window) - wanted).square() * bank.importance).mean()
