"""LiteLLM against a server, in an environment of its own. It prints what it saw as one line of JSON.

`python litellm_client.py URL KEY PHOTO`.
"""

import json
import sys
from pathlib import Path
from typing import Any

import litellm
import openai


def main(url: str, key: str, photo: str) -> None:
    asked = {"model": "openai/qwen-image-edit", "api_base": f"{url}/v1", "size": "256x256", "num_retries": 0}

    def edit(prompt: str, key: str = key, **more: object) -> Any:
        with Path(photo).open("rb") as file:
            return litellm.image_edit(image=file, prompt=prompt, api_key=key, **asked, **more)

    reply = edit("make it snow", n=2, seed=7)
    print(
        json.dumps(
            {
                "pictures": [picture.b64_json for picture in reply.data],
                "seed": getattr(reply, "seed", None),
                "failed": _error(lambda: edit("fail")),
                "wrong": _error(lambda: edit("x", true_cfg_scale="high")),
                "locked": _error(lambda: edit("x", key="another-key")),
            }
        )
    )


def _error(act: Any) -> str:
    try:
        act()
    except openai.APIError as error:  # of which LiteLLM's own are kinds
        return f"{type(error).__name__}: {error}"
    return "none"


if __name__ == "__main__":
    main(*sys.argv[1:])
