"""`python -m dashboards [--check]`."""

from __future__ import annotations

import sys

from dashboards.output import generated_files, main

sys.exit(main(generated_files(), None, "python -m dashboards"))
