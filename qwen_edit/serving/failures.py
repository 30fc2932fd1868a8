"""How a job can fail at any door, beside what the contract names."""

from qwen_edit.errors import InternalError


class DeviceLostError(InternalError):
    """An edit failed and the device no longer answers: only a new process mends that."""


class LeftError(DeviceLostError):
    """The device was lost before this edit was done: another worker may do it."""


class OverloadedError(Exception):
    """Every place that the door asked for is taken."""
