"""Edit pictures from a prompt with Qwen-Image-Edit in Nunchaku int4."""

from qwen_edit.editor import Editor
from qwen_edit.schema import EditRequest, EditResponse

__all__ = ["EditRequest", "EditResponse", "Editor"]
