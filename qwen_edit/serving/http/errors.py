"""What goes wrong, as HTTP says it: a status, headers, and a body in the words of the route that was asked."""

from collections.abc import Mapping
from dataclasses import dataclass, field

from qwen_edit.contract import openai, statuses
from qwen_edit.errors import EditError
from qwen_edit.serving.failures import LeftError

OPENAI = "/v1/"
"""What the paths of OpenAI's routes begin with."""


@dataclass(frozen=True)
class Refusal:
    """An answer that is an error."""

    status: int
    code: str
    sentence: str
    param: str | None = None
    headers: Mapping[str, str] = field(default_factory=dict)

    def body(self, path: str) -> dict[str, object]:
        """In the words of the route below which a path lies."""
        if path.startswith(OPENAI):
            return openai.error_body(self.sentence, self.status, param=self.param, code=self.code)
        return {"error": f"{self.code}: {self.sentence}"}


def of_error(error: EditError) -> Refusal:
    """An error of the contract.

    OpenAI's clients repeat a whole upload after a status of 500 or more, unless `x-should-retry` says otherwise. What
    failed here fails again, but for an edit that another worker may still do.
    """
    if isinstance(error, LeftError):
        return Refusal(503, error.code, error.sentence)
    headers = {"x-should-retry": "false"}
    return Refusal(statuses.status(error.code), error.code, error.sentence, error.param, headers)


def overloaded(seconds: int) -> Refusal:
    """Every place is taken.

    Args:
        seconds: after which one is probably free.
    """
    sentence = f"every place is taken; send it again in {seconds} s"
    return Refusal(429, "overloaded", sentence, headers={"retry-after": str(seconds)})


BROKEN = Refusal(
    500,
    "internal",
    "the request failed; the worker's log has the details under the answer's x-request-id",
    headers={"x-should-retry": "false"},
)
DRAINING = Refusal(503, "overloaded", "the worker is about to end and takes no more", headers={"connection": "close"})
ONLY_GET = Refusal(405, "invalid_request", "the path does not take this method", headers={"allow": "GET, HEAD"})
LONG_KEY = Refusal(400, "invalid_request", "Idempotency-Key is too long, expected at most 200 characters")
NO_KEY = Refusal(
    401,
    "unauthorized",
    "the key is missing or wrong, expected QWEN_EDIT_API_KEY's value in Authorization or X-API-Key",
    headers={"www-authenticate": "Bearer", "x-should-retry": "false"},
)
