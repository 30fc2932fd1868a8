"""What the engine does at its import: every library's lines of INFO go to the standard error."""

import logging

logging.basicConfig(level=logging.INFO, format="%(asctime)s - %(levelname)s - %(message)s")
