"""Examples that run as they are: a test sends each to the server."""

PICTURE = "iVBORw0KGgoAAAANSUhEUgAAAAgAAAAICAIAAABLbSncAAAAFUlEQVR42mPUqIhiwAaYGHCAwSkBAMgyAQpZ2gaEAAAAAElFTkSuQmCC"
"""A PNG of 8 × 8 pixels of one colour, in base64."""

JOB_ID = "sync-00000000000000000000000000000000"

EDIT: dict[str, object] = {"image": PICTURE, "prompt": "make it snow", "width": 256, "height": 256, "seed": 42}
OPENAI: dict[str, object] = {"image": PICTURE, "prompt": "make it snow", "size": "256x256", "seed": 42}
STREAM = {**OPENAI, "stream": True, "partial_images": 1}
