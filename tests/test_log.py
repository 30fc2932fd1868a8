import json
import subprocess
import sys
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


UNREAD = """
import sys
from qwen_edit import log
log.MOST_LINES = 100
log.write_beside()
for number in range(1_000):
    log.log("line", number=number, text="x" * 1_000)
print("went on", file=sys.stderr, flush=True)
sys.stdin.readline()
log.flush(60)
"""


def test_a_stdout_that_nobody_reads_stops_no_work_and_what_was_dropped_is_counted() -> None:
    pipe = subprocess.PIPE
    with subprocess.Popen([sys.executable, "-c", UNREAD], stdin=pipe, stdout=pipe, stderr=pipe, text=True) as program:
        assert program.stderr is not None
        assert program.stderr.readline() == "went on\n"  # a pipe holds 64 of the 1,000 lines
        out, _ = program.communicate("\n")

    lines = [json.loads(line) for line in out.splitlines()]
    written = [line["number"] for line in lines if line["event"] == "line"]
    dropped = sum(line["lines"] for line in lines if line["event"] == "log lines dropped")
    assert written == sorted(written)
    assert dropped > 0
    assert len(written) + dropped == 1_000
