"""What made a picture, for the reply: enough to make it again, and what else could have been asked for."""

from dataclasses import asdict, dataclass

from qwen_edit.contract.response import JsonScalar, ModelInfo
from qwen_edit.edit.plan import Plan, supported_steps, usual_plan
from qwen_edit.store.catalog import BASE_FOLDER, RANK, Checkpoint
from qwen_edit.store.manifest import Manifest
from qwen_edit.version import VERSION


@dataclass(frozen=True)
class Made:
    """How the device made it, in the words of `ModelInfo`."""

    precision: str
    backend: str
    device: str
    dtype: str
    scheduler: dict[str, JsonScalar]


_UNKNOWN = Made(precision="", backend="", device="", dtype="", scheduler={})


def describe(plan: Plan, made: Made, manifest: Manifest | None, on_disk: tuple[Checkpoint, ...]) -> ModelInfo:
    """The reply's `model_config`.

    Args:
        manifest: says where the files came from; None where there is none.
        on_disk: as from `store.folder.available`.
    """
    entry = manifest.entry(plan.checkpoint.path) if manifest else None
    return ModelInfo(
        worker_version=VERSION,
        base_model=_source_of_base(manifest) if manifest else None,
        checkpoint=plan.checkpoint.file,
        repository=entry.repository if entry else None,
        revision=entry.revision if entry else None,
        sha256=entry.sha256 if entry else None,
        rank=plan.checkpoint.rank,
        steps=plan.steps,
        true_cfg_scale=plan.true_cfg_scale,
        supported_ranks=[RANK],
        supported_steps=supported_steps(on_disk),
        default_rank=RANK,
        default_steps=on_disk[0].default_steps if on_disk else plan.checkpoint.default_steps,
        **asdict(made),
    )


def describe_worker(made: Made | None, manifest: Manifest | None, on_disk: tuple[Checkpoint, ...]) -> dict[str, object]:
    """What `describe` says of a request that asks for nothing in particular: the choices of this worker.

    Args:
        made: None until the device is known, and so are its words then.
        on_disk: at least one.
    """
    told = describe(usual_plan(on_disk[0], side=1024), made or _UNKNOWN, manifest, on_disk).model_dump(mode="json")
    return told if made else told | dict.fromkeys(asdict(_UNKNOWN))


def _source_of_base(manifest: Manifest) -> str | None:
    """The repository of all the base model's files, or None where they are of none or of several."""
    found = {entry.repository for entry in manifest.files if entry.path.startswith(f"{BASE_FOLDER}/")}
    return found.pop() if len(found) == 1 else None
