"""`python -m training` trains the demo model anew.

    pip install -e '.[train]'
    python -m training --models build/demo --work build/demo-work

writes the files of `builder/made/demo/model`. On two cores of an AMD EPYC, shared with other programs, the VAE took 29
minutes, encoding the pictures 4, the lightning transformer 14 and the original one twice 10; some 40 minutes of one
core in all. A stage that is stopped goes on from its last 500 steps, but the VAE, which begins again.
"""

import argparse
import os
from pathlib import Path

from builder.bake.errors import UsageError
from builder.bake.models_option import models_of
from training.photos import load
from training.train import Effort, train


def main() -> None:
    """Parse the command line and train."""
    parser = argparse.ArgumentParser(prog="python -m training", description="Train the demo model.")
    parser.add_argument("--models", required=True, help="where the model is written")
    parser.add_argument("--work", type=Path, required=True, help="where stages are kept, to go on after a stop")
    options = parser.parse_args()
    try:
        models = models_of(options, os.environ)
    except UsageError as error:
        parser.error(str(error))
    train(models, options.work, load(), Effort(), lambda line: print(line, flush=True))


if __name__ == "__main__":
    main()
