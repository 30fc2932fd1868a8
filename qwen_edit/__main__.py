"""`python -m qwen_edit PHOTO "prompt" -o OUT`: edit a file from the shell. `python -m qwen_edit serve`: serve HTTP."""

import argparse
import os
import sys
import time
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import Never

from tqdm import tqdm

from builder.missing import fetch_missing
from qwen_edit.contract.request import EditRequest
from qwen_edit.contract.response import EditResponse
from qwen_edit.edit.hooks import Hooks
from qwen_edit.edit.prepare import prepare
from qwen_edit.edit.respond import respond
from qwen_edit.editor import Editor
from qwen_edit.errors import EditError, InvalidImage, InvalidRequest, SettingsError
from qwen_edit.pictures.read import ignore_pillows_warnings
from qwen_edit.serving import door
from qwen_edit.settings import Settings

SERVE = "serve"
"""As the first word alone: a photo of this name is `./serve`."""

FORMATS = {".png": "png", ".jpg": "jpeg", ".jpeg": "jpeg", ".webp": "webp"}


def main(argv: Sequence[str] | None = None) -> int:
    """Edit a photo as the command line says.

    Returns:
        0, or 1 after a sentence on stderr that says what is wrong.
    """
    words = list(sys.argv[1:] if argv is None else argv)
    try:
        if words[:1] == [SERVE]:
            _serve(_server_parser().parse_args(words[1:]))
        else:
            _edit(_parser().parse_args(words))
    except (EditError, SettingsError) as error:
        print(f"qwen-edit: {error}", file=sys.stderr)
        return 1
    return 0


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(prog="qwen-edit", description="Edit a photo from a prompt with Qwen-Image-Edit.")
    parser.add_argument("photo", type=Path, help="the file to edit")
    parser.add_argument("prompt", help="what to change")
    parser.add_argument("-o", "--output", type=Path, required=True, help="where to write: .png, .jpg or .webp")
    parser.add_argument("--steps", type=int, help="denoising steps: 8, or 20 to 50 with the original checkpoint")
    parser.add_argument("--seed", type=int, help="repeat an edit with the seed it printed")
    parser.add_argument("--negative-prompt", help="what to steer away from; needs guidance")
    parser.add_argument("--true-cfg-scale", type=float, help="guidance, 1 to 20")
    parser.add_argument("--width", type=int, help="of the result, 256 to 2048; with --height")
    parser.add_argument("--height", type=int, help="of the result, 256 to 2048; with --width")
    parser.add_argument("--quality", type=int, help="of JPEG and WebP, 1 to 100", dest="output_quality")
    return parser


def _server_parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(prog="qwen-edit serve", description="Serve edits over HTTP; see docs/serving.md.")
    parser.add_argument("--host", help="where to listen: 127.0.0.1 for this machine alone (QWEN_EDIT_HOST)")
    parser.add_argument("--port", help="8000 where nothing is said (PORT)")
    return parser


def _serve(arguments: argparse.Namespace) -> None:
    given = {"QWEN_EDIT_HOST": arguments.host, "PORT": arguments.port}
    settings = Settings.from_environ({**os.environ, **{name: value for name, value in given.items() if value}})
    door.serve(settings, fetch_missing)


def _edit(arguments: argparse.Namespace) -> None:
    ignore_pillows_warnings()
    settings = Settings.from_environ(os.environ)
    request = _request(arguments)
    if settings.allow_download:
        # Here, because the plan looks for the checkpoints that are there; so the load need not.
        fetch_missing(settings.models)
        settings = replace(settings, allow_download=False)
    prepared = prepare(request, settings)
    started = time.perf_counter()
    editor = Editor.load(settings)
    with tqdm(total=prepared.plan.steps, unit="step", desc=prepared.plan.checkpoint.name) as bar:
        rendered = editor.render(prepared, Hooks(lambda step: _advance(bar, step.number)))
    reply = respond(prepared, rendered)
    response = reply.response
    _write(arguments.output, reply.encoded.files[0])
    for warning in response.warnings:
        print(f"warning: {warning}", file=sys.stderr)
    print(_summary(response, time.perf_counter() - started, arguments.output))


def _request(arguments: argparse.Namespace) -> EditRequest:
    suffix = arguments.output.suffix.lower()
    if suffix not in FORMATS:
        raise InvalidRequest(f"output {arguments.output.name!r} ends in {suffix!r}, expected {', '.join(FORMATS)}")
    if not arguments.output.parent.is_dir():
        raise InvalidRequest(f"output folder {str(arguments.output.parent)!r} does not exist")
    options = ("prompt", "steps", "seed", "negative_prompt", "true_cfg_scale", "width", "height", "output_quality")
    fields = {name: getattr(arguments, name) for name in options}
    return EditRequest.parse({**fields, "image": _read(arguments.photo), "output_format": FORMATS[suffix]})


def _read(photo: Path) -> bytes:
    try:
        return photo.read_bytes()
    except FileNotFoundError as error:
        raise InvalidImage(f"there is no file {str(photo)!r}") from error
    except OSError as error:
        raise InvalidImage(f"{str(photo)!r} cannot be read: {error.strerror}") from error


def _advance(bar: "tqdm[Never]", step: int) -> None:
    bar.update(step - bar.n)


def _write(output: Path, data: bytes) -> None:
    try:
        output.write_bytes(data)
    except OSError as error:
        raise InvalidRequest(f"output {str(output)!r} cannot be written: {error.strerror}") from error


def _summary(response: EditResponse, seconds: float, output: Path) -> str:
    model = response.model_info
    return f"{output}: {model.checkpoint}, {model.steps} steps, seed {response.seed}, {seconds:.1f} s"


if __name__ == "__main__":
    sys.exit(main())
