"""The JSON contract: what is answered."""

from typing import TYPE_CHECKING, Literal, Self

from pydantic import BaseModel, ConfigDict, Field

OutputFormat = Literal["png", "jpeg", "webp"]
"""Of a file."""

JsonScalar = str | int | float | bool | None


class StartTimings(BaseModel):
    """Milliseconds of the parts of a start; `read_bytes` is how much was read in `read`.

    `imports`, `assemble` and `warm_up` follow each other; `read` runs beside the first two, until all has arrived.
    """

    model_config = ConfigDict(frozen=True, extra="forbid", allow_inf_nan=False)

    imports: float
    read: float
    read_bytes: int
    assemble: float
    warm_up: float = 0.0
    total: float

    def warmed_up(self, seconds: float) -> Self:
        """The same start with its warm-up."""
        warm_up = round(seconds * 1000, 1)
        return self.model_copy(update={"warm_up": warm_up, "total": round(self.total + warm_up, 1)})


class Timings(BaseModel):
    """Milliseconds of each part of an edit; `cold` marks the first edit of the process, which also has its `start`."""

    model_config = ConfigDict(frozen=True, extra="forbid", allow_inf_nan=False)

    queue: float = 0.0
    load: float = 0.0
    decode: float
    prompt: float
    vae_encode: float
    denoise: float
    vae_decode: float
    encode: float
    total: float
    cold: bool
    start: StartTimings | None = None


class ModelInfo(BaseModel):
    """What ran, enough to run it again, and what else could have been asked for.

    `base_model` is the repository that the base model came from. `repository`, `revision` and `sha256` are those of the
    file `checkpoint`. All four are the manifest's word, and None where it has none.
    """

    model_config = ConfigDict(frozen=True, extra="forbid", allow_inf_nan=False)

    worker_version: str
    base_model: str | None
    checkpoint: str
    repository: str | None
    revision: str | None
    sha256: str | None
    precision: str
    backend: str
    device: str
    dtype: str
    rank: int
    steps: int
    true_cfg_scale: float
    scheduler: dict[str, JsonScalar]
    supported_ranks: list[int]
    supported_steps: list[int]
    default_rank: int
    default_steps: int


class EditResponse(BaseModel):
    """One edit, done: either `images` in base64, of which `image` is the first, or `urls`, of which `url` is.

    `warnings` are sentences on what was changed.
    """

    model_config = ConfigDict(frozen=True, extra="forbid")

    image: str | None = Field(default=None, repr=False)
    images: list[str] | None = Field(default=None, repr=False)
    url: str | None = Field(default=None, repr=False)
    urls: list[str] | None = Field(default=None, repr=False)
    format: OutputFormat
    width: int
    height: int
    seed: int
    # pydantic reserves the contract's name for its own configuration.
    model_info: ModelInfo = Field(serialization_alias="model_config")
    timings: Timings
    warnings: list[str]

    # Type checkers keep the constructor that they derive from the fields.
    if not TYPE_CHECKING:

        def __init__(self, /, **fields: object) -> None:
            super().__init__(**fields)
            if [self.image is None, self.images is None, self.url is None, self.urls is None] not in (
                [False, False, True, True],
                [True, True, False, False],
            ):
                raise ValueError("expected image and images, or url and urls")

    def to_json(self) -> dict[str, object]:
        """The contract's response, of JSON types alone."""
        unused: dict[str, bool | set[str]] = dict.fromkeys(
            ("url", "urls") if self.urls is None else ("image", "images"), True
        )
        if self.timings.start is None:
            unused["timings"] = {"start"}
        return self.model_dump(mode="json", by_alias=True, exclude=unused)
