"""What the demo model's edits are worth: PSNR against the exact targets, on photos and wordings kept out of training.

python -m bench.demo                                the table of the lightning checkpoint, and the VAE's
python -m bench.demo --original                     of the original one instead, 20 steps with guidance
python -m bench.demo --megapixel                    of whole pictures, not 352 × 256 of their middle: slow
python -m bench.demo --unquantized FILE             the same with a checkpoint as training leaves it
python -m bench.demo --strip docs/demo.png          before and after, as one picture
"""

import argparse
import base64
import io
import tempfile
from collections.abc import Iterator
from pathlib import Path

import torch
from diffusers.models.transformers.transformer_qwenimage import QwenImageTransformer2DModel
from PIL import Image, ImageDraw

from builder.made.demo import files
from qwen_edit import Editor, EditRequest
from qwen_edit.settings import Settings
from training import flow
from training.edits import EDITS
from training.photos import HELD_OUT
from training.quality import pixels, psnr, reference, score

PHOTOS = Path(__file__).parents[1] / "tests" / "photos"
CELL = (226, 150)  # of the strip, pixels
PART = (352, 256)

Size = tuple[int, int] | tuple[None, None]


def main() -> None:
    """Measure, or draw the strip."""
    parser = argparse.ArgumentParser(prog="python -m bench.demo")
    parser.add_argument("--models", type=Path, help="a model directory (default: the demo model)")
    parser.add_argument(
        "--original", action="store_true", help="the original checkpoint instead, 20 steps with guidance"
    )
    parser.add_argument("--megapixel", action="store_true", help="whole pictures, not 352 × 256 of their middle")
    parser.add_argument("--unquantized", type=Path, help="what training left of lightning, to take instead")
    parser.add_argument("--strip", type=Path, metavar="PNG", help="draw the strip and measure nothing")
    options = parser.parse_args()
    with tempfile.TemporaryDirectory() as folder:
        if options.models is None:
            files.write(Path(folder))
        editor = Editor.load(Settings(models=options.models or Path(folder), device="cpu"))
        if options.strip:
            strip(editor).save(options.strip, optimize=True)
            return
        if options.unquantized:
            editor.pipeline.transformer = unquantized(options.unquantized)
        size = (None, None) if options.megapixel else PART
        if options.original:
            print_table(editor, "original, 20 steps, guidance 4", 20, size)
        else:
            print_vae(editor)
            print_table(editor, "lightning, 8 steps", 8, size)


def unquantized(file: Path) -> QwenImageTransformer2DModel:
    """The transformer as training left it in `work/lightning-0.pt`."""
    transformer = QwenImageTransformer2DModel(**flow.CONFIG)
    transformer.load_state_dict(torch.load(file)["model"])
    return transformer.eval()


def held_out() -> Iterator[tuple[str, Image.Image]]:
    """The photos that training never saw, by their names."""
    for name in HELD_OUT:
        with Image.open(PHOTOS / name) as photo:
            yield Path(name).stem, photo.convert("RGB")


def edit(editor: Editor, photo: Image.Image, prompt: str, steps: int, size: Size = (None, None)) -> Image.Image:
    """One edit as a caller asks for it."""
    file = io.BytesIO()
    photo.save(file, "PNG")
    image, (width, height) = base64.b64encode(file.getvalue()).decode(), size
    request = EditRequest(image=image, prompt=prompt, steps=steps, seed=7, width=width, height=height)
    answer = editor.edit(request)
    return Image.open(io.BytesIO(base64.b64decode(answer.image or "")))


def print_vae(editor: Editor) -> None:
    """PSNR of photos that only go through the VAE."""
    vae = editor.pipeline.vae
    for name, photo in held_out():
        original = pixels(reference(photo))
        with torch.inference_mode():
            latents = vae.encode(original[None, :, None] * 2 - 1).latent_dist.mode()
            decoded = vae.decode(latents).sample[0, :, 0].add(1).div(2).clamp(0, 1)
        print(f"VAE, {name}: {psnr(decoded, original):.1f} dB", flush=True)


def print_table(editor: Editor, title: str, steps: int, size: Size = (None, None)) -> None:
    """A row for each prompt: PSNR to its own target, and how much further the nearest other target is."""
    print(f"\n{title}\n\n| photo | prompt | dB | margin |\n|---|---|---|---|", flush=True)
    for name, photo in held_out():
        for known in EDITS.values():
            for prompt in known.held_out[: 2 if steps == 8 else 1]:
                found = score(edit(editor, photo, prompt, steps, size), photo, known.name)
                print(f"| {name} | {prompt} | {found.right:.1f} | {found.margin:.1f} |", flush=True)


def strip(editor: Editor) -> Image.Image:
    """The first held-out photo and each of its edits, labelled with the prompts."""
    _, photo = next(held_out())
    shown = [("the photo", reference(photo))]
    shown += [(known.held_out[0], edit(editor, photo, known.held_out[0], 8)) for known in EDITS.values()]
    columns, label = 4, 18
    rows = -(-len(shown) // columns)
    sheet = Image.new("RGB", (columns * (CELL[0] + 4), rows * (CELL[1] + label + 4)), "white")
    draw = ImageDraw.Draw(sheet)
    for i, (text, picture) in enumerate(shown):
        left, top = i % columns * (CELL[0] + 4) + 2, i // columns * (CELL[1] + label + 4) + 2
        draw.text((left + 2, top + 2), text, fill="black")
        sheet.paste(picture.resize(CELL, Image.Resampling.LANCZOS), (left, top + label))
    return sheet.quantize(256)  # a third of the bytes


if __name__ == "__main__":
    main()
