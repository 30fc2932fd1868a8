import json
from datetime import datetime
from pathlib import Path

import pytest

from qwen_edit.log import log


def test_an_event_is_one_json_line_on_stdout(capsys: pytest.CaptureFixture[str]) -> None:
    log("failed", "error", job="7", traceback="line one\nline two")

    (line,) = capsys.readouterr().out.splitlines()
    document = json.loads(line)
    assert document["event"] == "failed"
    assert document["level"] == "error"
    assert document["job"] == "7"
    assert document["traceback"] == "line one\nline two"
    assert datetime.fromisoformat(document["time"]).tzinfo is not None


def test_a_value_that_json_does_not_know_is_written_as_text(capsys: pytest.CaptureFixture[str]) -> None:
    log("saved", path=Path("a") / "b")

    assert json.loads(capsys.readouterr().out)["path"] == "a/b"
