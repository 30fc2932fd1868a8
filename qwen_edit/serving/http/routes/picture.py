"""`POST /edit`: a file or a form in, the contract's response or the picture itself out."""

import json

from starlette.requests import Request
from starlette.responses import Response

from qwen_edit.contract import openai
from qwen_edit.contract.response import EditResponse
from qwen_edit.contract.sentences import shown
from qwen_edit.errors import InvalidRequest
from qwen_edit.serving.http.answers import Document
from qwen_edit.serving.http.edge import key_of
from qwen_edit.serving.http.requests import is_picture
from qwen_edit.serving.http.routes.openai import read_asked
from qwen_edit.serving.http.waiting import listening, until_end
from qwen_edit.serving.jobs.job import Order, Result, kept_for
from qwen_edit.serving.jobs.table import Jobs

RECEIPT = "x-qwen-edit"
"""The header that says what made a picture: the response without its pictures, as JSON of ASCII alone."""

_RECEIPT_FIELD = "receipt"


class PictureRoute:
    """The route for callers who have a file and want one."""

    def __init__(self, jobs: Jobs) -> None:
        self._jobs = jobs

    async def edit(self, request: Request) -> Response:
        """Edit a picture."""
        wants_picture = "image/" in request.headers.get("accept", "")
        with_receipt = _wants_receipt(request)
        asked = await _asked(request)
        if asked.stream:
            raise InvalidRequest("stream is true, expected false, or a stream of /v1/images/edits", "stream")
        if wants_picture and (asked.request.num_images > 1 or asked.request.return_as == "url"):
            raise InvalidRequest("Accept asks for a picture, expected num_images 1 and return 'base64'", "num_images")
        key = key_of(request.scope)
        job = self._jobs.find_by_key(key) or self._jobs.submit(
            Order(
                "edit",
                asked.request,
                limit=self._jobs.service.settings.http_limit,
                kept_s=kept_for(key),
                key=key,
                keeps_files=True,
            )
        )
        with listening(self._jobs, job):
            await until_end(request, job)
        result, headers = job.outcome(), {"x-request-id": job.id}
        if not wants_picture:
            return Document(result.output, headers=headers)
        receipt = {RECEIPT: _receipt(result.response)} if with_receipt else {}
        return _file(result, headers | receipt)


def _wants_receipt(request: Request) -> bool:
    asked = request.query_params.get(_RECEIPT_FIELD, "1")
    if asked not in ("0", "1"):
        raise InvalidRequest(f"receipt is {shown(asked)}, expected 0 or 1", _RECEIPT_FIELD)
    return asked == "1"


async def _asked(request: Request) -> openai.Asked:
    fields = {name: value for name, value in request.query_params.items() if name != _RECEIPT_FIELD}
    if not is_picture(request):
        if fields:
            raise InvalidRequest("the query has fields, expected them in the body, unless that is a picture alone")
        return await read_asked(request)
    return openai.read(fields, [await request.body()], from_text=True)


def _file(result: Result, headers: dict[str, str]) -> Response:
    kind = result.response.format
    name = f'inline; filename="edited-{result.response.seed}.{kind}"'
    return Response(result.files[0], headers=headers | {"content-disposition": name}, media_type=f"image/{kind}")


def _receipt(response: EditResponse) -> str:
    reply = response.to_json()
    return json.dumps({name: value for name, value in reply.items() if name not in ("image", "images")})
