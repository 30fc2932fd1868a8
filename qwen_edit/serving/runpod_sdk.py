"""All that is used of RunPod's SDK (1.12). Its import takes a second and a half, so it stands where it is called."""

from collections.abc import Awaitable, Callable, Mapping, Sequence
from typing import Any

Handler = Callable[[Mapping[str, Any]], Awaitable[dict[str, Any]]]
FitnessCheck = Callable[[], Awaitable[None] | None]


def start(handler: Handler, concurrency: int, fitness_checks: Sequence[FitnessCheck]) -> None:
    """Take jobs until the SDK ends.

    Args:
        handler: answers one job.
        concurrency: jobs held at once.
        fitness_checks: run in this order before the first job is taken, on the platform alone. One that raises ends the
            process with status 1.
    """
    import runpod.serverless

    for check in fitness_checks:
        runpod.serverless.register_fitness_check(check)
    runpod.serverless.start({"handler": handler, "concurrency_modifier": lambda current: concurrency})


async def post_progress(job_id: str, update: Mapping[str, Any]) -> None:
    """Tell the platform how far a job is.

    The SDK's `progress_update` does this in a thread that nobody can wait for, so an update may overtake the result.
    """
    from runpod.http_client import AsyncClientSession
    from runpod.serverless.modules.rp_http import send_result

    async with AsyncClientSession() as session:
        await send_result(session, {"status": "IN_PROGRESS", "output": dict(update)}, {"id": job_id})
