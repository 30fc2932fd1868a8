"""The clients that people have, unchanged but for the address: OpenAI's package and RunPod's."""

import base64
import io
import json
import subprocess
import sys
from collections.abc import Iterator
from typing import Any

import openai
import pytest
from PIL import Image

from tests.support.gates import Gate
from tests.support.http_worker import HttpWorker
from tests.support.patience import PATIENCE
from tests.support.places import PHOTOS, ROOT

PHOTO = PHOTOS / "chelsea.png"


@pytest.fixture(scope="module")
def client(server: HttpWorker) -> Iterator[openai.OpenAI]:
    with openai.OpenAI(api_key="any", base_url=f"{server.base}/v1", max_retries=0, timeout=PATIENCE) as client:
        yield client


def picture_of(text: str | None) -> Image.Image:
    assert text is not None
    with Image.open(io.BytesIO(base64.b64decode(text))) as picture:
        picture.load()
        return picture


def test_openais_client_edits_a_file(client: openai.OpenAI) -> None:
    with PHOTO.open("rb") as file:
        reply = client.images.edit(image=file, prompt="make it snow", size="256x320", n=2, model="gpt-image-1")

    assert [picture_of(one.b64_json).size for one in reply.data or ()] == [(256, 320)] * 2
    assert (reply.size, reply.output_format) == ("256x320", "png")
    assert reply.model_extra is not None
    assert reply.model_extra["model_config"]["rank"] == 128


def test_openais_client_gives_extensions_and_bare_bytes_in_a_list(client: openai.OpenAI) -> None:
    reply = client.images.edit(
        image=[PHOTO.read_bytes()],
        prompt="x",
        size="256x256",
        output_format="webp",
        extra_body={"seed": 7, "num_inference_steps": 8},
    )

    assert reply.model_extra is not None
    assert reply.model_extra["seed"] == 7
    assert reply.data is not None
    assert picture_of(reply.data[0].b64_json).format == "WEBP"


@pytest.mark.parametrize("number", [0, 1, 3])
def test_openais_client_gets_a_stream_with_as_many_previews_as_it_asked_for(client: openai.OpenAI, number: int) -> None:
    stream = client.images.edit(
        image=PHOTO.read_bytes(),
        prompt="x",
        size="256x256",
        stream=True,
        partial_images=number,
    )

    *partial, completed = list(stream)

    assert [event.type for event in partial] == ["image_edit.partial_image"] * number
    assert [getattr(event, "partial_image_index", None) for event in partial] == list(range(number))
    assert completed.type == "image_edit.completed"
    assert completed.usage.total_tokens == 0
    assert picture_of(completed.b64_json).size == (256, 256)


def test_openais_client_names_what_was_wrong(client: openai.OpenAI) -> None:
    with pytest.raises(openai.BadRequestError) as caught:
        client.images.edit(image=PHOTO.read_bytes(), prompt="x", mask=PHOTO.read_bytes())

    assert (caught.value.param, caught.value.type) == ("mask", "invalid_request_error")
    assert caught.value.request_id


def test_openais_client_names_a_field_that_nobody_knows(client: openai.OpenAI) -> None:
    with pytest.raises(openai.BadRequestError) as caught:
        client.images.edit(image=PHOTO.read_bytes(), prompt="x", extra_body={"qualty": "high"})

    assert caught.value.param == "qualty"


def test_openais_client_is_told_not_to_repeat_what_failed(client: openai.OpenAI) -> None:
    with pytest.raises(openai.InternalServerError) as caught:
        client.images.edit(image=PHOTO.read_bytes(), prompt="fail", size="256x256")

    assert caught.value.response.headers["x-should-retry"] == "false"
    assert "the worker's log has the details" in caught.value.message


def test_a_failure_in_a_stream_is_an_error_of_the_client(client: openai.OpenAI) -> None:
    stream = client.images.edit(
        image=PHOTO.read_bytes(),
        prompt="fail",
        size="256x256",
        stream=True,
    )

    with pytest.raises(openai.APIError, match="the edit failed"):
        list(stream)


def test_openais_client_who_leaves_stops_the_edit(client: openai.OpenAI, gate: Gate) -> None:
    stream = client.images.edit(
        image=PHOTO.read_bytes(),
        prompt=f"gate {gate.port}",
        size="256x256",
        stream=True,
        partial_images=1,
    )
    next(iter(stream))
    stream.close()

    # It would never end by itself: the place is free because it was stopped.
    reply = client.images.edit(image=PHOTO.read_bytes(), prompt="x", size="256x256")
    assert reply.data


def test_openais_client_lists_the_model(client: openai.OpenAI) -> None:
    assert [model.id for model in client.models.list()] == ["qwen-image-edit"]


def test_what_clients_always_send_is_taken(server: HttpWorker) -> None:
    """Open WebUI and LibreChat, as their sources have it."""
    photo = base64.b64encode(PHOTO.read_bytes()).decode()
    bodies: list[dict[str, Any]] = [
        {"model": "", "prompt": "x", "image": photo, "response_format": "b64_json", "n": 1},
        {"model": "None", "prompt": "x", "images": [{"image_url": f"data:image/png;base64,{photo}"}]},
        {"model": "gpt-image-1", "prompt": "x", "image_b64": photo, "quality": "auto", "size": "auto"},
    ]
    for body in bodies:
        answer = server.ask("/v1/images/edits?api-version=2025", {**body, "width": 256, "height": 256})
        assert answer.status == 200, answer.body[:300]
        assert answer.json()["data"][0]["b64_json"]


RUNPOD = """
import base64, json, runpod, sys
runpod.api_key, runpod.endpoint_url_base = "any", sys.argv[1] + "/v2"
endpoint = runpod.Endpoint("any")
photo = base64.b64encode(open(sys.argv[2], "rb").read()).decode()
job = {"input": {"image": photo, "prompt": "x", "width": 256, "height": 256, "seed": 3, "preview": True}}
done = endpoint.run_sync(job, timeout=120)
run = endpoint.run(job)
steps = [update["step"] for update in run.stream()]
output = run.output(timeout=120)
stopped = endpoint.run({"input": {**job["input"], "prompt": f"gate {sys.argv[3]}"}})
stopped.cancel()
failed = endpoint.run({"input": {"rank": 7}})
print(json.dumps({
    "done": done["seed"], "steps": steps, "output": output["seed"], "status": run.status(),
    "stopped": stopped.status(), "failed": failed.status(), "health": endpoint.health()["jobs"],
}))
"""


def test_runpods_package_runs_waits_watches_and_stops(server: HttpWorker, gate: Gate) -> None:
    run = subprocess.run(
        [sys.executable, "-c", RUNPOD, server.base, str(PHOTO), str(gate.port)],
        capture_output=True,
        text=True,
        timeout=PATIENCE,
        cwd=ROOT,
    )

    assert run.returncode == 0, run.stderr
    told = json.loads(run.stdout.splitlines()[-1])
    assert (told["done"], told["output"], told["status"]) == (3, 3, "COMPLETED")
    assert told["steps"] == sorted(set(told["steps"]))
    assert (told["stopped"], told["failed"]) == ("CANCELLED", "FAILED")
    assert told["health"]["completed"] >= 2


def test_a_file_goes_in_and_a_file_comes_out_with_its_receipt(server: HttpWorker) -> None:
    answer = server.ask(
        "/edit?prompt=x&size=256x256&output_format=webp&seed=9",
        PHOTO.read_bytes(),
        content_type="image/png",
        accept="image/*",
    )

    assert (answer.status, answer.headers["content-type"]) == (200, "image/webp")
    receipt = json.loads(answer.headers["x-qwen-edit"])
    assert receipt["seed"] == 9
    assert receipt["model_config"]["worker_version"]
    with Image.open(io.BytesIO(answer.body)) as picture:
        assert (picture.format, picture.size) == ("WEBP", (256, 256))


def test_a_stream_is_refused_where_there_is_none(server: HttpWorker) -> None:
    answer = server.ask("/edit?prompt=x&stream=true", PHOTO.read_bytes(), content_type="image/png")

    assert answer.status == 400
    assert answer.json()["error"].startswith("invalid_request: stream is true, expected false")


def test_a_file_goes_in_and_json_comes_out_where_no_picture_is_asked_for(server: HttpWorker) -> None:
    answer = server.ask("/edit?prompt=x&size=256x256", PHOTO.read_bytes(), content_type="application/octet-stream")

    assert answer.status == 200
    assert answer.json()["images"]
