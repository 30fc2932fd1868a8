"""The HTTP server in figures, on loopback, with the device of the tests, which sleeps, and with the demo model.

`python -m bench.http [ping] [crowd] [hostile] [memory] [start]`: those that are named, else all, about ten minutes.
`ping`: the latency of health for 200 clients. `crowd`: 64 edits at eight places. `hostile`: an edit beside 150
connections that are slow on purpose. `memory`: after 300 requests. `start`: seconds until the port answers, and until
the editor is there.
"""

import argparse
import os
import tempfile
from pathlib import Path

from bench.http.crowd import crowd
from bench.http.hostile import hostile
from bench.http.memory import memory
from bench.http.pings import pings
from bench.http.start import start
from builder.made.demo import files

KINDS = ("ping", "crowd", "hostile", "memory", "start")


def main() -> None:
    options = _options()
    with tempfile.TemporaryDirectory() as name:
        models = Path(name) / "demo"
        files.write(models)
        measures = {
            "ping": lambda: pings(models, options.seconds),
            "crowd": lambda: crowd(models),
            "hostile": lambda: hostile(models, options.rounds, edits=20, seconds=0.5),
            "memory": lambda: memory(models),
            "start": lambda: start(models, options.rounds),
        }
        for kind in options.kinds or KINDS:
            print(f"\n### {kind}, load {os.getloadavg()[0]:.1f} on {os.cpu_count()} cores\n", flush=True)
            measures[kind]()


def _options() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("kinds", nargs="*", metavar="|".join(KINDS), help="all where left out")
    parser.add_argument("--seconds", type=float, default=20.0, help="of the pings")
    parser.add_argument("--rounds", type=int, default=3, choices=range(1, 12), help="of hostile and start")
    options = parser.parse_args()
    if unknown := set(options.kinds) - set(KINDS):
        parser.error(f"{', '.join(sorted(unknown))} is none of {', '.join(KINDS)}")
    return options


if __name__ == "__main__":
    main()
