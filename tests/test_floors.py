"""The shape of the package, read from its text: nothing is imported here."""

import ast
import re
from collections.abc import Iterator
from pathlib import Path
from typing import NamedTuple

import pytest

PACKAGE = "distill_datasets"
ROOT = Path(__file__).parent.parent / PACKAGE
HOUSE = """
cli
api
planning
presets
pipeline
recipe
evaluation
layouts
stages
objectives
networks
distilled
labels
canvases
export
soft_labels
selection
training
views
data
models
optimizers
hub
files
runtime
media
config
targets
types errors
"""
"""The rooms from the top to the bottom; imports point down. Rooms of a line know nothing of each
other."""
FLOOR = {
    room: -floor for floor, rooms in enumerate(HOUSE.split("\n")) for room in rooms.split()
} | {"__init__": 1, "__main__": 1}
LONGEST = 600


class Import(NamedTuple):
    """One imported name: by whom, what, its line, and whether a running import follows it."""

    module: str
    target: str
    line: int
    at_import: bool
    for_types: bool


def module_name(path: Path) -> str:
    """`stages.export` for stages/export.py; `data` for data/__init__.py."""
    parts = list(path.relative_to(ROOT).with_suffix("").parts)
    if len(parts) > 1 and parts[-1] == "__init__":
        parts.pop()
    return ".".join(parts)


FILES = {module_name(path): path for path in sorted(ROOT.rglob("*.py"))}
TREES = {name: ast.parse(path.read_text(encoding="utf-8")) for name, path in FILES.items()}


def targets(module: str, node: ast.Import | ast.ImportFrom) -> list[str]:
    """The modules that a statement imports, in full."""
    if isinstance(node, ast.Import):
        return [alias.name for alias in node.names]
    assert node.level == 0, f"{module}:{node.lineno}: relative imports hide the floor"
    assert node.module is not None
    inside = node.module.removeprefix(PACKAGE).removeprefix(".")
    names = [f"{inside}.{alias.name}".removeprefix(".") for alias in node.names]
    if node.module.partition(".")[0] == PACKAGE:
        return [f"{PACKAGE}.{name}" if name in FILES else f"{node.module}:{name}" for name in names]
    return [node.module]


def imports(module: str) -> Iterator[Import]:
    """Every import of a module, wherever it stands."""

    def visit(node: ast.AST, at_import: bool, for_types: bool) -> Iterator[Import]:
        if isinstance(node, ast.Import | ast.ImportFrom):
            for target in targets(module, node):
                yield Import(module, target, node.lineno, at_import, for_types)
            return
        if isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef | ast.Lambda):
            at_import = False
        if isinstance(node, ast.If) and ast.unparse(node.test) == "TYPE_CHECKING":
            at_import, for_types = False, True
        for child in ast.iter_child_nodes(node):
            yield from visit(child, at_import, for_types)

    yield from visit(TREES[module], True, False)


IMPORTS = [found for module in FILES for found in imports(module)]


def ours(found: Import) -> str | None:
    """The module of this package that an import means, None for other packages."""
    name = found.target.partition(":")[0]
    if name == PACKAGE:
        return "__init__"
    return name.removeprefix(f"{PACKAGE}.") if name.startswith(f"{PACKAGE}.") else None


def room(module: str) -> str:
    return module.partition(".")[0]


def using(package: str) -> set[str]:
    """The modules that name another package."""
    return {found.module for found in IMPORTS if found.target.partition(".")[0] == package}


def places(kind: type[ast.AST]) -> Iterator[tuple[str, ast.AST]]:
    """Every node of one kind, with `module:line`."""
    for module, tree in TREES.items():
        for node in ast.walk(tree):
            if isinstance(node, kind):
                yield f"{module}:{getattr(node, 'lineno', 0)}", node


def test_every_module_stands_on_a_floor() -> None:
    assert {room(module) for module in FILES} == FLOOR.keys()


def test_the_guide_lists_the_rooms_from_the_top_down() -> None:
    text = (ROOT / "README.md").read_text(encoding="utf-8")
    listed = re.findall(r"(?m)^  (\w+)(?:/|\.py) ", text)
    assert listed == [line.split()[0] for line in HOUSE.split("\n") if line]


def test_imports_point_down() -> None:
    # Modules ask the package itself only for its version, which `__init__` holds without work.
    wrong = [
        f"{found.module}:{found.line} imports {found.target}"
        for found in IMPORTS
        if (target := ours(found)) is not None
        and room(target) != room(found.module)
        and FLOOR[room(target)] >= FLOOR[room(found.module)]
        and found.target not in (PACKAGE, f"{PACKAGE}:__version__")
    ]
    assert wrong == []


def test_the_package_itself_is_asked_only_for_its_version() -> None:
    wrong = [
        f"{where}: {ast.unparse(node)}"
        for where, node in places(ast.Attribute)
        if isinstance(node, ast.Attribute)
        and isinstance(node.value, ast.Name)
        and node.value.id == PACKAGE
        and node.attr != "__version__"
    ]
    assert wrong == []


def test_no_modules_import_each_other_in_a_circle() -> None:
    edges: dict[str, set[str]] = {module: set() for module in FILES}
    for found in IMPORTS:
        target = ours(found)
        if found.at_import and target is not None and target != found.module:
            edges[found.module].add(target)
    open_now: list[str] = []
    done: set[str] = set()

    def visit(module: str) -> None:
        assert module not in open_now, " -> ".join([*open_now[open_now.index(module) :], module])
        if module in done:
            return
        open_now.append(module)
        for target in sorted(edges[module]):
            visit(target)
        open_now.pop()
        done.add(module)

    for module in FILES:
        visit(module)


def test_methods_do_not_know_each_other() -> None:
    methods = {module for module in FILES if room(module) == "objectives"}
    methods -= {"objectives", "objectives.objective"}
    assert methods
    wrong = [
        f"{found.module}:{found.line} imports {found.target}"
        for found in IMPORTS
        if found.module in methods and ours(found) in methods
    ]
    assert wrong == []


def test_yaml_is_known_to_one_module() -> None:
    assert using("yaml") == {"files.yaml_text"}


def test_the_hub_is_known_to_its_room_only() -> None:
    assert {room(user) for user in using("huggingface_hub")} == {"hub"}


@pytest.mark.parametrize("module", FILES)
def test_no_module_is_long(module: str) -> None:
    assert len(FILES[module].read_text(encoding="utf-8").splitlines()) <= LONGEST


def test_no_module_is_a_place_for_leftovers() -> None:
    leftovers = re.compile(r"utils?|help\w*|common|misc|core|base|tools?")
    assert [name for name in FILES if any(map(leftovers.fullmatch, name.split(".")))] == []


@pytest.mark.parametrize("module", FILES)
def test_every_module_says_what_it_is_for(module: str) -> None:
    assert ast.get_docstring(TREES[module])


def calls(name: str) -> list[str]:
    return [
        where
        for where, node in places(ast.Call)
        if isinstance(node, ast.Call) and ast.unparse(node.func) == name
    ]


def test_the_library_does_not_print() -> None:
    assert calls("print") == []


def test_nothing_is_unpickled() -> None:
    assert using("joblib") | using("dill") | using("cloudpickle") == set()
    # of pickle, the error that torch's loader of weights raises is named, and nothing more
    named = [found for found in IMPORTS if found.target.partition(":")[0] == "pickle"]
    assert {found.module for found in named} <= {"files.pickled"}
    assert all("UnpicklingError" in ast.unparse(TREES[found.module]) for found in named)
    # the one writer is for programs that read nothing else: `export --layout pt`
    (saved,) = calls("torch.save")
    assert saved.startswith("layouts.written:") and len(calls("torch.load")) == 1
    # the one loader of state dicts runs no code
    assert [
        ast.unparse(node)
        for _, node in places(ast.Call)
        if isinstance(node, ast.Call) and ast.unparse(node.func) == "torch.load"
    ] == ["torch.load(file, map_location='cpu', weights_only=True)"]


def test_no_error_is_swallowed_whatever_it_is() -> None:
    wrong = [
        where
        for where, node in places(ast.ExceptHandler)
        if isinstance(node, ast.ExceptHandler)
        and (node.type is None or re.search(r"\b(Base)?Exception\b", ast.unparse(node.type)))
    ]
    assert wrong == []


def test_no_device_is_assumed() -> None:
    wrong = [
        where
        for where, node in places(ast.Constant)
        if isinstance(node, ast.Constant)
        and isinstance(node.value, str)
        and re.fullmatch(r"cuda(:\d+)?", node.value)
    ]
    assert wrong == []
    assert [
        where
        for where, node in places(ast.Call)
        if isinstance(node, ast.Call)
        and isinstance(node.func, ast.Attribute)
        and node.func.attr == "cuda"
    ] == []


def test_the_command_line_imports_nothing_slow_before_a_verb_needs_it() -> None:
    cheap = {
        "errors",
        "cli",
        "cli.as_json",
        "cli.derive",
        "cli.evaluate",
        "cli.job",
        "cli.lazy_imports",
        "cli.pages",
        "cli.recipes",
        "cli.run",
        "cli.sets",
        "cli.share",
        "files",
        "files.shipped",
        "runtime",
        "runtime.launch",
        "__main__",
        "__init__",
    }
    slow = {"torch", "datasets", "accelerate", "pydantic", "numpy", "huggingface_hub", "pyarrow"}
    for module in cheap:
        for found in imports(module):
            if found.at_import:
                assert found.target.partition(".")[0] not in slow
                assert ours(found) is None or ours(found) in cheap
