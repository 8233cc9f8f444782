"""A card that people edited: our parts become new ones, theirs stay where they are."""

from typing import Any

import pytest

from distill_datasets.errors import ArtifactError
from distill_datasets.export.edited import merged, moved_parts, own_parts

OLD = """---
license: mit
tags:
- a
configs:
- config_name: default
---

# Digits

Ten digits.

## Results

| who | accuracy |
| --- | --- |
| mine | 90.0 |

```python
load()

train()
```

## Limits

Few.
"""
NEW = OLD.replace("90.0", "91.5").replace("Few.", "Fewer.").replace("- a\n", "- a\n- b\n")


def edit(old: str, *pairs: tuple[str, str]) -> str:
    for before, after in pairs:
        assert before in old
        old = old.replace(before, after)
    return old


@pytest.mark.parametrize("text", [OLD, OLD.replace("\n", "\r\n"), OLD.rstrip(), f"{OLD}\n\n"])
def test_a_card_that_nobody_edited_becomes_the_new_one(text: str) -> None:
    found = merged(own_parts(OLD), text, NEW)
    assert found.text == NEW and found.kept == []


EDITS: dict[str, tuple[list[tuple[str, str]], list[tuple[str, str]], list[str]]] = {
    "a paragraph behind a table that is new": (
        [("| mine | 90.0 |\n", "| mine | 90.0 |\n\nSee our blog.\n")],
        [("| mine | 91.5 |\n", "| mine | 91.5 |\n\nSee our blog.\n")],
        ["See our blog."],
    ),
    "a section at the end": (
        [("Few.\n", "Few.\n\n## Thanks\n\nTo all.\n")],
        [("Fewer.\n", "Fewer.\n\n## Thanks\n\nTo all.\n")],
        ["## Thanks", "To all."],
    ),
    "a sentence of ours in other words": (
        [("Ten digits.", "Ten digits, made in Bern.")],
        [("Ten digits.", "Ten digits, made in Bern.")],
        ["Ten digits, made in Bern."],
    ),
    "a sentence of ours that is new in other words": (
        [("Few.", "Few; ask me.")],
        [("Fewer.", "Few; ask me.")],
        ["Few; ask me."],
    ),
    "a section that was taken out": (
        [("## Limits\n\nFew.\n", "")],
        [("\n\n## Limits\n\nFewer.\n", "\n")],
        [],
    ),
    "a key, a value and a key that is gone": (
        [("license: mit", "license: cc0-1.0\npretty_name: D"), ("tags:\n- a\n", "")],
        [("license: mit", "license: cc0-1.0\npretty_name: D"), ("tags:\n- a\n- b\n", "")],
        ["license", "pretty_name"],
    ),
    "configurations that somebody changed": (
        [("config_name: default", "config_name: mine")],
        [],
        [],
    ),
}


@pytest.mark.parametrize("what", EDITS)
def test_what_people_wrote_stays_and_ours_is_new(what: str) -> None:
    edits, expected, kept = EDITS[what]
    found = merged(own_parts(OLD), edit(OLD, *edits), NEW)
    assert found.text == edit(NEW, *expected)
    assert found.kept == kept


@pytest.mark.parametrize("what", EDITS)
def test_a_card_that_was_written_anew_is_not_written_again(what: str) -> None:
    first = merged(own_parts(OLD), edit(OLD, *EDITS[what][0]), NEW)
    again = merged(own_parts(NEW), first.text, NEW)
    assert again == first


def test_words_that_both_sides_add_stand_there_once() -> None:
    added = [("Ten digits.\n", "Ten digits.\n\nHello.\n")]
    found = merged(own_parts(OLD), edit(OLD, *added), edit(NEW, *added))
    assert found.text == edit(NEW, *added)


def test_another_number_of_paragraphs_of_ours_loses_no_word_of_theirs() -> None:
    edited = edit(OLD, ("Few.\n", "Few.\n\nAsk me.\n"))
    found = merged(own_parts(OLD), edited, edit(OLD, ("Few.\n", "Fewer.\n\nAnd old.\n")))
    assert found.text == edit(OLD, ("Few.\n", "Fewer.\n\nAnd old.\n\nAsk me.\n"))


def test_hashes_follow_a_card_into_its_repository() -> None:
    own, edited = own_parts(OLD), edit(OLD, ("Few.", "Mine."))
    moved = moved_parts(own, edited, edited.replace("load()", "load(1)"))
    assert moved["blocks"] != own["blocks"]
    found = merged(moved, edited.replace("load()", "load(1)"), NEW.replace("load()", "load(1)"))
    assert found.kept == ["Mine."] and "load(1)" in found.text and "91.5" in found.text


@pytest.mark.parametrize("meta", ["a: [1", "- 1\n- 2", "a: 1\na: 2"])
def test_a_front_matter_that_is_broken_is_named(meta: str) -> None:
    own: dict[str, Any] = own_parts(OLD)
    with pytest.raises(ArtifactError, match=r"README\.md: the YAML above its text"):
        merged(own, f"---\n{meta}\n---\n\n# Digits\n", NEW)
