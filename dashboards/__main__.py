"""`python -m dashboards [--check]`."""

from __future__ import annotations

import sys

from dashboards.fleet import generated_files
from dashboards.output import main

sys.exit(main(generated_files(), None, "python -m dashboards"))
