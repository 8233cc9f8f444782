"""Every key that a recipe can have, as Markdown: the text of `distill-datasets list --keys`.

It is made from the sections themselves, so that it cannot differ from what a recipe accepts.
"""

from __future__ import annotations

import json
import types
import typing
from collections.abc import Iterable, Iterator, Mapping, Sequence
from typing import Any, Literal, NamedTuple, get_args, get_origin

from pydantic import BaseModel
from pydantic.fields import FieldInfo

from distill_datasets.config import NamedPart, Part, load

HEAD = """# Every key of a recipe

Made by `distill-datasets list --keys`. A key stands in its section: `seed: 1` at the top,
`source: {resolution: 32}` below. Where the type is a part of an axis, the value is its name alone
or a section with its `name` and its own keys, which are listed below under the axis.
"""
TABLE = "| key | type | default | meaning |\n| --- | --- | --- | --- |"
WORDS = {bool: "true or false", int: "integer", float: "number", str: "text", type(None): "null"}
BOUNDS = {"gt": ">", "ge": ">=", "lt": "<", "le": "<="}


class Key(NamedTuple):
    """A key: its path in a recipe, `axis/name.key` of a part; what it takes, what it means."""

    path: str
    type: str
    default: str
    meaning: str


class KeyTable(NamedTuple):
    """The keys of one section or part, under what stands above them."""

    heading: str
    rows: list[Key]


def keys_of(recipe: type[BaseModel] | None, parts: Mapping[str, Iterable[str]]) -> str:
    """The whole text.

    Args:
        recipe: the class of a recipe; None leaves its sections out.
        parts: the names on every axis that is told.
    """
    pages = [HEAD]
    for heading, rows in tables_of(recipe, parts):
        pages.append(heading + "\n")
        if rows:
            lines = (
                f"| `{row.path.rpartition('.')[2]}` | {row.type} | {row.default} | {row.meaning} |"
                for row in rows
            )
            pages.append("\n".join([TABLE, *lines]) + "\n")
    return "\n".join(pages)


def tables_of(
    recipe: type[BaseModel] | None, parts: Mapping[str, Iterable[str]]
) -> Iterator[KeyTable]:
    """The tables of the recipe's sections, then those of the parts of every axis that is told."""
    places = dict[type[BaseModel], str]()
    if recipe is not None:
        yield from _sections(recipe, "", "", "## The recipe", places)
    for axis, listed in parts.items():
        yield KeyTable(f"## Axis: {axis}", [])
        for name in sorted(listed):
            cls = load(axis, name)
            what = " ".join((cls.__doc__ or "").strip().partition("\n\n")[0].split())
            yield from _sections(cls, f"{axis}/", f"{name}.", f"### `{name}`\n\n{what}", places)


def _sections(
    model: type[BaseModel],
    axis: str,
    path: str,
    heading: str,
    places: dict[type[BaseModel], str],
) -> Iterator[KeyTable]:
    """The table of a model, then those of the sections inside it that have none yet.

    Args:
        model: a section or a part.
        axis: of a part, with a slash.
        path: what stands before its keys.
        heading: what stands above the table.
        places: where the sections are whose tables were made; filled in.
    """
    rows, inner = list[Key](), list[tuple[str, type[BaseModel]]]()
    for key, field in model.model_fields.items():
        if key == "name" and issubclass(model, Part):
            continue
        words = _type(field)
        for each in _models(field.annotation):
            if issubclass(each, Part):
                continue  # their tables stand under their axis
            if each in places:
                words += f", as `{places[each]}`"
            else:
                places[each] = f"{path}{key}"
                inner.append((f"{path}{key}", each))
        rows.append(Key(f"{axis}{path}{key}", words, _default(field), _meaning(field)))
    yield KeyTable(heading, rows)
    for place, each in inner:
        yield from _sections(each, axis, f"{place}.", f"### `{place}`", places)


def _models(annotation: Any) -> list[type[BaseModel]]:  # noqa: ANN401
    """The sections and kinds of parts that a type names."""
    if isinstance(annotation, type) and issubclass(annotation, BaseModel):
        return [annotation]
    return [model for each in get_args(annotation) for model in _models(each)]


def _type(field: FieldInfo) -> str:
    axes = [each.axis for each in field.metadata if isinstance(each, NamedPart)]
    words = _words(field.annotation, axes)
    bounds = [
        f"{sign} {getattr(each, name)}"
        for each in field.metadata
        for name, sign in BOUNDS.items()
        if getattr(each, name, None) is not None
    ]
    return _cell(", ".join([words, *bounds]))


def _words(annotation: Any, axes: Sequence[str] = ()) -> str:  # noqa: ANN401
    """A type as a person writes it in YAML."""
    origin, inner = get_origin(annotation), get_args(annotation)
    if origin is typing.Annotated:
        named = [each.axis for each in annotation.__metadata__ if isinstance(each, NamedPart)]
        return _words(inner[0], named or axes)
    if origin is Literal:
        return " or ".join(f"`{json.dumps(each)}`" for each in inner)
    if origin in (typing.Union, types.UnionType):
        return " or ".join(_words(each, axes) for each in inner)
    if origin in (list, tuple):
        members = [_words(each, axes) for each in inner if each is not Ellipsis]
        return "list of " + ", ".join(dict.fromkeys(members))
    if origin is dict:
        return f"section of {_words(inner[1], axes)}"
    if isinstance(annotation, type) and issubclass(annotation, Part):
        return f"a part of {', '.join(axes)}" if axes else "a part"
    if isinstance(annotation, type) and issubclass(annotation, BaseModel):
        return "section"
    return WORDS.get(annotation, str(getattr(annotation, "__name__", annotation)))


def _default(field: FieldInfo) -> str:
    if field.is_required():
        return "required"
    value = field.get_default(call_default_factory=True)
    if isinstance(value, Part):
        own = value.model_dump(mode="json", exclude_defaults=True)
        value = {"name": value.name} | own if own else value.name
    elif isinstance(value, BaseModel):
        value = value.model_dump(mode="json", exclude_defaults=True)
    return _cell(f"`{json.dumps(value, default=str)}`")


def _meaning(field: FieldInfo) -> str:
    described = [field.description, *(each.__doc__ for each in _models(field.annotation))]
    text = next(filter(None, described), "")
    return _cell(text.strip().partition("\n")[0])


def _cell(text: str) -> str:
    return text.replace("|", "\\|").replace("\n", " ")
