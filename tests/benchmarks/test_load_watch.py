"""The load that the benchmark shows an agent is as large as it says."""

from __future__ import annotations

import os
import subprocess
import sys

from benchmarks.load_watch import MAP, MAPPINGS

COUNT = "print(open('/proc/self/maps').read().count('sitecustomize.py'))"


def test_every_process_has_many_mappings(tmp_path):
    (tmp_path / "sitecustomize.py").write_text(MAP, encoding="utf-8")
    environment = {**os.environ, "PYTHONPATH": str(tmp_path)}
    command = [sys.executable, "-c", COUNT]
    done = subprocess.run(command, env=environment, capture_output=True, text=True, check=True)
    assert int(done.stdout) == MAPPINGS
