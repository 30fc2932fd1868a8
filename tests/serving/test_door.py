import socket

import pytest

from qwen_edit.serving import door
from qwen_edit.serving.http import server
from qwen_edit.settings import Settings
from tests.support.http_worker import free_port

JOBS = {"RUNPOD_WEBHOOK_GET_JOB": "http://127.0.0.1/job-take/$ID"}
BALANCED = {"PORT_HEALTH": "80"}
ENDPOINT = {"RUNPOD_ENDPOINT_ID": "x"}

DOORS = [
    ([], {}, "once"),
    ([], JOBS, "queue"),
    ([], BALANCED, "http"),
    ([], ENDPOINT, "http"),
    ([], ENDPOINT | JOBS, "queue"),
    ([], {"PORT": "80"}, "once"),
    ([], {"QWEN_EDIT_MODE": "http"}, "http"),
    ([], JOBS | {"QWEN_EDIT_MODE": "http"}, "http"),
    ([], BALANCED | {"QWEN_EDIT_MODE": "queue"}, "queue"),
    ([], BALANCED | {"QWEN_EDIT_MODE": "auto"}, "http"),
    (["--rp_serve_api"], JOBS, "sdk"),
    (["--rp_serve_api"], {"QWEN_EDIT_MODE": "http"}, "sdk"),
    (["--test_input", "{}"], BALANCED, "sdk"),
    (["--test_input={}"], {}, "sdk"),
    (["--of-somebody-else"], BALANCED, "http"),
]


@pytest.mark.parametrize(("arguments", "environ", "expected"), DOORS)
def test_arguments_come_before_the_mode_and_the_mode_before_the_platform(
    arguments: list[str], environ: dict[str, str], expected: str
) -> None:
    assert door.choose(arguments, Settings.from_environ(environ)) == expected


def test_two_ports_are_two_sockets_and_one_port_is_one() -> None:
    one, other = free_port(), free_port()
    for health, expected in ((None, [one]), (one, [one]), (other, [one, other])):
        sockets = server.bind(Settings(port=one, port_health=health))
        assert [bound.getsockname()[1] for bound in sockets] == expected
        for bound in sockets:
            bound.close()


def test_a_port_that_is_taken_ends_the_start_with_a_sentence_that_names_the_variables() -> None:
    with socket.create_server(("127.0.0.1", 0)) as taken, pytest.raises(SystemExit) as caught:
        server.bind(Settings(port=taken.getsockname()[1]))

    assert str(caught.value.code).startswith("qwen-edit: port ")
    assert "PORT, PORT_HEALTH and QWEN_EDIT_HOST" in str(caught.value.code)


def test_a_host_that_is_none_ends_the_start_with_a_sentence() -> None:
    with pytest.raises(SystemExit, match="cannot be bound"):
        server.bind(Settings(host="no.such.host.invalid"))
