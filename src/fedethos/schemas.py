"""What a document may say, in JSON Schema and in words. Used by ``fedethos config`` and by refusals in ``fedethos.documents``."""

from __future__ import annotations

import difflib
import json
import re
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from functools import lru_cache
from typing import cast

from pydantic import BaseModel, JsonValue

from fedethos.errors import FedethosError

Json = Mapping[str, JsonValue]

_NAME = re.compile(r"[A-Za-z_][A-Za-z0-9_-]{0,39}")  # what may be a mistyped key; anything else could be data
_SIMPLE = {"integer": "a whole number", "number": "a number", "string": "text", "boolean": "true or false", "null": "null"}


def schema(model: type[BaseModel]) -> dict[str, JsonValue]:
    """JSON Schema (draft 2020-12) of a document."""
    return {"$schema": "https://json-schema.org/draft/2020-12/schema", **model.model_json_schema()}


def explain(model: type[BaseModel], key: str | None = None) -> str:
    """A page for a person: one key (``"privacy.epsilon"``), one section, or the whole document (None).

    Raises
    ------
    FedethosError
        ``CFG-201`` for a key that the document does not have.
    """
    place = root(model)
    for depth, part in enumerate(parts := key.split(".") if key else []):
        child = place.child(part)
        if child is None:
            known = ".".join(parts[:depth])
            raise unknown_key(model, tuple(parts[:depth]), part, where=f"`{known}`" if known else "")
        place = child
    if place.keys:
        rows = [f"{name:<44}  {leaf.words}{_default_words(leaf)}" for name, leaf in _leaves(place, key or "")]
        return "\n".join([part for part in (place.description,) if part] + rows)
    page = [key or "", f"  allowed  {place.words}", f"  default  {place.default_text}"]
    return "\n".join(page + ([f"  {place.description}"] if place.description else []))


def unknown_key(model: type[BaseModel], section: tuple[str | int, ...], key: str, *, where: str) -> FedethosError:
    """The refusal ``CFG-201``, with the nearest key of the section or else the same key elsewhere in the document."""
    document = root(model)
    place = document.descend(section)
    keys = tuple(place.keys) if place else ()
    elsewhere = [name for name, _ in _leaves(document, "") if name.rpartition(".")[2] == key]
    near = difflib.get_close_matches(key, keys, n=1) or elsewhere[:1]
    shown = ".".join(part for part in (document.spell(section), key if _NAME.fullmatch(key) else "*") if part)
    hint = f"Did you mean `{near[0]}`?" if near else f"Its keys are {', '.join(keys)}." if keys else ""
    return FedethosError("CFG-201", f"Unknown key `{shown}`", where=where, fix=hint)


@lru_cache
def root(model: type[BaseModel]) -> Place:
    """The whole document as a place."""
    tree = schema(model)
    return Place(tree, tree)


@dataclass(frozen=True, eq=False)
class Place:
    """One place of a document, as the JSON Schema ``own`` inside ``tree`` describes it."""

    tree: Json
    own: Json

    @property
    def keys(self) -> dict[str, Place]:
        """The declared keys below this place, in the order of the model."""
        found: dict[str, Place] = {}
        for option in self._options():
            found |= {name: Place(self.tree, _object(child)) for name, child in _object(option.get("properties", {})).items()}
        return found

    def child(self, part: str | int) -> Place | None:
        """The place of a key or of a list item; None where the document has none."""
        if isinstance(part, str) and part in self.keys:
            return self.keys[part]
        inner = "items" if isinstance(part, int) else "additionalProperties"
        for option in self._options():
            if isinstance(option.get(inner), dict):
                return Place(self.tree, _object(option[inner]))
        return None

    def descend(self, path: Sequence[str | int]) -> Place | None:
        """The place at the end of ``path``."""
        place: Place | None = self
        for part in path:
            place = place.child(part) if place else None
        return place

    def spell(self, path: Sequence[str | int]) -> str:
        """``path`` for a reader. Keys that the document's author chose stand as ``*``: they can be data, as under ``data.map``."""
        text = ""
        place: Place | None = self
        for part in path:
            name = part if isinstance(part, str) and place and part in place.keys else "*"
            text += f"[{part}]" if isinstance(part, int) else f".{name}" if text else name
            place = place.child(part) if place else None
        return text

    @property
    def words(self) -> str:
        """What may stand here: type and range."""
        return " or ".join(dict.fromkeys(_words(self.tree, option) for option in self._options()))

    @property
    def description(self) -> str:
        """The schema's description, on one line."""
        texts = (option.get("description", "") for option in (self.own, *self._options()))
        return " ".join(str(next((text for text in texts if text), "")).replace("``", "`").split())

    @property
    def default_text(self) -> str:
        """The default as it would stand in the document."""
        return json.dumps(self.own["default"], ensure_ascii=False) if "default" in self.own else "none"

    def _options(self) -> list[Json]:
        own = self.own
        if "$ref" in own:
            own = _object(_object(self.tree["$defs"])[str(own["$ref"]).rpartition("/")[2]])
        choices = own.get("anyOf")
        if isinstance(choices, list):
            return [option for choice in choices for option in Place(self.tree, _object(choice))._options()]
        return [own]


def _leaves(place: Place, prefix: str) -> Iterator[tuple[str, Place]]:
    for name, child in place.keys.items():
        full = f"{prefix}.{name}" if prefix else name
        if child.keys:
            yield from _leaves(child, full)
        else:
            yield full, child


def _default_words(leaf: Place) -> str:
    return f" (default {leaf.default_text})" if "default" in leaf.own else ""


def _words(tree: Json, option: Json) -> str:
    kind = option.get("type")
    if "const" in option:
        return _spelled(option["const"])
    if isinstance(names := option.get("enum"), list):
        return "one of " + ", ".join(_spelled(name) for name in names)
    if kind == "array":
        count = f" with at least {option['minItems']} items" if "minItems" in option else ""
        return f"a list{count}, each {Place(tree, _object(option.get('items', {}))).words}"
    if kind == "object":
        keys = ", ".join(_object(option.get("properties", {}))) or _spelled(_object(option.get("propertyNames", {})).get("const", ""))
        return f"a section with {keys}" if keys else "a mapping"
    pattern = f" that matches {option['pattern']}" if "pattern" in option else ""
    return _SIMPLE.get(str(kind), "any value") + pattern + _range(option)


def _spelled(constant: JsonValue) -> str:
    return constant if isinstance(constant, str) else json.dumps(constant)


def _range(option: Json) -> str:
    bounds = (("minimum", "at least"), ("exclusiveMinimum", "more than"), ("maximum", "at most"), ("exclusiveMaximum", "less than"))
    return "".join(f", {words} {option[bound]}" for bound, words in bounds if bound in option)


def _object(value: JsonValue) -> Json:
    return cast("Json", value)
