"""YAML text, read and written: the only module that knows YAML.

PyYAML follows YAML 1.1, which reads `1e-3` as text, `no` as False, `010` as 8, `1:30` as 90 and
lets the last of two equal keys win. A recipe reader must do none of this. Nor does it trust the
text: aliases that multiply, tags, depth, long numbers and control characters end in a sentence,
after bounded work.
"""

import re
from collections.abc import Hashable, Iterable
from typing import Any

import yaml

from distill_datasets.errors import RecipeError, cut, shown

MOST_CHARACTERS = 1_000_000
"""Of a text: twice the names of all classes of ImageNet-21K; read in two seconds."""
MOST_VALUES = 200_000
"""Keys and values of a text, those that an alias repeats counted each time."""
MOST_LEVELS = 40
MOST_DIGITS = 40
"""Of an integer: no bound of a recipe has so many."""


class _Reader(yaml.SafeLoader):
    """Numbers and booleans as in YAML 1.2; no repeated keys, no tags, no text without end."""

    def __init__(self, text: str) -> None:
        super().__init__(text)
        self._level = 0
        # what stands below a node, aliases followed; a node that is still open has no entry
        self._values = dict[yaml.Node, int]()

    def compose_node(self, parent: yaml.Node | None, index: Any) -> yaml.Node | None:  # noqa: ANN401
        event: Any = self.peek_event()  # type: ignore[no-untyped-call]
        line = event.start_mark.line + 1
        if isinstance(event, yaml.AliasEvent):
            node = super().compose_node(parent, index)
            if node not in self._values:
                raise RecipeError(f"line {line}: *{shown(event.anchor)} stands inside itself")
            return node
        _check(event, line)
        self._level += 1
        if self._level > MOST_LEVELS:
            raise RecipeError(f"line {line}: nested more than {MOST_LEVELS} levels deep")
        node = super().compose_node(parent, index)
        self._level -= 1
        if node is None:
            return None
        count = self._values[node] = 1 + sum(self._values[each] for each in _inside(node))
        if count > MOST_VALUES:
            raise RecipeError(
                f"line {line}: holds more than {MOST_VALUES:,} values, those that aliases repeat "
                "counted each time"
            )
        return node

    def construct_mapping(self, node: yaml.MappingNode, deep: bool = False) -> dict[Any, Any]:
        seen = set()
        for key_node, _ in node.value:
            key = self.construct_object(key_node, deep=True)
            line = key_node.start_mark.line + 1
            if not isinstance(key, Hashable):
                raise RecipeError(f"line {line}: expected a plain key, got {shown(key)}")
            if key in seen:
                raise RecipeError(f"line {line}: the key {shown(key)} is given twice; keep one")
            seen.add(key)
        return super().construct_mapping(node, deep)


def _check(event: Any, line: int) -> None:  # noqa: ANN401
    """Refuse a value that says its own type, or that no terminal and no file name can show."""
    if event.tag is not None:
        tag = event.tag.replace("tag:yaml.org,2002:", "!!")
        raise RecipeError(
            f"line {line}: got the tag {shown(tag)}, expected a value without one; text that looks "
            "like a number stands in quotes"
        )
    if isinstance(event, yaml.ScalarEvent) and (found := _UNPRINTABLE.search(event.value)):
        raise RecipeError(
            f"line {line}: got the character {found[0]!r} in {shown(event.value)}; leave it out"
        )


def _inside(node: yaml.Node) -> Iterable[yaml.Node]:
    if isinstance(node, yaml.MappingNode):
        return (each for pair in node.value for each in pair)
    return node.value if isinstance(node, yaml.SequenceNode) else ()


def _integer(reader: _Reader, node: yaml.ScalarNode) -> int:
    if len(node.value) > MOST_DIGITS:
        raise RecipeError(
            f"line {node.start_mark.line + 1}: got an integer of {len(node.value):,} digits, "
            f"expected at most {MOST_DIGITS}"
        )
    return int(node.value)


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
# no terminal shows them, or no file holds them as UTF-8; \t and \n may be in a text
_UNPRINTABLE = re.compile("[\x00-\x08\x0b-\x1f\x7f-\x9f\u2028\u2029\ud800-\udfff\ufffe\uffff]")
_REPLACED = (":bool", ":int", ":float", ":timestamp", ":merge", ":value")
_Reader.yaml_implicit_resolvers = {
    first: [(tag, pattern) for tag, pattern in known if not tag.endswith(_REPLACED)]
    for first, known in yaml.SafeLoader.yaml_implicit_resolvers.items()
}
_Reader.add_implicit_resolver("tag:yaml.org,2002:bool", _BOOL, list("tTfF"))
_Reader.add_implicit_resolver("tag:yaml.org,2002:int", _INT, list("-+0123456789"))
_Reader.add_implicit_resolver("tag:yaml.org,2002:float", _FLOAT, list("-+.0123456789"))
_Reader.add_constructor("tag:yaml.org,2002:int", _integer)
# text that our reader or YAML 1.1 would take for a number is written in quotes
_Writer.add_implicit_resolver("tag:yaml.org,2002:float", _FLOAT, list("-+.0123456789"))


def from_yaml(text: str) -> Any:  # noqa: ANN401
    """What a YAML text says.

    Raises:
        RecipeError: the text is not YAML, a key is given twice, or it is built to do harm.
    """
    if len(text) > MOST_CHARACTERS:
        raise RecipeError(
            f"got {len(text):,} characters, expected at most {MOST_CHARACTERS:,}; is this YAML?"
        )
    try:
        return yaml.load(text, _Reader)
    except yaml.MarkedYAMLError as error:
        raise RecipeError(f"not readable as YAML: {_in_words(error)}") from error
    except yaml.YAMLError as error:
        raise RecipeError(f"not readable as YAML: {str(error).splitlines()[0]}") from error


def _in_words(error: yaml.MarkedYAMLError) -> str:
    """Where and why, in one line."""
    mark, begun = error.problem_mark or error.context_mark, error.context_mark
    where = "" if mark is None else f"line {mark.line + 1}, column {mark.column + 1}: "
    context = "" if error.context is None else f"{error.context}, "
    if context and begun is not None and mark is not None and begun.line != mark.line:
        context = f"{error.context} that begins in line {begun.line + 1}, "
    return where + cut(f"{context}{error.problem or 'unreadable'}")


def to_yaml(content: dict[str, Any]) -> str:
    """Block-style YAML of a JSON object, keys in the order given."""
    return yaml.dump(content, Dumper=_Writer, sort_keys=False, allow_unicode=True, width=100)
