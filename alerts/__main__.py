"""`python -m alerts`: writes the committed rules, checks them, or prints them for another site."""

from __future__ import annotations

import argparse
import os
import sys
from typing import TYPE_CHECKING, Final

from alerts.output import generated_files, prometheus_rule_text, rules_text
from alerts.site import Site
from dashboards.output import add_check_flag, write_or_check

if TYPE_CHECKING:
    from collections.abc import Sequence

_FORMATS: Final = {"plain": rules_text, "prometheusrule": prometheus_rule_text}


def main(arguments: Sequence[str] | None = None) -> int:
    """Write or check the generated files, or print the rules for another site."""
    parser = _parser()
    options = parser.parse_args(arguments)
    try:
        site = Site(
            options.repository_url,
            options.grafana_url,
            options.job,
            options.availability_target,
            dict(options.label),
        )
    except ValueError as error:
        parser.error(str(error))
    if site.labels and options.format == "plain":
        parser.error("a rule file has no labels of its own: --label goes with a prometheusrule")
    if options.stdout:
        _print(_FORMATS[options.format](site))
        return 0
    if site != Site() or options.format != "plain":
        parser.error("what differs from the committed files goes with --stdout")
    return write_or_check(generated_files(), check=options.check)


def _parser() -> argparse.ArgumentParser:
    default = Site()
    parser = argparse.ArgumentParser(prog="python -m alerts", description="Writes alert rules.")
    add_check_flag(parser)
    parser.add_argument("--stdout", action="store_true", help="print the rules, write no file")
    parser.add_argument(
        "--format",
        choices=sorted(_FORMATS),
        default="plain",
        help="a rule file, or an object for the Prometheus operator",
    )
    for name, url in (("repository", default.repository_url), ("grafana", default.grafana_url)):
        parser.add_argument(f"--{name}-url", type=_url, default=url, metavar="URL")
    parser.add_argument("--job", default=default.job, help="scrape job of the agents")
    parser.add_argument(
        "--availability-target",
        type=float,
        default=default.availability_target,
        metavar="RATIO",
        help="share of the wanted time in which a server should serve (%(default)s)",
    )
    parser.add_argument(
        "--label",
        type=_label,
        action="append",
        default=[],
        metavar="NAME=VALUE",
        help="label of the PrometheusRule, by which an operator selects it; repeatable",
    )
    return parser


def _url(text: str) -> str:
    """As it is copied from a browser: with a slash at its end, or none."""
    return text.removesuffix("/")


def _label(text: str) -> tuple[str, str]:
    name, separator, value = text.partition("=")
    if not (name and separator):
        raise argparse.ArgumentTypeError(f"{text!r} is not NAME=VALUE")
    return name, value


def _print(text: str) -> None:
    try:
        print(text, end="", flush=True)
    except BrokenPipeError:
        # Whoever read has enough, as `head` does. The interpreter's last flush has to succeed.
        devnull = os.open(os.devnull, os.O_WRONLY)
        os.dup2(devnull, sys.stdout.fileno())
        os.close(devnull)


if __name__ == "__main__":
    sys.exit(main())
