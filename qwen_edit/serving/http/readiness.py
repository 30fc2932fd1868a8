"""Whether this process can edit: while it loads, when it is ready, and why it is not."""

import asyncio
from typing import Literal

from qwen_edit.errors import EditError, ModelUnavailable
from qwen_edit.log import log
from qwen_edit.serving import fitness
from qwen_edit.serving.service import Service

State = Literal["loading", "ready", "failed"]


class Readiness:
    """The state of a service, for those who ask over HTTP."""

    def __init__(self, service: Service) -> None:
        self._service = service
        self.state: State = "loading"
        self.error: EditError | None = None

    async def become(self) -> None:
        """Check the files, wait for the load, and warm the device up."""
        try:
            for check in fitness.checks(self._service.settings):
                await asyncio.get_running_loop().run_in_executor(None, check)
            await self._service.warm_up()
        except fitness.UnfitError as error:
            self._fail(ModelUnavailable(str(error)))
        except EditError as error:
            self._fail(error)
        except Exception as error:  # whatever it is, the process answers, and says that it cannot edit
            failure = ModelUnavailable("the model could not be loaded; the worker's log has the details")
            failure.__cause__ = error
            self._fail(failure)
        else:
            self.state = "ready"

    def lose(self) -> None:
        """The device does not answer any more."""
        self._fail(ModelUnavailable("the worker lost its device"))

    def _fail(self, error: EditError) -> None:
        self.state, self.error = "failed", error
        log("not ready", "error", code=error.code, error=error.logged, cause=error.cause)
