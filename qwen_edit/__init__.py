"""Edit pictures from a prompt with Qwen-Image-Edit in Nunchaku int4."""

from qwen_edit.contract.request import EditRequest
from qwen_edit.contract.response import EditResponse
from qwen_edit.editor import Editor

__all__ = ["EditRequest", "EditResponse", "Editor"]
