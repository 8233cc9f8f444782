"""Recipes are read by YAML 1.2's idea of numbers and booleans, and nothing is guessed."""

import pytest
import yaml
from support.recipe_texts import bomb

from distill_datasets.errors import RecipeError
from distill_datasets.files.yaml_text import from_yaml, to_yaml

FLOATS = [0.1, 3.0, 1e-5, 1e-8, 0.0045, 1e22, 5e-324, 123456789.125, -2.5e-7]
LOOK_LIKE_OTHERS = ["1e-3", "1e5", "010", "no", "yes", "on", "true", "null", "~", "", "5", ".5"]


@pytest.mark.parametrize("text", ["1e-3", "0.001", "1E-3", "+1.0e-3", ".001", "1.e-3"])
def test_every_spelling_of_a_float_is_a_float(text: str) -> None:
    assert from_yaml(f"lr: {text}") == {"lr": 0.001}


@pytest.mark.parametrize(("text", "value"), [("0", 0), ("12", 12), ("-7", -7), ("+7", 7)])
def test_a_decimal_number_is_an_integer(text: str, value: int) -> None:
    read = from_yaml(text)
    assert read == value and type(read) is int


@pytest.mark.parametrize(
    "text", ["010", "0x10", "0b1", "1_000", "1:30", "2024-01-01", "1e", ".inf"]
)
def test_what_only_yaml_1_1_takes_for_a_number_or_a_date_stays_text(text: str) -> None:
    assert from_yaml(text) == text


@pytest.mark.parametrize("text", ["no", "yes", "on", "off", "y", "N"])
def test_only_true_and_false_are_booleans(text: str) -> None:
    assert from_yaml(text) == text
    assert from_yaml("[true, False]") == [True, False]


def test_a_key_given_twice_is_refused_with_its_line() -> None:
    with pytest.raises(RecipeError, match=r"^line 3: the key 'seed' is given twice; keep one$"):
        from_yaml("seed: 0\nname: toy\nseed: 1\n")


def test_a_key_given_twice_deep_inside_is_refused_too() -> None:
    with pytest.raises(RecipeError, match=r"^line 4: the key 'lr' is given twice"):
        from_yaml("distill:\n  optimizer:\n    lr: 0.1\n    lr: 0.2\n")


def test_equal_keys_of_different_sections_are_fine() -> None:
    assert from_yaml("{a: {lr: 1}, b: {lr: 2}}") == {"a": {"lr": 1}, "b": {"lr": 2}}


@pytest.mark.parametrize("text", ["a: [1", "a: b: c", "\x00", "a: 1\n---\nb: 2", "a:\n\t- 1"])
def test_what_is_not_yaml_is_refused(text: str) -> None:
    with pytest.raises(RecipeError, match=r"^not readable as YAML: "):
        from_yaml(text)


@pytest.mark.parametrize("text", ["? [a, b]\n: 1", "{{ name }}: 1"])
def test_a_key_that_is_no_plain_value_is_refused(text: str) -> None:
    with pytest.raises(RecipeError, match=r"^line 1: expected a plain key, got "):
        from_yaml(text)


def test_yaml_cannot_make_python_objects() -> None:
    with pytest.raises(RecipeError, match=r"line 1: got the tag '!!python/object"):
        from_yaml("a: !!python/object/apply:os.getcwd []")


@pytest.mark.parametrize("value", FLOATS)
def test_a_float_that_is_written_is_read_as_the_same_float_by_every_reader(value: float) -> None:
    text = to_yaml({"lr": value})
    assert from_yaml(text)["lr"] == value
    read = yaml.safe_load(text)["lr"]
    assert read == value and type(read) is float


@pytest.mark.parametrize("value", LOOK_LIKE_OTHERS)
def test_text_that_looks_like_something_else_stays_text(value: str) -> None:
    text = to_yaml({"name": value})
    assert from_yaml(text) == {"name": value}
    assert yaml.safe_load(text) == {"name": value}


def test_keys_are_written_in_the_order_given_and_lists_are_indented() -> None:
    assert to_yaml({"b": {"d": 1, "c": [1, 2]}, "a": None}) == (
        "b:\n  d: 1\n  c:\n    - 1\n    - 2\na: null\n"
    )


def test_text_beyond_ascii_is_written_as_it_is() -> None:
    assert to_yaml({"title": "café"}) == "title: café\n"


@pytest.mark.parametrize(
    ("text", "words"),
    [
        (bomb(10, 9), r"^line 6: holds more than 200,000 values, those that aliases repeat"),
        (bomb(2, 30), r"^line \d+: holds more than 200,000 values"),
        ("a: &x [*x]", r"^line 1: \*'x' stands inside itself$"),
        ("a: !!int x", r"^line 1: got the tag '!!int', expected a value without one"),
        ("a: 1\nb: !!timestamp 2001-01-01", r"^line 2: got the tag '!!timestamp'"),
        ("a: ! 5", r"^line 1: got the tag '!'"),
        ("seed: " + "9" * 5000, r"^line 1: got an integer of 5,000 digits, expected at most 40$"),
        ("a: " + "[" * 3000, r"^line 1: nested more than 40 levels deep$"),
        ("- " * 3000, r"^line 1: nested more than 40 levels deep$"),
        ('a: "\\0"', r"^line 1: got the character '\\x00' in '\\x00'; leave it out$"),
        ('a: "\\ud800"', r"^line 1: got the character '\\ud800'"),
        ('a: "\\e[31m"', r"^line 1: got the character '\\x1b'"),
        (
            "x" * 1_000_001,
            r"^got 1,000,001 characters, expected at most 1,000,000; is this YAML\?$",
        ),
        ("a: *" + "q" * 5000, r"line 1, column 4: found undefined alias 'q{90,120}\.\.\.$"),
        ("a: [1\n\nb: 2", r"line 3, column 2: while parsing a flow sequence that begins in line 1"),
    ],
)
def test_a_text_that_is_built_to_do_harm_is_refused_in_one_line(text: str, words: str) -> None:
    with pytest.raises(RecipeError, match=words) as caught:
        from_yaml(text)
    assert "\n" not in str(caught.value)


def test_an_alias_repeats_a_section() -> None:
    text = "a: &net {name: convnet, width: 4}\nb: *net\nc: [*net, *net]"
    net = {"name": "convnet", "width": 4}
    assert from_yaml(text) == {"a": net, "b": net, "c": [net, net]}


def test_dates_and_merge_keys_are_text() -> None:
    assert from_yaml("a: 2001-01-01\n<<: {b: =}") == {"a": "2001-01-01", "<<": {"b": "="}}


def test_the_class_list_of_a_large_dataset_is_read() -> None:
    names = [f"n{place:08d}, a name" for place in range(21_841)]
    assert from_yaml(to_yaml({"source": {"classes": names}})) == {"source": {"classes": names}}
