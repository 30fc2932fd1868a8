"""What goes wrong, as HTTP says it: a status, headers, and a body in the words of the route that was asked."""

from collections.abc import Mapping
from dataclasses import dataclass, field

from qwen_edit.contract import openai, statuses
from qwen_edit.errors import EditError

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
    """An error of the contract. `x-should-retry` tells OpenAI's clients whether a repeat could go well."""
    headers = {"x-should-retry": "false"} if statuses.is_final(error.code) else {}
    param = error.fields[0] if error.fields else None
    return Refusal(statuses.status(error.code), error.code, error.sentence, param, headers)


def overloaded(seconds: int) -> Refusal:
    """Every place is taken.

    Args:
        seconds: after which one is probably free.
    """
    sentence = f"every place is taken; send it again in {seconds} s"
    return Refusal(429, "overloaded", sentence, headers={"retry-after": str(seconds)})


DRAINING = Refusal(503, "overloaded", "the worker is about to end and takes no more", headers={"connection": "close"})
ONLY_GET = Refusal(405, "invalid_request", "the path does not take this method", headers={"allow": "GET, HEAD"})
LONG_KEY = Refusal(400, "invalid_request", "Idempotency-Key is too long, expected at most 200 characters")
NO_KEY = Refusal(
    401,
    "unauthorized",
    "the key is missing or wrong, expected QWEN_EDIT_API_KEY's value in Authorization or X-API-Key",
    headers={"www-authenticate": "Bearer", "x-should-retry": "false"},
)
