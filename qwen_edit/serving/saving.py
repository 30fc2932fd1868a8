"""Results written to a folder of this machine, beside the reply."""

from pathlib import Path

from qwen_edit.edit.fitting import Encoded, safe_name
from qwen_edit.log import log


def save(folder: Path | None, job_id: str, seed: int, encoded: Encoded) -> list[str]:
    """Write the files of an edit where there is a folder for them. One that cannot be written costs no reply.

    Returns:
        The paths; none where nothing was saved.
    """
    if folder is None:
        return []
    names = [f"{safe_name(job_id)}-{seed}-{number}.{encoded.format}" for number in range(len(encoded.files))]
    try:
        folder.mkdir(parents=True, exist_ok=True)
        for name, data in zip(names, encoded.files, strict=True):
            (folder / name).write_bytes(data)
    except OSError as error:
        log("not saved", "error", job=job_id, error=f"{type(error).__name__}: {error}")
        return []
    return [str(folder / name) for name in names]
