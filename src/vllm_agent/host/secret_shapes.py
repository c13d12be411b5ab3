"""Takes out of a line what looks like a token, a key, a password, or a URL with credentials."""

from __future__ import annotations

import re
from typing import Final

REDACTED: Final = "[redacted]"
"""Stands where a secret stood."""

USERINFO: Final = re.compile(r"(?<=://)[^\s/?#\"'<>]+@")
"""The name and password of a URL, with the @ that ends them."""

# A word begins, or a line that is written as such inside a quoted text.
_BEGIN: Final = r"(?:(?<![\w-])|(?<=\\[nrt]))"
_NAME: Final = (
    r"(?:api|access|secret|private|auth|account)[_-]?keys?|(?:hf|hub|api|access|auth|refresh|"
    r"session)[_-]?token|(?<![a-z0-9_])token(?==)|(?-i:(?<=[A-Z0-9]_)TOKEN(?==))|(?<![a-z])secrets?"
    r"|passw(?:or)?d|passphrase|authorization"
)
_NAMED: Final = re.compile(
    rf"((?:{_NAME})[\"']?\s{{0,3}}[:=]\s{{0,3}})"
    r"(?:\[[^\]]*(?:\]|$)"  # a list
    r"|([\"'])(?:\\.?|(?!\2)[^\\])*(?:\2|$)"  # a quoted value
    r"|(?!(?:None|null|True|False)\b|<[a-z_]{1,40}>)"  # a bare one that is no placeholder
    r"(?:(?:Bearer|Basic|Token)[ ])?(?:\[redacted\]|[^\s,;&\"'`)}\]]{4,}))",
    re.IGNORECASE | re.DOTALL,
)
# Most lines have none of these, and to find that out takes less time than to try all names.
_MAY_BE_NAMED: Final = re.compile(
    r"[kK][eE][yY]|TOKEN=|[tT]oken|[sS][eE][cC][rR][eE][tT]|[pP][aA][sS][sS]|[aA]uthorization"
)
_SHAPES: Final = tuple(
    re.compile(shape, re.DOTALL)
    for shape in (
        r"-----BEGIN [A-Z ]{0,40}PRIVATE KEY-----.*?(?:-----END [A-Z ]{0,40}PRIVATE KEY-----|$)",
        r"hf_[A-Za-z0-9]{16,}",
        rf"{_BEGIN}sk-[\w-]{{16,}}",
        rf"{_BEGIN}(?:AKIA|ASIA)[A-Z0-9]{{16}}(?![A-Z0-9])",
        rf"{_BEGIN}eyJ[\w-]{{8,}}\.[\w-]{{8,}}(?:\.[\w-]*)?",  # JSON Web Token
        # A word of letters only is not taken for a token: "bearer authentication".
        r"(?<=[Bb]earer )(?=[A-Za-z._~+/=-]*[0-9])[A-Za-z0-9._~+/=-]{8,}",
        r"(?<=[Bb]asic )(?=[A-Za-z._~+/=-]*[0-9])[A-Za-z0-9._~+/=-]{8,}",
    )
)


def without_shapes(text: str) -> str:
    """The text with REDACTED in the place of each; takes time in proportion to its length."""
    if "://" in text:
        text = USERINFO.sub(f"{REDACTED}@", text)
    for shape in _SHAPES:
        text = shape.sub(REDACTED, text)
    if _MAY_BE_NAMED.search(text) is not None:
        text = _NAMED.sub(_name_only, text)
    return text


def _name_only(found: re.Match[str]) -> str:
    quote = found[2] or ""
    return f"{found[1]}{quote}{REDACTED}{quote}"
