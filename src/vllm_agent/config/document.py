"""Reads YAML into plain values and remembers the line of every key.

Scalars follow the core schema of YAML 1.2: `yes`, `on` and `1:30` are text, as in every newer tool.
Aliases and merge keys work; depth and the number of values they expand to are bounded.
"""

from __future__ import annotations

import re
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any, NoReturn, TypeAlias

import yaml

from vllm_agent.config.problem import ConfigError, Problem, key_path

if TYPE_CHECKING:
    from collections.abc import Iterator

# The deepest key of the configuration sits at depth 4; more than this is a mistake or an attack.
MAX_DEPTH = 20
# 2,000 servers with every key written come to about 50,000 values; aliases must not multiply them.
MAX_VALUES = 100_000

Path: TypeAlias = tuple[str | int, ...]

_TOO_DEEP = f"nested deeper than {MAX_DEPTH} levels"
_MERGE_KEY = "<<"
_TEXT_TAGS = frozenset({"!", "tag:yaml.org,2002:str"})
_NULLS = frozenset({"", "~", "null", "Null", "NULL"})
_BOOLEANS = {
    text: value
    for word, value in (("true", True), ("false", False))
    for text in (word, word.title(), word.upper())
}
# Longer numbers stay text: no key takes one, and int() refuses thousands of digits.
_INTEGER = re.compile(r"[-+]?[0-9]{1,18}")
_FLOAT = re.compile(r"[-+]?(?:\.[0-9]+|[0-9]+(?:\.[0-9]*)?)(?:[eE][-+]?[0-9]+)?")
# YAML allows tab, line ends and printable characters; nothing else belongs in a text file either.
_CONTROL = re.compile(r"[\x00-\x08\x0b\x0c\x0e-\x1f\x7f\x80-\x84\x86-\x9f\ufffe\uffff]")

_TAG_ADVICE = "YAML tags are not used here: quote a value that begins with '!'"

# PyYAML's `problem` → what to do about it. The first that matches wins. Neither these nor the
# messages of this module repeat a value, which may be a key in the wrong place.
_SYNTAX_ADVICE = (
    ("'\\t'", "a tab cannot indent: use spaces"),
    (
        "mapping values are not allowed",
        "': ' is not expected here: check the indentation, and quote a value that contains ': '",
    ),
    ("could not find expected ':'", "a key without ':', or a quote or bracket above left open"),
    ("unexpected end of stream", "a quote that opens here is never closed"),
    ("expected ',' or ']'", "a '[' that opens here is not closed with ']'"),
    ("expected ',' or '}'", "a '{' that opens here is not closed with '}'"),
    ("expected <block end>", "the indentation does not match the lines above"),
    ("cannot start any token", "a value that begins with this character needs quotes"),
    ("undefined tag handle", _TAG_ADVICE),
    ("unknown escape character", "a backslash in double quotes: use single quotes instead"),
)


@dataclass(frozen=True, slots=True)
class _Scalar:
    line: int
    value: str | float | bool | None
    text: str


@dataclass(frozen=True, slots=True)
class _Sequence:
    line: int
    items: list[_Node]


@dataclass(frozen=True, slots=True)
class _Mapping:
    line: int
    entries: list[tuple[_Scalar, _Node]]


_Node: TypeAlias = _Scalar | _Sequence | _Mapping


@dataclass(slots=True)
class Document:
    """A parsed file: `value` in plain Python, and where each of its keys stands."""

    value: Any = None
    lines: dict[Path, int] = field(default_factory=dict)
    problems: list[Problem] = field(default_factory=list)

    def line_of(self, path: Path) -> int | None:
        """Give the line of a key, or of the closest thing around it that was written."""
        while path and path not in self.lines:
            path = path[:-1]
        return self.lines.get(path)


def parse_document(text: str, file: str) -> Document:
    """Parse one YAML document; duplicate keys are in its `problems`.

    Raises:
        ConfigError: the text is not YAML, or goes beyond a bound.
    """
    control = _CONTROL.search(text)
    if control is not None:
        line = text.count("\n", 0, control.start()) + 1
        message = f"contains the control character {control[0]!r}: a text file is expected"
        raise ConfigError((Problem(file, line, "", message),))
    try:
        root = _Composer(text, file).compose()
        reader = _Reader(file)
        if root is not None:
            reader.document.value = reader.read(root, ())
    except yaml.MarkedYAMLError as error:
        raise ConfigError((_syntax_problem(error, file),)) from None
    return reader.document


def _syntax_problem(error: yaml.MarkedYAMLError, file: str) -> Problem:
    problem = error.problem or "unexpected text"
    advice = next((advice for part, advice in _SYNTAX_ADVICE if part in problem), problem)
    # An unclosed quote or bracket is noticed far below the line where it opens.
    opening = "opens here" in advice and error.context_mark
    mark = opening or error.problem_mark or error.context_mark
    line = None if mark is None else mark.line + 1
    return Problem(file, line, "", f"not valid YAML: {advice}")


class _Composer:
    """Events to nodes. PyYAML's own composer recurses without a bound."""

    def __init__(self, text: str, file: str) -> None:
        self._events: Iterator[yaml.Event] = yaml.parse(text, Loader=yaml.SafeLoader)
        self._file = file
        self._anchors: dict[str, _Node] = {}

    def compose(self) -> _Node | None:
        root: _Node | None = None
        for event in self._events:
            if isinstance(event, yaml.DocumentStartEvent):
                if root is not None:
                    self._fail(event, "a second document begins here: write one document per file")
                root = self._node(next(self._events), 0)
        return root

    def _node(self, event: yaml.Event, depth: int) -> _Node:
        if depth > MAX_DEPTH:
            self._fail(event, _TOO_DEEP)
        node: _Node
        match event:
            case yaml.AliasEvent():
                return self._alias(event)
            case yaml.ScalarEvent():
                node = self._scalar(event)
            case yaml.SequenceStartEvent():
                node = self._sequence(event, depth)
            case yaml.MappingStartEvent():
                node = self._mapping(event, depth)
            case _:
                self._fail(event, "not valid YAML: a value is missing here")
        # Registered only when complete, so that no alias can contain itself.
        if event.anchor is not None:
            self._anchors[event.anchor] = node
        return node

    def _alias(self, event: yaml.AliasEvent) -> _Node:
        anchor = event.anchor or ""
        if anchor not in self._anchors:
            self._fail(
                event, "an alias before the end of its anchor: quote a value that begins with '*'"
            )
        return self._anchors[anchor]

    def _scalar(self, event: yaml.ScalarEvent) -> _Scalar:
        self._check_tag(event, event.tag)
        plain = event.implicit[0] and event.tag is None
        value = _plain_value(event.value) if plain else event.value
        return _Scalar(_line(event), value, event.value)

    def _sequence(self, event: yaml.SequenceStartEvent, depth: int) -> _Sequence:
        self._check_tag(event, event.tag)
        items = []
        while not isinstance(item := next(self._events), yaml.SequenceEndEvent):
            items.append(self._node(item, depth + 1))
        return _Sequence(_line(event), items)

    def _mapping(self, event: yaml.MappingStartEvent, depth: int) -> _Mapping:
        self._check_tag(event, event.tag)
        entries = []
        while not isinstance(item := next(self._events), yaml.MappingEndEvent):
            key = self._node(item, depth + 1)
            if not isinstance(key, _Scalar):
                self._fail(item, "a key must be plain text")
            entries.append((key, self._node(next(self._events), depth + 1)))
        return _Mapping(_line(event), entries)

    def _check_tag(self, event: yaml.Event, tag: str | None) -> None:
        text_tags = _TEXT_TAGS if isinstance(event, yaml.ScalarEvent) else ()
        if tag is not None and tag not in text_tags:
            self._fail(event, _TAG_ADVICE)

    def _fail(self, event: yaml.Event, message: str) -> NoReturn:
        raise ConfigError((Problem(self._file, _line(event), "", message),))


def _line(event: yaml.Event) -> int:
    return 1 if event.start_mark is None else event.start_mark.line + 1


def _plain_value(text: str) -> str | float | bool | None:
    if text in _NULLS:
        return None
    if text in _BOOLEANS:
        return _BOOLEANS[text]
    if _INTEGER.fullmatch(text):
        return int(text)
    if _FLOAT.fullmatch(text):
        return float(text)
    return text


class _Reader:
    """Nodes to values, with the line of every path."""

    def __init__(self, file: str) -> None:
        self.document = Document()
        self._file = file
        self._values = 0

    def read(self, node: _Node, path: Path) -> Any:
        self._count(node)
        # Aliases inside aliases go deeper than the text does.
        if len(path) > MAX_DEPTH:
            raise ConfigError((Problem(self._file, node.line, "", _TOO_DEEP),))
        self.document.lines.setdefault(path, node.line)
        if isinstance(node, _Scalar):
            return node.value
        if isinstance(node, _Sequence):
            return [self.read(item, (*path, index)) for index, item in enumerate(node.items)]
        return self._mapping(node, path)

    def _mapping(self, node: _Mapping, path: Path) -> dict[str, Any]:
        value: dict[str, Any] = {}
        merged: list[_Node] = []
        for key, entry in node.entries:
            if key.text == _MERGE_KEY:
                merged += _merge_sources(entry)
            elif key.text in value:
                first = self.document.lines[*path, key.text]
                self._problem(key, path, f"is written twice, first in line {first}")
            else:
                self._entry(key, entry, value, path)
        # A loop, because merged mappings may merge others in a chain of any length.
        while merged:
            merged[:1] = self._merge(merged[0], value, path)
        return value

    def _merge(self, source: _Node, value: dict[str, Any], path: Path) -> list[_Node]:
        """Add the keys that the mapping does not write itself; return what the source merges."""
        self._count(source)
        if not isinstance(source, _Mapping):
            key = _Scalar(source.line, None, _MERGE_KEY)
            self._problem(key, path, "must merge a mapping of keys: write <<: *anchor")
            return []
        more: list[_Node] = []
        for key, entry in source.entries:
            if key.text == _MERGE_KEY:
                more += _merge_sources(entry)
            elif key.text not in value:
                self._entry(key, entry, value, path)
        return more

    def _entry(self, key: _Scalar, entry: _Node, value: dict[str, Any], path: Path) -> None:
        self.document.lines[*path, key.text] = key.line
        value[key.text] = self.read(entry, (*path, key.text))

    def _count(self, node: _Node) -> None:
        self._values += 1
        if self._values > MAX_VALUES:
            message = f"more than {MAX_VALUES:,} values, aliases counted where they are used"
            raise ConfigError((Problem(self._file, node.line, "", message),))

    def _problem(self, key: _Scalar, path: Path, message: str) -> None:
        where = key_path((*path, key.text))
        self.document.problems.append(Problem(self._file, key.line, where, message))


def _merge_sources(entry: _Node) -> list[_Node]:
    return list(entry.items) if isinstance(entry, _Sequence) else [entry]
