"""Imports that are put off: nothing runs before it is asked for, and nothing runs twice."""

import gc
import importlib
import importlib.util
import sys
from collections.abc import Iterator
from pathlib import Path
from types import ModuleType

import pytest

from distill_datasets.cli.lazy_imports import Later, put_off, uncollected

NAMES = ("slowlib", "slowlib.part")
SOURCES = {
    "__init__.py": "from slowlib import part\nSIX = 6",
    "part.py": "SEVEN = 7",
    "extra.py": "import slowlib\nEIGHT = slowlib.SIX + 2",
    "deep/__init__.py": "",
    "deep/er.py": "NINE = 9",
}


@pytest.fixture
def ran(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[list[str]]:
    """The modules of a library `slowlib` whose code has run, in order."""
    for name, text in SOURCES.items():
        path = tmp_path / "slowlib" / name
        path.parent.mkdir(exist_ok=True)
        text = f"import builtins\nbuiltins.ran.append(__name__)\n{text}\n"
        path.write_text(text, encoding="utf-8")
    names = list[str]()
    monkeypatch.syspath_prepend(tmp_path)
    monkeypatch.setattr("builtins.ran", names, raising=False)
    finders = list(sys.meta_path)
    yield names
    assert sys.meta_path == finders
    assert not any(isinstance(module, Later) for module in sys.modules.values())
    for name in [name for name in sys.modules if name.partition(".")[0] == "slowlib"]:
        del sys.modules[name]


def executed(statements: str) -> dict[str, ModuleType]:
    names: dict[str, ModuleType] = {}
    exec(statements, names)
    return names


def test_import_statements_load_nothing(ran: list[str]) -> None:
    with put_off(*NAMES):
        for _ in range(2):
            names = executed(
                "import slowlib\n"
                "import slowlib.part\n"
                "import slowlib.part as P\n"
                "from slowlib import part\n"
            )
            assert names["P"] is names["part"] is not names["slowlib"]
        spec = importlib.util.find_spec("slowlib")
        assert spec is not None and spec.origin is not None
    assert ran == [] and "slowlib" not in sys.modules
    assert names["part"].SEVEN == 7 and names["slowlib"].part.SEVEN == 7
    assert names["slowlib"].SIX == 6
    assert ran == ["slowlib", "slowlib.part"]


@pytest.mark.parametrize(
    "statement",
    [
        "from slowlib import SIX",
        "from slowlib.part import SEVEN",
        "import slowlib; slowlib.SIX",
        "import slowlib.part as P; P.SEVEN",
    ],
)
def test_what_is_asked_for_is_loaded_once(ran: list[str], statement: str) -> None:
    with put_off(*NAMES):
        executed("import slowlib, slowlib.part")
        executed(statement)
        assert ran == ["slowlib", "slowlib.part"]
        names = executed("import slowlib, slowlib.part")
        assert not isinstance(names["slowlib"], Later)
    executed(statement)
    assert ran == ["slowlib", "slowlib.part"]


@pytest.mark.parametrize("name", ["extra", "deep", "deep.er"])
def test_a_module_that_is_not_put_off_loads_its_library_once(ran: list[str], name: str) -> None:
    with put_off(*NAMES):
        executed("import slowlib")
        executed(f"import slowlib.{name}")
        found = importlib.import_module(f"slowlib.{name}")
    real = importlib.import_module("slowlib")
    assert ran[:2] == ["slowlib", "slowlib.part"] and len(ran) == len(set(ran))
    assert found is sys.modules[f"slowlib.{name}"]
    assert getattr(real, name.partition(".")[0]) is sys.modules[f"slowlib.{name.partition('.')[0]}"]
    assert found.__spec__ is not None and found.__spec__.origin == found.__file__
    again = importlib.reload(found)
    assert again is found


def test_what_is_set_reaches_the_library(ran: list[str]) -> None:
    with put_off(*NAMES):
        names = executed("import slowlib")
    names["slowlib"].SIX = 60  # type: ignore[attr-defined]
    assert importlib.import_module("slowlib").SIX == 60


def test_what_the_library_lacks_is_missed_as_ever(ran: list[str]) -> None:
    with put_off(*NAMES):
        names = executed("import slowlib")
        with pytest.raises(AttributeError, match="module 'slowlib' has no attribute 'TEN'"):
            _ = names["slowlib"].TEN
        with pytest.raises(ImportError, match="cannot import name 'TEN' from 'slowlib'"):
            executed("from slowlib import TEN")
    with put_off(*NAMES), pytest.raises(ModuleNotFoundError, match=r"slowlib\.no"):
        executed("import slowlib.no")


def test_libraries_that_are_loaded_or_absent_are_left_alone(ran: list[str]) -> None:
    real = importlib.import_module("slowlib")
    with put_off(*NAMES, "no_such_library", "no_such_library.part"):
        assert executed("import slowlib")["slowlib"] is real
        with pytest.raises(ModuleNotFoundError, match="No module named 'no_such_library'"):
            executed("import no_such_library")


@pytest.mark.parametrize("collects", [True, False])
def test_garbage_is_looked_for_afterwards_as_before(collects: bool) -> None:
    try:
        gc.enable() if collects else gc.disable()
        with pytest.raises(ValueError, match="inside"), uncollected():
            assert not gc.isenabled()
            raise ValueError("inside")
        assert gc.isenabled() == collects and gc.get_freeze_count() > 0
    finally:
        gc.unfreeze()
        gc.enable()
