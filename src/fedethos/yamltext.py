"""YAML text to plain data and back, with the line of every key. Used by ``fedethos.documents``.

The reader is PyYAML's scanner and composer under the resolution rules of YAML 1.2's core schema (section 10.3.2), which is what
people expect of a document: ``1e-5`` is a number, ``no`` and ``2024-01-31`` are text. It builds mappings, lists, text, numbers,
booleans and null, nothing else. Refused: aliases (they can expand without bound), tags, duplicate keys, numbers that are not
finite, deep nesting. A mapping's key is always text as written, so ``{1.0: Male}`` has the key ``"1.0"``.
"""

from __future__ import annotations

import math
import re
from collections.abc import Iterator
from dataclasses import dataclass

import yaml
from pydantic import JsonValue
from yaml.composer import Composer
from yaml.events import AliasEvent, Event
from yaml.nodes import MappingNode, Node, ScalarNode, SequenceNode
from yaml.parser import Parser
from yaml.reader import Reader
from yaml.resolver import BaseResolver
from yaml.scanner import Scanner

MAX_DEPTH = 32

Path = tuple[str | int, ...]

_TAG = "tag:yaml.org,2002:"
_NULL, _BOOL, _INT, _FLOAT, _STR, _SEQ, _MAP = (_TAG + kind for kind in ("null", "bool", "int", "float", "str", "seq", "map"))
_CORE_SCHEMA = (
    (_NULL, re.compile(r"^(?:~|null|Null|NULL|)$"), ["~", "n", "N", ""]),
    (_BOOL, re.compile(r"^(?:true|True|TRUE|false|False|FALSE)$"), list("tTfF")),
    (_INT, re.compile(r"^(?:[-+]?[0-9]+|0o[0-7]+|0x[0-9a-fA-F]+)$"), list("-+0123456789")),
    (_FLOAT, re.compile(r"^[-+]?(?:\.[0-9]+|[0-9]+(?:\.[0-9]*)?)(?:[eE][-+]?[0-9]+)?$"), list("-+.0123456789")),
)


class NotYamlError(Exception):
    """The text is no document of ours. ``reason`` never quotes the text; ``line`` starts at 1."""

    def __init__(self, reason: str, line: int | None) -> None:
        super().__init__(reason)
        self.reason = reason
        self.line = line


@dataclass(frozen=True)
class Text:
    """A parsed document: plain data, and the line of every key and list item in document order."""

    data: JsonValue
    lines: dict[Path, int]


class _Loader(Reader, Scanner, Parser, Composer, BaseResolver):
    def __init__(self, text: str) -> None:
        Reader.__init__(self, text)
        Scanner.__init__(self)
        Parser.__init__(self)
        Composer.__init__(self)
        BaseResolver.__init__(self)
        self._depth = 0

    def compose_node(self, parent: Node | None, index: int) -> Node | None:
        event: Event = self.peek_event()  # type: ignore[no-untyped-call]
        line = event.start_mark.line + 1 if event.start_mark else None
        if isinstance(event, AliasEvent):
            raise NotYamlError("aliases (*name) are not allowed; write the value out", line)
        if self._depth == MAX_DEPTH:
            raise NotYamlError(f"more than {MAX_DEPTH} levels", line)
        self._depth += 1
        node = super().compose_node(parent, index)
        self._depth -= 1
        return node


class _Dumper(yaml.SafeDumper):
    """Quotes text that YAML 1.1 or 1.2 would read as something else, so that any reader gets the same document."""

    def ignore_aliases(self, data: object) -> bool:
        return True


for _tag, _pattern, _first in _CORE_SCHEMA:
    _Loader.add_implicit_resolver(_tag, _pattern, _first)
    _Dumper.add_implicit_resolver(_tag, _pattern, _first)


def parse(text: str) -> Text:
    """Read one YAML document.

    Raises
    ------
    NotYamlError
        For anything but one document of plain data.
    """
    try:
        root = _Loader(text).get_single_node()
    except yaml.MarkedYAMLError as error:
        mark = error.problem_mark or error.context_mark
        raise NotYamlError(
            "check indentation, quotes and colons near this line; use spaces, no tabs", mark.line + 1 if mark else None
        ) from None
    except (yaml.YAMLError, ValueError, OverflowError):  # ValueError, OverflowError: an escape beyond Unicode
        raise NotYamlError("it holds a character that YAML does not allow", None) from None
    lines: dict[Path, int] = {}
    return Text(None if root is None else _plain(root, (), lines), lines)


def render(data: JsonValue) -> str:
    """``data`` as YAML that ``parse`` reads back to an equal value."""
    text: str = yaml.dump(data, Dumper=_Dumper, sort_keys=False, allow_unicode=True, default_flow_style=None, width=120)
    return text


def _plain(node: Node, path: Path, lines: dict[Path, int]) -> JsonValue:
    if isinstance(node, MappingNode) and node.tag == _MAP:
        mapping: dict[str, JsonValue] = {}
        for key, line, value in _entries(node):
            if key in mapping:
                raise NotYamlError("a key stands twice in the same mapping", line)
            lines[*path, key] = line
            mapping[key] = _plain(value, (*path, key), lines)
        return mapping
    if isinstance(node, SequenceNode) and node.tag == _SEQ:
        items: list[JsonValue] = []
        for index, item in enumerate(node.value):
            lines[*path, index] = _line(item)
            items.append(_plain(item, (*path, index), lines))
        return items
    if isinstance(node, ScalarNode):
        return _scalar(node)
    raise NotYamlError("tags (!name) are not allowed", _line(node))


def _entries(node: MappingNode) -> Iterator[tuple[str, int, Node]]:
    for key, value in node.value:
        if not isinstance(key, ScalarNode):
            raise NotYamlError("a key is not text", _line(key))
        yield _text(key), _line(key), value


def _scalar(node: ScalarNode) -> JsonValue:
    text = _text(node)
    if node.tag == _STR:
        return text
    if node.tag == _NULL:
        return None
    if node.tag == _BOOL:
        return text.lower() == "true"
    try:
        if node.tag == _INT:
            return int(text, {"0o": 8, "0x": 16}.get(text[:2], 10))
        if node.tag == _FLOAT and math.isfinite(number := float(text)):
            return number
    except ValueError:  # a tag that the text does not fit, or more digits than Python converts
        pass
    raise NotYamlError("a number is too large, or a tag (!name) is used", _line(node))


def _text(node: ScalarNode) -> str:
    text: str = node.value
    if any("\ud800" <= character <= "\udfff" for character in text):
        raise NotYamlError("it holds half of a Unicode surrogate pair", _line(node))
    return text


def _line(node: Node) -> int:
    line: int = node.start_mark.line
    return line + 1
