"""RunPod's entry point: the editor begins to load when this file runs as the worker, and one handler answers its jobs.

python handler.py                                          edits test_input.json
python handler.py --test_input '{"input": {"image": …}}'   edits what is given
python handler.py --rp_serve_api                           serves the SDK's local test API
"""

import multiprocessing

from builder.missing import fetch_missing
from qwen_edit.serving.queue.worker import Worker

worker = Worker.from_environ(fetch_missing)
handler = worker.handle

# The SDK's heartbeat is a child process that may run this module again: the model must not be loaded there.
if __name__ == "__main__" and multiprocessing.parent_process() is None:
    worker.load()
    worker.run()
