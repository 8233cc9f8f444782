"""Every class of the package is abstract or final, read from its text: nothing is imported here.

Abstract: it says so by ABC, Protocol or an abstract method, and nobody makes one of it. Final:
nobody subclasses it. What a subclass overrides is abstract too, or an optional hook: a method of an
abstract class that does nothing or gives a constant answer. Exceptions are apart: a base of theirs
is what is caught.
"""

import ast
import builtins
from collections import Counter
from collections.abc import Iterator
from typing import NamedTuple

from test_floors import PACKAGE, TREES

Function = ast.FunctionDef | ast.AsyncFunctionDef
EMPTY_CALLS = {"frozenset", "set", "dict", "list", "tuple", "iter", "Needs"}


class Known(NamedTuple):
    """A class of the package: where it stands, and its bases in the package, in full."""

    name: str
    node: ast.ClassDef
    bases: list[str]

    @property
    def methods(self) -> dict[str, Function]:
        return {item.name: item for item in self.node.body if isinstance(item, Function)}

    @property
    def is_abstract(self) -> bool:
        said = {ast.unparse(base).partition("[")[0] for base in self.node.bases}
        return bool(said & {"ABC", "Protocol"}) or any(map(is_abstract, self.methods.values()))


def decorators(method: Function) -> set[str]:
    return {ast.unparse(decorator) for decorator in method.decorator_list}


def is_abstract(method: Function) -> bool:
    return "abstractmethod" in decorators(method)


def body_of(method: Function) -> list[ast.stmt]:
    """The statements without the docstring."""
    first, *rest = method.body
    is_text = isinstance(first, ast.Expr) and isinstance(first.value, ast.Constant)
    return rest if is_text else method.body


def is_empty_answer(method: Function) -> bool:
    """Whether a method does nothing, or returns a constant or an empty collection."""
    match body_of(method):
        case [] | [ast.Pass()] | [ast.Expr(ast.Constant())] | [ast.Return(None | ast.Constant())]:
            return True
        case [ast.Return(ast.List() | ast.Tuple() | ast.Dict() as value)]:
            return not list(ast.iter_child_nodes(value)) or not any(
                isinstance(inner, ast.expr) for inner in ast.walk(value) if inner is not value
            )
        case [ast.Return(ast.Call(func=ast.Name(name), args=[] | [ast.Tuple(elts=[])]))]:
            return name in EMPTY_CALLS
        case [ast.Expr(ast.YieldFrom(ast.Tuple(elts=[]))), *_]:
            return True
    return False


def scope(module: str) -> dict[str, str]:
    """What names at the top of a module mean, in full."""
    names = {}
    for node in ast.walk(TREES[module]):
        if isinstance(node, ast.ImportFrom) and (node.module or "").startswith(PACKAGE):
            origin = str(node.module).removeprefix(PACKAGE).removeprefix(".")
            for alias in node.names:
                names[alias.asname or alias.name] = f"{origin}.{alias.name}".removeprefix(".")
    for node in TREES[module].body:
        if isinstance(node, ast.ClassDef):
            names[node.name] = f"{module}.{node.name}"
    return names


def classes() -> Iterator[Known]:
    for module, tree in TREES.items():
        names = scope(module)
        for node in tree.body:
            if isinstance(node, ast.ClassDef):
                bases = [ast.unparse(base).partition("[")[0] for base in node.bases]
                resolved = [
                    f"{names.get(head, head)}{dot}{rest}"
                    for head, dot, rest in (base.partition(".") for base in bases)
                ]
                yield Known(f"{module}.{node.name}", node, resolved)


CLASSES = {known.name: known for known in classes()}


def ancestors(name: str) -> Iterator[Known]:
    """The bases of a class in the package, and theirs, nearest first."""
    for base in CLASSES[name].bases if name in CLASSES else []:
        if base in CLASSES:
            yield CLASSES[base]
            yield from ancestors(base)


def is_exception(name: str) -> bool:
    known = CLASSES.get(name)
    if known is None:
        kind = getattr(builtins, name, None)
        return isinstance(kind, type) and issubclass(kind, BaseException)
    return any(map(is_exception, known.bases))


def calls() -> Iterator[tuple[str, str]]:
    """Every call of a name, as `module:line` and what the name means."""
    for module, tree in TREES.items():
        names = scope(module)
        for node in ast.walk(tree):
            if isinstance(node, ast.Call) and isinstance(node.func, ast.Name):
                yield f"{module}:{node.lineno}", names.get(node.func.id, node.func.id)


def test_what_is_subclassed_is_abstract() -> None:
    subclassed = {base.name for name in CLASSES for base in ancestors(name)}
    wrong = [
        name
        for name in sorted(subclassed)
        if not CLASSES[name].is_abstract and not is_exception(name)
    ]
    assert wrong == []


def test_nobody_makes_an_abstract_one() -> None:
    abstract = {name for name, known in CLASSES.items() if known.is_abstract}
    assert [f"{where}: {name}" for where, name in calls() if name in abstract] == []


def test_nothing_implemented_is_overridden() -> None:
    wrong = []
    for name, known in CLASSES.items():
        for method in known.methods:
            if method == "__init__" or (method.startswith("__") and is_exception(name)):
                continue
            above = next((base for base in ancestors(name) if method in base.methods), None)
            if above is None:
                continue
            theirs = above.methods[method]
            hook = above.is_abstract and is_empty_answer(theirs)
            stub = any(ast.unparse(base) == "Protocol" for base in above.node.bases)
            if not (is_abstract(theirs) or hook or (stub and is_empty_answer(theirs))):
                wrong.append(f"{name}.{method} overrides {above.name}")
    assert wrong == []


def test_one_name_is_one_class() -> None:
    count = Counter(known.node.name for known in CLASSES.values())
    assert [name for name, times in count.items() if times > 1] == []
