"""A card that people have edited: which of it is ours, and how ours is written anew within it.

A card is a row of blocks: paragraphs, tables, lists, programs. The manifest has a hash of every
block that was written, in order, and of every value of the front matter. A block whose hash stands
there is ours, any other is somebody's. New blocks of ours take the place of old ones as in a merge
of three versions, of which the oldest is known by its hashes alone.
"""

import re
from collections.abc import Iterator, Sequence
from difflib import SequenceMatcher
from typing import Any, NamedTuple

from distill_datasets.errors import ArtifactError, RecipeError
from distill_datasets.files.artifacts import canonical_json, sha256_text
from distill_datasets.files.yaml_text import from_yaml, to_yaml

DIGITS = 16
"""Of a hash: enough to tell the blocks of one card apart."""
STRUCTURE = ("configs", "dataset_info")
"""Of the front matter: `load_dataset` reads files by it, so it is never kept as it was edited."""
_FRONT_MATTER = re.compile(r"---\r?\n(.*?)^---[ \t]*(?:\r?\n|$)", re.DOTALL | re.MULTILINE)


class Merged(NamedTuple):
    """A card written anew.

    Attributes:
        text: of `README.md`.
        kept: what is somebody's: blocks without the empty lines around them, and keys of the front
            matter.
    """

    text: str
    kept: list[str]


class CardBlock(NamedTuple):
    """A paragraph, a table, a list or a program, the empty lines behind it included."""

    text: str
    digest: str


def own_parts(text: str) -> dict[str, Any]:
    """The hashes of a card as it was written, for the manifest."""
    meta, body = _divided(text)
    return {
        "front_matter": {key: _digest(canonical_json(value)) for key, value in _read(meta).items()},
        "blocks": [block.digest for block in _blocks(body)],
    }


def moved_parts(own: dict[str, Any], text: str, moved: str) -> dict[str, Any]:
    """The hashes of a card after the same words were replaced in all of it.

    Args:
        own: of the card as it was written.
        text: the card, which may have been edited since.
        moved: the same after replacing, block for block.
    """
    pairs = zip(_blocks(_divided(text)[1]), _blocks(_divided(moved)[1]), strict=True)
    after = {block.digest: now.digest for block, now in pairs}
    return {**own, "blocks": [after.get(each, each) for each in own["blocks"]]}


def merged(own: dict[str, Any], edited: str, new: str) -> Merged:
    """A card with our parts written anew, and everything of others kept where it stands.

    What others deleted stays deleted, but for the configurations in the front matter. Where others
    rewrote a part of ours, theirs stands.

    Args:
        own: of the card before it was edited, as `own_parts` has it.
        edited: the card as it is.
        new: the card as it would be written today.

    Raises:
        ArtifactError: the front matter of the edited card cannot be read.
    """
    if own_parts(edited) == own:
        return Merged(new, [])
    (meta, body), (new_meta, new_body) = _divided(edited), _divided(new)
    front, kept = _front_matter(own["front_matter"], meta, new_meta)
    blocks = list(_merged_blocks(own["blocks"], _blocks(body), _blocks(new_body)))
    ours = {*own["blocks"], *(block.digest for block in _blocks(new_body))}
    kept += [block.text.strip() for block in blocks if block.digest not in ours]
    text = front + "\n\n".join(block.text.strip("\r\n") for block in blocks) + "\n"
    return Merged(edited if own_parts(text) == own_parts(edited) else text, kept)


def _front_matter(own: dict[str, str], meta: str, new_meta: str) -> tuple[str, list[str]]:
    """The front matter between its lines of dashes, and the keys of it that are somebody's."""
    said, new = _read(meta), _read(new_meta)
    theirs = [
        key
        for key, value in said.items()
        if key not in STRUCTURE and own.get(key) != _digest(canonical_json(value))
    ]
    values = {key: said[key] if key in theirs else new.get(key) for key in said}
    values = {key: value for key, value in values.items() if key in theirs or key in new}
    values |= {
        key: value
        for key, value in new.items()
        if key not in said and (key in STRUCTURE or key not in own)
    }
    text = new_meta if values == new else meta if values == said else to_yaml(values)
    return f"---\n{text}---\n\n", theirs


def _merged_blocks(
    own: Sequence[str], edited: Sequence[CardBlock], new: Sequence[CardBlock]
) -> Iterator[CardBlock]:
    """The blocks of the merged body."""
    in_edited = _matches(own, [block.digest for block in edited])
    in_new = _matches(own, [block.digest for block in new])
    # between two blocks that all three versions have, each has a stretch of its own
    first = edited_first = new_first = 0
    for place in [*sorted(in_edited.keys() & in_new.keys()), len(own)]:
        edited_stop = in_edited.get(place, len(edited))
        new_stop = in_new.get(place, len(new))
        yield from _stretch(
            own[first:place], edited[edited_first:edited_stop], new[new_first:new_stop]
        )
        if place < len(own):
            yield edited[edited_stop]
        first, edited_first, new_first = place + 1, edited_stop + 1, new_stop + 1


def _stretch(
    own: Sequence[str], edited: Sequence[CardBlock], new: Sequence[CardBlock]
) -> Iterator[CardBlock]:
    """One stretch: that of whoever changed it; where both did, ours and what others added."""
    theirs, ours = ([block.digest for block in blocks] for blocks in (edited, new))
    if theirs == list(own):
        yield from new
    elif list(own) == ours or theirs == ours:
        yield from edited
    elif len(own) == len(new):  # the same blocks with other words: each takes the place of its own
        successor = dict(zip(own, new, strict=True))
        for block in edited:
            yield successor.get(block.digest, block)
    else:
        yield from new
        yield from (block for block in edited if block.digest not in {*own, *ours})


def _matches(own: Sequence[str], other: Sequence[str]) -> dict[int, int]:
    """Places in `own` and in `other` of the blocks that both have, in the same order."""
    runs = SequenceMatcher(None, own, other, autojunk=False).get_matching_blocks()
    return {run.a + each: run.b + each for run in runs for each in range(run.size)}


def _divided(text: str) -> tuple[str, str]:
    """The front matter, without its lines of dashes, and the text below it."""
    found = _FRONT_MATTER.match(text)
    return (found[1], text[found.end() :]) if found else ("", text)


def _blocks(body: str) -> list[CardBlock]:
    """All blocks; a program between fences is one, whatever lines it has."""
    texts, fenced, between = list[str](), False, True
    for line in body.splitlines(keepends=True):
        if between and line.strip():
            texts.append("")
            between = False
        if texts:
            texts[-1] += line
        if line.lstrip().startswith("```"):
            fenced = not fenced
        between = between or not (fenced or line.strip())
    return [CardBlock(text, _digest(text)) for text in texts]


def _digest(text: str) -> str:
    """Of what a reader sees: ends of lines and the lines around do not count."""
    return sha256_text("\n".join(map(str.rstrip, text.strip().splitlines())))[:DIGITS]


def _read(meta: str) -> dict[str, Any]:
    """The front matter as values.

    Raises:
        ArtifactError: it is no YAML of keys and values.
    """
    try:
        values = from_yaml(meta) if meta.strip() else {}
    except RecipeError as error:
        raise ArtifactError(
            f"README.md: the YAML above its text cannot be read ({error}); mend it, or take it out"
        ) from error
    if not isinstance(values, dict):
        raise ArtifactError(
            f"README.md: the YAML above its text has no keys; got {type(values).__name__}, "
            "expected keys and values; mend it, or take it out"
        )
    return values
