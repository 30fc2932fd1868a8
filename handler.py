"""The worker's entry point: it opens the door that the platform asks for, and one handler answers the queue's jobs.

python handler.py                                          edits test_input.json, or serves where a platform runs it
python handler.py --test_input '{"input": {"image": …}}'   edits what is given
python handler.py --rp_serve_api                           serves the SDK's local test API
"""

import multiprocessing
import sys

from builder.missing import fetch_missing
from qwen_edit.serving import door
from qwen_edit.serving.queue.worker import Worker

worker = Worker.from_environ(fetch_missing)
handler = worker.handle

# The SDK's heartbeat is a child process that may run this module again: the model must not be loaded there.
if __name__ == "__main__" and multiprocessing.parent_process() is None:
    if door.choose(sys.argv[1:], worker.settings) == "http":
        door.serve(worker.settings, fetch_missing)
    worker.load()
    worker.run()
