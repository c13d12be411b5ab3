"""`python -m alerts`: writes the committed rules, checks them, or prints them for another site."""

from __future__ import annotations

import argparse
import sys

from alerts.output import generated_files, rules_text
from alerts.rules import Site
from dashboards.output import add_check_flag, write_or_check


def main() -> int:
    """Write or check the generated files, or print the rules with the given links."""
    default = Site()
    parser = argparse.ArgumentParser(prog="python -m alerts", description="Writes alert rules.")
    add_check_flag(parser)
    parser.add_argument("--stdout", action="store_true", help="print the rules, write no file")
    parser.add_argument("--repository-url", default=default.repository_url, metavar="URL")
    parser.add_argument("--grafana-url", default=default.grafana_url, metavar="URL")
    parser.add_argument("--job", default=default.job, help="scrape job of the agents")
    options = parser.parse_args()
    site = Site(options.repository_url, options.grafana_url, options.job)
    if options.stdout:
        print(rules_text(site), end="")
        return 0
    if site != default:
        parser.error("links and job of another site go with --stdout")
    return write_or_check(generated_files(), check=options.check)


if __name__ == "__main__":
    sys.exit(main())
