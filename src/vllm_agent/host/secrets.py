"""Takes secrets out of lines of a log: those that a server was started with, and what looks so.

Of a known secret only a salted digest and its length are kept.
"""

from __future__ import annotations

import hashlib
import json
import os
import re
from typing import TYPE_CHECKING, Final, Self
from urllib.parse import quote, unquote

from vllm_agent.host.secret_shapes import REDACTED, USERINFO, without_shapes

if TYPE_CHECKING:
    from collections.abc import Iterable, Iterator, Sequence

MIN_SECRET_CHARACTERS: Final = 8
"""A shorter value is no secret but a word such as "EMPTY" or "true", and to take each "1" out of a
line is no use. NIST SP 800-63B wants so many of a password; every key has more."""

MAX_SECRETS: Final = 512
"""Known ones, in all ways to write them: a command line and an environment have a dozen, but anyone
can start a process with a megabyte of them."""

MAX_LINE_CHARACTERS: Final = 16 * 1024
"""Of a line; what is longer is cut, so that the time for it is bounded."""

MAX_PASSES: Final = 4
"""Over a line: where a secret was taken out, the next word may look like one for the first time."""

_DIGESTED_CHARACTERS: Final = 256
_SALT_BYTES: Final = 16
_DIGEST_BYTES: Final = 16
# Too few bits to find the beginning of a secret with, enough to pass over nearly all other places.
_BEGIN_MASK: Final = 0xFFFF

_SECRET_FLAG: Final = re.compile(
    r"(?:.*[-._])?(?:api)?(?:token|keys?|secrets?|passw(?:or)?d|passphrase|credentials?|pwd|pat)",
    re.IGNORECASE | re.DOTALL,
)
_SECRET_VARIABLE: Final = re.compile(
    r"TOKEN(?!IZER)|KEY|SECRET|PASSWORD|PASSWD|PASSPHRASE|CREDENTIAL|AUTH"
    r"|(?<![A-Z0-9])PAT(?![A-Z0-9])|(?<!^)(?<!^OLD)PWD",  # PWD and OLDPWD are folders
    re.IGNORECASE,
)
_QUERY_PARAMETER: Final = re.compile(r"[?&]([\w.-]{1,64})=([^&#\s\"'<>]+)")
_PATH_VARIABLE: Final = re.compile(r".*_(?:PATH|FILE|DIR|SOCK)", re.IGNORECASE | re.DOTALL)
_ASSIGNMENT: Final = re.compile(r"([A-Za-z_]\w{0,200})=(.*)", re.DOTALL)
# argparse lets them be abbreviated.
_API_KEY: Final = frozenset({"api-key", "api-ke", "api-k"})
_HF_TOKEN: Final = frozenset({"hf-token", "hf-toke", "hf-tok", "hf-to", "hf-t"})


class Secrets:
    """The secrets of one launch, and the means to keep them out of what is shown.

    `dropped` counts the ways to write them that were too many.
    """

    def __init__(self, secrets: Iterable[str]) -> None:
        self._salt = os.urandom(_SALT_BYTES)
        self._by_begin: dict[int, tuple[tuple[int, bytes], ...]] = {}
        self._short: set[bytes] = set()
        self.dropped = 0
        known: set[tuple[int, bytes]] = set()
        for secret in secrets:
            if 0 < len(secret) < MIN_SECRET_CHARACTERS and len(self._short) < MAX_SECRETS:
                self._short.add(self._digest(secret))
            for written in dict.fromkeys(_ways_to_write(secret)):
                key = len(written), self._digest(written)
                if key in known:
                    continue
                if len(known) == MAX_SECRETS:
                    self.dropped += 1
                    continue
                known.add(key)
                begin = _begin(written)
                self._by_begin[begin] = (*self._by_begin.get(begin, ()), key)

    @classmethod
    def of(cls, arguments: Sequence[str], environ: bytes = b"") -> Self:
        """The secrets in a command line and in an environment block of /proc."""
        return cls(
            (
                *_in_arguments(arguments),
                *_in_environ(environ.decode("utf-8", "replace")),
            )
        )

    def redact(self, text: str) -> str:
        """A line without them and without whatever looks like one.

        To be called before a line is made shorter: half a secret is not known as one.
        """
        text = text[: MAX_LINE_CHARACTERS + _DIGESTED_CHARACTERS]
        for _ in range(MAX_PASSES):
            before, text = text, without_shapes(self._without_known(text))
            if text == before:
                break
        return text[:MAX_LINE_CHARACTERS]

    def redact_value(self, value: str) -> str:
        """A value that stands by itself, such as a name: it may also be a short secret."""
        is_secret = len(value) < MIN_SECRET_CHARACTERS and self._digest(value) in self._short
        return REDACTED if is_secret else self.redact(value)

    def _digest(self, secret: str) -> bytes:
        content = secret[:_DIGESTED_CHARACTERS].encode("utf-8", "surrogatepass")
        return hashlib.blake2b(content, key=self._salt, digest_size=_DIGEST_BYTES).digest()

    def _without_known(self, text: str) -> str:
        spans = self._spans(text) if self._by_begin else []
        if not spans:
            return text
        pieces, done = [], 0
        for start, end in spans:
            pieces += [text[done:start], REDACTED]
            done = end
        return "".join((*pieces, text[done:]))

    def _spans(self, text: str) -> list[tuple[int, int]]:
        """Where known secrets stand; where some overlap, one span has them all."""
        size, mask, begins = MIN_SECRET_CHARACTERS, _BEGIN_MASK, self._by_begin
        places = [
            place
            for place in range(len(text) - size + 1)
            if hash(text[place : place + size]) & mask in begins
        ]
        spans: list[tuple[int, int]] = []
        for place in places:
            end = self._end(text, place)
            if end is None or _is_part_of_mark(text, place, end):
                continue
            if spans and place < spans[-1][1]:
                spans[-1] = spans[-1][0], max(end, spans[-1][1])
            else:
                spans.append((place, end))
        return spans

    def _end(self, text: str, place: int) -> int | None:
        """Where the longest of the secrets that begin at a place ends."""
        known = self._by_begin[_begin(text[place : place + MIN_SECRET_CHARACTERS])]
        ends = [
            place + length
            for length, digest in known
            if place + length <= len(text) and self._digest(text[place : place + length]) == digest
        ]
        return max(ends, default=None)


def _begin(text: str) -> int:
    return hash(text[:MIN_SECRET_CHARACTERS]) & _BEGIN_MASK


def _is_part_of_mark(text: str, start: int, end: int) -> bool:
    """Whether it lies in a REDACTED, or reaches into one: secrets may be made of its letters."""
    around = text[max(0, start - len(REDACTED) + 1) : start + len(REDACTED) - 1]
    before = max(0, start - len(REDACTED) + 1)
    mark = around.find(REDACTED)
    if mark >= 0 and before + mark < start:
        return True
    mark = text.find(REDACTED, max(0, end - len(REDACTED) + 1), end + len(REDACTED) - 1)
    return mark >= 0 and mark < end < mark + len(REDACTED)


def _ways_to_write(secret: str) -> Iterator[str]:
    """Each line of a secret as it is, and as Python, JSON and a URL quote it."""
    for line in secret.splitlines():
        if len(line) >= MIN_SECRET_CHARACTERS:
            yield line
            yield repr(line)[1:-1]
            yield json.dumps(line)[1:-1]
            yield quote(line, safe="", errors="replace")


def _in_arguments(arguments: Sequence[str]) -> Iterator[str]:
    takes, takes_all = False, False
    for argument in arguments:
        if argument.startswith("-"):
            name, assigned, value = argument.lstrip("-").partition("=")
            name = name.replace("_", "-").lower()
            is_secret = name in _API_KEY | _HF_TOKEN or _SECRET_FLAG.fullmatch(name) is not None
            takes_all = name in _API_KEY and not assigned
            takes = is_secret and not assigned
            if is_secret:
                yield value
        else:
            if takes:
                yield argument
            takes = takes_all
            value = argument
        yield from _in_value(value)


def _in_value(value: str) -> Iterator[str]:
    """What is secret inside a value: of a URL, of a JSON text, of `NAME=value`."""
    yield from _in_urls(value)
    if value.lstrip().startswith(("{", "[")):
        try:
            yield from _in_json(json.loads(value))
        except (ValueError, RecursionError):
            return
    elif (found := _ASSIGNMENT.fullmatch(value)) is not None and _is_secret_variable(found[1]):
        yield found[2]


def _in_json(content: object) -> Iterator[str]:
    waiting = [(content, False)]
    while waiting:
        value, is_secret = waiting.pop()
        if isinstance(value, dict):
            waiting += [
                (inner, is_secret or _SECRET_FLAG.fullmatch(name) is not None)
                for name, inner in value.items()
            ]
        elif isinstance(value, list):
            waiting += [(inner, is_secret) for inner in value]
        elif isinstance(value, str):
            yield from _in_urls(value)
            if is_secret:
                yield value


def _in_environ(environ: str) -> Iterator[str]:
    for entry in environ.split("\0"):
        name, _, value = entry.partition("=")
        yield from _in_urls(value)
        if _is_secret_variable(name):
            yield value


def _is_secret_variable(name: str) -> bool:
    return _SECRET_VARIABLE.search(name) is not None and _PATH_VARIABLE.fullmatch(name) is None


def _in_urls(value: str) -> Iterator[str]:
    if "://" not in value:
        return
    for found in USERINFO.finditer(value):
        userinfo = found[0][:-1]
        yield userinfo
        yield userinfo.partition(":")[2]
    for found in _QUERY_PARAMETER.finditer(value):
        if _SECRET_FLAG.fullmatch(found[1]) is not None:
            yield found[2]
            yield unquote(found[2])
