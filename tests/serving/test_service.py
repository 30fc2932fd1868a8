import asyncio
import json
from collections.abc import Iterator
from pathlib import Path

import pytest

from qwen_edit.contract.request import EditRequest
from qwen_edit.errors import InternalError, InvalidRequest
from qwen_edit.serving.failures import OverloadedError
from qwen_edit.serving.service import Caller, Service
from qwen_edit.settings import Settings


@pytest.fixture
def service(models: Path) -> Iterator[Service]:
    """With room for two jobs."""
    service = Service(Settings(models=models, device="cpu"), places=2)
    yield service
    service.close()


def test_a_job_beyond_the_places_is_refused_and_one_that_ends_makes_room(service: Service) -> None:
    with service.job("first"):
        with service.job("second"), pytest.raises(OverloadedError), service.job("third"):
            pass
        with service.job("fourth"):
            pass


def test_a_refused_job_makes_room_too(service: Service) -> None:
    for _ in range(3):
        with pytest.raises(InvalidRequest), service.job("wrong"):
            EditRequest.parse([])


def test_a_door_hears_of_any_failure_in_a_sentence_that_names_the_job(
    service: Service, capsys: pytest.CaptureFixture[str]
) -> None:
    with pytest.raises(InternalError, match=r"^internal: the edit failed; .* under job odd$"), service.job("odd"):
        raise ZeroDivisionError("a secret")

    (failed,) = [json.loads(line) for line in capsys.readouterr().out.splitlines()]
    assert (failed["event"], failed["job"]) == ("failed", "odd")
    assert "a secret" in failed["traceback"]


def test_edits_of_several_callers_take_turns_on_the_device_and_each_gets_its_own(
    service: Service, photo_base64: str
) -> None:
    async def ask(seed: int) -> int:
        request = EditRequest.parse(
            {"image": photo_base64, "prompt": "make it snow", "width": 256, "height": 256, "seed": seed}
        )
        with service.job(f"job-{seed}"):
            reply = await service.edit(request, Caller(f"job-{seed}"))
        return reply.response.seed

    async def both() -> list[int]:
        return list(await asyncio.gather(ask(1), ask(2)))

    assert asyncio.run(both()) == [1, 2]
