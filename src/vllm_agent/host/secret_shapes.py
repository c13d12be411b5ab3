"""Takes out of a line what looks like a token, a key, a password, or a URL with credentials."""

from __future__ import annotations

import re
from typing import Final

REDACTED: Final = "[redacted]"
"""Stands where a secret stood."""

USERINFO: Final = re.compile(
    r"(?<=://)(?:[^\s/?#\"'<>]+"
    # A password may have a slash in it, as keys of AWS do; what follows a host is a port.
    r"|[^\s/?#:@\"'<>\[]*:(?!\d{0,5}(?:[/?#\s,;)]|$))[^\s:\"'<>]+)@"
)
"""The name and password of a URL, with the @ that ends them."""

# A word begins, or a line that is written as such inside a quoted text.
_BEGIN: Final = r"(?:(?<![\w-])|(?<=\\[nrt]))"
_NAME: Final = (
    r"(?:api|access|secret|private|auth|account)[_-]?keys?|(?:hf|hub|api|access|auth|refresh|"
    r"session)[_-]?token|(?<![a-z0-9_])token(?==)|(?-i:(?<=[A-Z0-9]_)TOKEN(?==))|(?<![a-z])secrets?"
    r"|passw(?:or)?d|passphrase|authorization"
    # `PWD` and `pwd` are mostly a folder.
    r"|(?<!old)pwd(?=[\"']?\s{0,3}[:=]\s{0,3}[\"']?[^/~.\s\"'])"
    # Presigned URLs of S3, Google and CloudFront, and the header of AWS.
    r"|x-(?:amz|goog)-(?:signature|credential|security-token)"
    r"|(?-i:(?<![A-Za-z])(?:Credential|Key-Pair-Id|(?:AWS|Google)AccessKeyId|AccessId)(?==))"
    r"|(?-i:(?<![A-Za-z])Signature(?==[\w%~-]{8}))"
)
_NAMED: Final = re.compile(
    rf"((?:{_NAME})[\"']?\s{{0,3}}[:=]\s{{0,3}})"
    r"(?:\[[^\]]*(?:\]|$)"  # a list
    r"|([\"'])(?:\\.?|(?!\2)[^\\])*(?:\2|$)"  # a quoted value
    r"|(?!(?:None|null|True|False)\b|<[a-z_]{1,40}>)"  # a bare one that is no placeholder
    r"(?:(?:Bearer|Basic|Token)[ ])?(?:\[redacted\]|[^\s,;&\"'`)}\]]{4,}))",
    re.IGNORECASE | re.DOTALL,
)
# A parameter of a URL, which may stand in HTML or JSON; here a secret may have any length.
_PARAMETER: Final = re.compile(
    r"((?:(?<=[?&])|(?<=&amp;)|(?<=u0026))(?:[\w.-]{0,64}[_.-])?"
    r"(?:(?:api)?key|token|secret|pass|passw(?:or)?d|pwd|sig|signature|policy|credential|auth|jwt)=)"
    r"()(?:\[redacted\]|[^\s&#\"'<>`,;)\]}]+)",
    re.IGNORECASE,
)
# Most lines have none of these, and to find that out takes less time than to try all names.
_MAY_BE_NAMED: Final = re.compile(
    r"(?:keys?|token|secrets?|passw(?:or)?d|passphrase|authorization|pwd|signature"
    r"|credential|pair-id|accesskeyid|accessid)[\"']?\s{0,3}[:=]"
)
# A cookie has several values, all of them up to the end of the line.
_COOKIE: Final = re.compile(
    r"(cookie(?:[\"']\s{0,3}[:=,]|\s{0,3}[:=])\s{0,3}b?)"
    r"(?:([\"'])(?:\\.?|(?!\2)[^\\])*(?:\2|$)|[^\s\"'][^\n]*)",
    re.IGNORECASE | re.DOTALL,
)
# `--api-key VALUE`, as it is typed and as Python writes a list. A name in capitals is that of usage
# texts, and some words follow a flag in a sentence.
_FLAG: Final = re.compile(
    r"((?<![\w.-])--(?:[\w.-]*[_.-])?"
    r"(?:(?:api)?key|token|secret|passw(?:or)?d|passphrase|pwd|credentials?)"
    r"(?:[\"'],\s{1,3}(?=[\"'])|\s{1,3}))"
    r"(?:([\"'])(?!--)(?:\\.?|(?!\2)[^\\])*(?:\2|$)"
    r"|(?!-|[A-Z_]+(?![\w.-])|(?:and|from|with|that|when|must|option|argument|cannot)\b)"
    r"(?:\[redacted\]|[^\s,;&\"'`)}\[\]]{4,}))",
    re.DOTALL,
)
_PRIVATE_KEY: Final = "[A-Z ]{0,40}PRIVATE KEY-----"
# Each with what is in every text that has one: to look for that is many times as fast.
_SHAPES: Final = tuple(
    (literals, re.compile(shape, re.DOTALL))
    for literals, shape in (
        (
            ("PRIVATE KEY-----",),
            rf"-----BEGIN {_PRIVATE_KEY}.*?(?:-----END {_PRIVATE_KEY}|$)",
        ),
        # A short word of small letters only is part of a name: "hf_transfer".
        (("hf_",), r"hf_(?:[A-Za-z0-9]{30,}|(?=[a-z]{0,29}[A-Z0-9])[A-Za-z0-9]{16,})"),
        (("sk-",), rf"{_BEGIN}sk-[\w-]{{16,}}"),
        # Its secret may follow, as in a URL.
        (
            ("AKIA", "ASIA"),
            rf"{_BEGIN}(?:AKIA|ASIA)[A-Z0-9]{{16}}(?![A-Z0-9])(?::[A-Za-z0-9/+=]{{40}}(?=@))?",
        ),
        (("eyJ",), rf"{_BEGIN}eyJ[\w-]{{8,}}\.[\w-]{{8,}}(?:\.[\w-]*)?"),  # JSON Web Token
        # A word of letters only is not taken for a token: "bearer authentication".
        (("earer ",), r"(?<=[Bb]earer )(?=[A-Za-z._~+/=-]*[0-9])[A-Za-z0-9._~+/=-]{8,}"),
        (("asic ",), r"(?<=[Bb]asic )(?=[A-Za-z._~+/=-]*[0-9])[A-Za-z0-9._~+/=-]{8,}"),
        (("ghp_", "gho_", "ghu_", "ghs_", "ghr_"), r"gh[pousr]_[A-Za-z0-9]{20,}"),  # GitHub
        (("github_pat_",), r"github_pat_\w{20,}"),
        (("glpat-",), rf"{_BEGIN}glpat-[\w.-]{{16,}}"),  # GitLab
        (("nvapi-",), rf"{_BEGIN}nvapi-[\w-]{{20,}}"),  # NVIDIA
        (("AIza",), rf"{_BEGIN}AIza[\w-]{{30,}}"),  # Google
        (("xox",), rf"{_BEGIN}xox[a-z]-[\w-]{{10,}}"),  # Slack
    )
)


def without_shapes(text: str) -> str:
    """The text with REDACTED in the place of each; takes time in proportion to its length."""
    for literals, shape in _SHAPES:
        for literal in literals:
            if literal in text:
                text = shape.sub(REDACTED, text)
                break
    if "://" in text:
        text = USERINFO.sub(f"{REDACTED}@", text)
    if "=" in text and ("?" in text or "&" in text or "u0026" in text):
        text = _PARAMETER.sub(_name_only, text)
    if "--" in text:
        text = _FLAG.sub(_name_only, text)
    lower = text.lower()
    if "cookie" in lower:
        text = _COOKIE.sub(_name_only, text)
    if ("=" in text or ":" in text) and _MAY_BE_NAMED.search(lower) is not None:
        text = _NAMED.sub(_name_only, text)
    return text


def _name_only(found: re.Match[str]) -> str:
    quote = found[2] or ""
    return f"{found[1]}{quote}{REDACTED}{quote}"
