"""`python -m benchmarks [--quick] [--row NAME]… [--json FILE]`: the bars as one table.

Exit status: 0 when everything was measured, whether bars are met or not; 1 when something was not.
"""

from __future__ import annotations

import argparse
import json
import os
import resource
import signal
import sys
import tempfile
import time
from pathlib import Path

from benchmarks import plan
from benchmarks.rows import ROWS
from benchmarks.session import FULL, QUICK, Session
from benchmarks.table import render


def main() -> int:
    """Measures what is asked for, prints the table; returns the exit status."""
    names = [row.name for row in ROWS]
    parser = argparse.ArgumentParser(prog="python -m benchmarks", description=__doc__)
    parser.add_argument("--quick", action="store_true", help="under 4 min, fewer samples")
    parser.add_argument("--row", action="append", choices=names, help="only this row; repeatable")
    parser.add_argument("--json", type=Path, metavar="FILE", help="writes the numbers")
    options = parser.parse_args()
    # What was started is ended on the way out.
    signal.signal(signal.SIGTERM, signal.default_int_handler)
    # Inherited by all that is started: a thousand servers are two thousand sockets.
    _, limit = resource.getrlimit(resource.RLIMIT_NOFILE)
    resource.setrlimit(resource.RLIMIT_NOFILE, (limit, limit))
    began = time.monotonic()
    with tempfile.TemporaryDirectory(prefix="vllm-agent-bench-") as folder:
        session = Session(Path(folder), QUICK if options.quick else FULL)
        results = plan.run(session, set(options.row or names))
    sys.stdout.write(render(results))
    load, cores = os.getloadavg()[0], os.cpu_count()
    seconds = time.monotonic() - began
    print(f"Measured in {seconds:.0f} s on {cores} cores, load average {load:.1f} at the end.")
    if options.json is not None:
        numbers = [result.as_json() for result in results]
        options.json.write_text(json.dumps(numbers, indent=2) + "\n", encoding="utf-8")
    return 0 if all(result.is_measured for result in results) else 1


if __name__ == "__main__":
    sys.exit(main())
