"""Which text format, and whether gzip, the headers of a request ask for. Pure."""

from __future__ import annotations

from dataclasses import dataclass
from functools import lru_cache
from typing import TYPE_CHECKING, Final

from vllm_agent.expose.text_format import TextFormat

if TYPE_CHECKING:
    from collections.abc import Iterator

_KEPT_HEADERS: Final = 64
"""A scraper sends the same headers every time, and few kinds of scrapers come to one agent."""

_OPENMETRICS: Final = "application/openmetrics-text"
# How closely each range that a client may ask for fits a format.
_FIT: Final = {
    TextFormat.PROMETHEUS: {"text/plain": 2, "text/*": 1, "*/*": 0},
    TextFormat.OPENMETRICS: {_OPENMETRICS: 2, "application/*": 1, "*/*": 0},
}


@dataclass(frozen=True, slots=True)
class _Range:
    """One element of an Accept or Accept-Encoding header."""

    name: str
    quality: float
    version: str


def _ranges(header: str) -> Iterator[_Range]:
    """The elements of the header; those whose q is no number are left out."""
    for element in header.split(","):
        name, *rest = (part.strip() for part in element.split(";"))
        pairs = (parameter.partition("=") for parameter in rest)
        parameters = {key.strip().lower(): value.strip(' "') for key, _, value in pairs}
        try:
            quality = float(parameters.get("q", "1"))
        except ValueError:
            continue
        yield _Range(name.lower(), quality, parameters.get("version", ""))


def _is_served(wanted: _Range) -> bool:
    """Whether a format of that name has a version that the client can read.

    A newer OpenMetrics than the agent writes is answered with 1.0.0, as the content type says;
    a client that knows only a 0.x draft gets text.
    """
    if wanted.name != _OPENMETRICS or not wanted.version:
        return True
    major = wanted.version.partition(".")[0]
    return major.isdecimal() and major.strip("0") != ""


@lru_cache(maxsize=_KEPT_HEADERS)
def choose_format(accept: str) -> TextFormat:
    """The format the client likes best; text 0.0.4 where it names none that is known.

    For each format the closest range decides its quality (RFC 9110, section 12.5.1). Between equal
    qualities the closer range wins, then the earlier one. A page is always sent, never a 406.
    """
    wanted = [item for item in _ranges(accept) if _is_served(item)]
    best, best_rank = TextFormat.PROMETHEUS, (0.0, 0, 0)
    for text_format, fit in _FIT.items():
        ranks = (
            (fit[item.name], item.quality, -position)
            for position, item in enumerate(wanted)
            if item.name in fit
        )
        closeness, quality, position = max(ranks, default=(0, 0.0, 0))
        if quality > 0 and (quality, closeness, position) > best_rank:
            best, best_rank = text_format, (quality, closeness, position)
    return best


@lru_cache(maxsize=_KEPT_HEADERS)
def accepts_gzip(accept_encoding: str) -> bool:
    """Whether the client takes gzip: by name, or else by `*`, with a q above 0."""
    qualities = {item.name: item.quality for item in _ranges(accept_encoding)}
    return qualities.get("gzip", qualities.get("*", 0.0)) > 0
