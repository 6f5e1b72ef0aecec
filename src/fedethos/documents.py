"""Read a YAML document into its strict model, apply ``--set`` overrides, and write a job back.

Every refusal names file, line and key, and what would be allowed; it never repeats a value of the document. YAML itself is in
``fedethos.yamltext``, the words about keys in ``fedethos.schemas``, the job's model in ``fedethos.job``.
"""

from __future__ import annotations

import re
from collections.abc import Sequence
from pathlib import Path
from typing import TypeVar

from pydantic import BaseModel, JsonValue, ValidationError
from pydantic_core import ErrorDetails

from fedethos import yamltext
from fedethos.errors import FedethosError
from fedethos.job import Job
from fedethos.schemas import root, unknown_key

MAX_BYTES = 1_000_000

_CODE = re.compile(r"^[A-Z]+-\d+$")
_OUT_OF_RANGE = {
    "finite_number",
    "greater_than",
    "greater_than_equal",
    "less_than",
    "less_than_equal",
    "literal_error",
    "string_pattern_mismatch",
    "string_too_long",
    "string_too_short",
    "too_long",
    "too_short",
}

Document = TypeVar("Document", bound=BaseModel)
Where = dict[yamltext.Path, str]  # path of a key -> "job.yaml:17" or "--set no. 1", in document order


def load_job(path: Path, overrides: Sequence[str] = ()) -> Job:
    """Read ``job.yaml``. See ``load_document``."""
    return load_document(Job, path, overrides)


def load_document(model: type[Document], path: Path, overrides: Sequence[str] = ()) -> Document:
    """Read and check a document.

    Parameters
    ----------
    model : type[Document]
        The strict pydantic model of the document.
    path : Path
        A YAML file of at most ``MAX_BYTES``.
    overrides : sequence of str
        ``"a.b=value"``, applied in order; the value is read as YAML.

    Raises
    ------
    FedethosError
        ``CFG-201`` unknown key, ``CFG-202`` missing key, ``CFG-203`` wrong type, ``CFG-204`` outside the allowed values,
        ``CFG-205`` not YAML, ``CFG-206`` unreadable file, ``CFG-207`` bad override, or the model's own code.
    """
    try:
        parsed = yamltext.parse(_read(path))
    except yamltext.NotYamlError as problem:
        raise FedethosError(
            "CFG-205",
            f"Cannot read the document: {problem.reason}.",
            where=f"{path.name}:{problem.line}" if problem.line else path.name,
            fix="fedethos reads YAML: mappings, lists, text, numbers, true, false, null.",
        ) from None
    data = parsed.data
    where: Where = {(): path.name} | {key: f"{path.name}:{line}" for key, line in parsed.lines.items()}
    for number, override in enumerate(overrides, start=1):
        data = _override(data, override, where, source=f"--set no. {number}")
    try:
        return model.model_validate(data)
    except ValidationError as error:
        raise _refusal(model, data, error, where) from None


def dump_job(job: Job) -> str:
    """The job as YAML with every default written out; it loads back to the same ``sha256``."""
    return yamltext.render(job.model_dump(mode="json", by_alias=True))


def _read(path: Path) -> str:
    try:
        with path.open("rb") as file:
            content = file.read(MAX_BYTES + 1)
    except (OSError, ValueError) as error:
        what = f"Cannot open the document ({type(error).__name__})."
        raise FedethosError("CFG-206", what, where=path.name, fix="Check the path and the file's permissions.") from None
    if len(content) > MAX_BYTES:
        raise yamltext.NotYamlError(f"it is larger than {MAX_BYTES:,} bytes", None)
    try:
        return content.decode("utf-8-sig")
    except UnicodeDecodeError as error:
        raise yamltext.NotYamlError("it is not UTF-8 text", content.count(b"\n", 0, error.start) + 1) from None


def _override(data: JsonValue, override: str, where: Where, *, source: str) -> JsonValue:
    def refuse(what: str) -> FedethosError:
        return FedethosError("CFG-207", what, where=source, fix="Write --set section.key=value, for example --set privacy.epsilon=3.")

    dotted, equals, text = override.partition("=")
    path = tuple(dotted.split("."))
    if not equals or not all(path) or not dotted.isprintable():  # half a surrogate pair is not printable
        raise refuse("An override is not of the form key=value.")
    try:
        value = yamltext.parse(text).data
    except yamltext.NotYamlError as problem:
        raise refuse(f"The value of an override is not YAML: {problem.reason}.") from None
    data = {} if data is None else data
    section: JsonValue = data
    for depth, part in enumerate(path[:-1], start=1):
        if not isinstance(section, dict):
            break
        if section.get(part) is None:
            section[part] = {}
            where[path[:depth]] = source
        section = section[part]
    if not isinstance(section, dict):
        raise refuse("An override goes through something that is not a section.")
    section[path[-1]] = value
    for old in [key for key in where if key[: len(path)] == path]:
        del where[old]
    where[path] = source
    return data


def _refusal(model: type[BaseModel], data: JsonValue, error: ValidationError, where: Where) -> FedethosError:
    """The first problem in document order; the number of the others is mentioned."""
    problems: dict[yamltext.Path, list[ErrorDetails]] = {}
    for detail in error.errors(include_url=False, include_context=False, include_input=False):
        problems.setdefault(_place(data, detail), []).append(detail)
    order = {path: index for index, path in enumerate(where)}
    first = min(problems, key=lambda path: order[_known(path, where)])
    refusal = _describe(model, first, problems[first], where)
    if len(problems) == 1:
        return refusal
    fix = f"{refusal.fix} ({len(problems) - 1} more after this one.)".lstrip()
    return FedethosError(refusal.code, refusal.what, where=refusal.where, fix=fix)


def _describe(model: type[BaseModel], path: yamltext.Path, details: list[ErrorDetails], where: Where) -> FedethosError:
    at = where[_known(path, where)]
    kinds = {detail["type"] for detail in details}
    document = root(model)
    place = document.descend(path)
    shown = f"`{document.spell(path)}`" if path else "The document"
    words = place.words if place else "a value of another type"
    explained = f"See: fedethos config explain {path[0]}" if path else "See: fedethos config explain"
    help_line = explained if model is Job else ""
    if code := next((kind for kind in kinds if _CODE.match(kind)), None):
        return FedethosError(code, next(detail["msg"] for detail in details if detail["type"] == code), where=at, fix=help_line)
    if "extra_forbidden" in kinds:
        return unknown_key(model, path[:-1], str(path[-1]), where=at)
    if "missing" in kinds:
        return FedethosError("CFG-202", f"Missing key {shown}: {words}.", where=at, fix=help_line)
    if kinds & _OUT_OF_RANGE:
        return FedethosError("CFG-204", f"{shown} is outside what is allowed: {words}.", where=at, fix=help_line)
    quote = " Put quotes around a number, true, false or null that is meant as text." if "string_type" in kinds else ""
    return FedethosError("CFG-203", f"{shown} has the wrong type; it must be {words}.{quote}", where=at, fix=help_line)


def _place(data: JsonValue, detail: ErrorDetails) -> yamltext.Path:
    """The path of a problem in the document: pydantic's location without the names of union members."""
    path: list[str | int] = []
    location = detail["loc"][:-2] if detail["loc"][-1:] == ("[key]",) else detail["loc"]
    for index, part in enumerate(location):
        is_last = index == len(location) - 1
        if isinstance(data, dict) and isinstance(part, str) and (part in data or (is_last and detail["type"] == "missing")):
            data = data.get(part)
        elif isinstance(data, list) and isinstance(part, int) and part < len(data):
            data = data[part]
        else:
            continue
        path.append(part)
    return tuple(path)


def _known(path: yamltext.Path, where: Where) -> yamltext.Path:
    while path not in where:
        path = path[:-1]
    return path
