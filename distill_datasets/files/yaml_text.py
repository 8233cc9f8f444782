"""YAML text, read and written: the only module that knows YAML.

PyYAML follows YAML 1.1, which reads `1e-3` as text, `no` as False, `010` as 8, `1:30` as 90 and
lets the last of two equal keys win. A recipe reader must do none of this.
"""

import re
from collections.abc import Hashable
from typing import Any

import yaml

from distill_datasets.errors import RecipeError

NotYaml = yaml.YAMLError
"""What PyYAML, and every library that reads YAML by it, raises of a text that is none."""


class _Reader(yaml.SafeLoader):
    """Numbers and booleans as in YAML 1.2; no repeated keys."""

    def construct_mapping(self, node: yaml.MappingNode, deep: bool = False) -> dict[Any, Any]:
        seen = set()
        for key_node, _ in node.value:
            key = self.construct_object(key_node, deep=True)
            line = key_node.start_mark.line + 1
            if not isinstance(key, Hashable):
                raise RecipeError(f"line {line}: expected a plain key, got {key!r}")
            if key in seen:
                raise RecipeError(f"line {line}: the key {key!r} is given twice; keep one")
            seen.add(key)
        return super().construct_mapping(node, deep)


class _Writer(yaml.SafeDumper):
    """Floats always with a point, so that every reader takes them for floats."""

    def increase_indent(self, flow: bool = False, indentless: bool = False) -> None:
        super().increase_indent(flow, False)


def _float(writer: yaml.SafeDumper, value: float) -> yaml.ScalarNode:
    mantissa, e, exponent = repr(value).partition("e")
    if e and "." not in mantissa:
        mantissa += ".0"
    sign = "" if not e or exponent.startswith("-") else "+"
    text = f"{mantissa}{e}{sign}{exponent.lstrip('+')}"
    return writer.represent_scalar("tag:yaml.org,2002:float", text)


_Writer.add_representer(float, _float)
_BOOL = re.compile(r"^(?:true|True|TRUE|false|False|FALSE)$")
_INT = re.compile(r"^[-+]?(?:0|[1-9][0-9]*)$")
_FLOAT = re.compile(r"^[-+]?(?:[0-9]+\.[0-9]*|\.[0-9]+|[0-9]+(?=[eE]))(?:[eE][-+]?[0-9]+)?$")
_REPLACED = (":bool", ":int", ":float", ":timestamp")
_Reader.yaml_implicit_resolvers = {
    first: [(tag, pattern) for tag, pattern in known if not tag.endswith(_REPLACED)]
    for first, known in yaml.SafeLoader.yaml_implicit_resolvers.items()
}
_Reader.add_implicit_resolver("tag:yaml.org,2002:bool", _BOOL, list("tTfF"))
_Reader.add_implicit_resolver("tag:yaml.org,2002:int", _INT, list("-+0123456789"))
_Reader.add_implicit_resolver("tag:yaml.org,2002:float", _FLOAT, list("-+.0123456789"))
# text that our reader or YAML 1.1 would take for a number is written in quotes
_Writer.add_implicit_resolver("tag:yaml.org,2002:float", _FLOAT, list("-+.0123456789"))


def from_yaml(text: str) -> Any:  # noqa: ANN401
    """What a YAML text says.

    Raises:
        RecipeError: the text is not YAML, or a key is given twice.
    """
    try:
        return yaml.load(text, _Reader)
    except yaml.YAMLError as error:
        raise RecipeError(f"not readable as YAML: {error}") from error


def to_yaml(content: dict[str, Any]) -> str:
    """Block-style YAML of a JSON object, keys in the order given."""
    return yaml.dump(content, Dumper=_Writer, sort_keys=False, allow_unicode=True, width=100)
