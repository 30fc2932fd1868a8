"""What can go wrong, as codes of the contract. Each exception carries one sentence that may be shown to the caller."""

from typing import ClassVar


class EditError(Exception):
    """An edit that was refused or failed. `str()` is the contract's `<code>: <sentence>`.

    The sentence names the field, the value and what was expected; it never holds a path, a traceback or base64.
    """

    code: ClassVar[str] = "internal"
    usual: ClassVar[tuple[str, ...]] = ()
    """The contract's fields that it is about, where none are named."""

    is_quoting: ClassVar[bool] = False
    """Whether the sentence, or what led to it, holds words of somebody else: then they are not for the log."""

    def __init__(self, sentence: str, *fields: str) -> None:
        """Make one of a sentence, and of the contract's fields that it is about.

        `param` is the name to tell the caller: the first field, or a word of its own, which is not for the log.
        """
        super().__init__(sentence)
        self.sentence = sentence
        self.fields = fields or self.usual
        self.param = self.fields[0] if self.fields else None

    def __str__(self) -> str:
        return f"{self.code}: {self.sentence}"

    @property
    def logged(self) -> str | None:
        """The sentence as the log may have it."""
        return None if self.is_quoting else self.sentence

    @property
    def cause(self) -> str | None:
        """What a library said that led to it: for the log alone, and not at any length."""
        cause = self.__cause__
        if cause is None:
            return None
        kind = type(cause).__name__
        return kind if self.is_quoting else f"{kind}: {cause}"[:200]


class InvalidRequest(EditError):
    """A field is missing, unknown, of the wrong type or out of range."""

    code = "invalid_request"
    is_quoting = True


class InvalidImage(EditError):
    """The image is not base64, or not a picture that can be read."""

    code = "invalid_image"
    usual = ("image",)
    is_quoting = True


class ImageTooLarge(EditError):
    """The image has more bytes or pixels than are accepted."""

    code = "image_too_large"
    usual = ("image",)
    is_quoting = True


class ModelUnavailable(EditError):
    """The weights that the request needs are not there, or cannot be used."""

    code = "model_unavailable"


class OutOfMemory(EditError):
    """The device has not enough memory for this edit."""

    code = "out_of_memory"


class Cancelled(EditError):
    """The caller asked to stop."""

    code = "cancelled"


class OutputTooLarge(EditError):
    """The encoded result does not fit the payload."""

    code = "output_too_large"


class InternalError(EditError):
    """Anything else; the details are in the log, never in the reply."""

    code = "internal"


class UploadError(InternalError):
    """A store did not take a picture."""

    is_quoting = True


class SettingsError(Exception):
    """An environment variable that cannot be read. It stops the start, so it has no code of the contract."""
