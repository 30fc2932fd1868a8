"""What the model directory holds, and whether it is whole: `python3 verify_models.py [--list] [--hash] [--json]`."""

import sys

from builder.verify.command import main

if __name__ == "__main__":
    sys.exit(main())
