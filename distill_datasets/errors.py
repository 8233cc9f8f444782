"""Every error this library raises on purpose.

A message says what was got, what was expected and what to do. `exit_code` is what the command line
returns: 2 for input that the user can mend, 1 for everything else.
"""

import difflib
import reprlib
from collections.abc import Iterable

MOST_SHOWN = 120
"""Characters of what was got that a message repeats."""

MOST_NAMES = 150
"""Valid names that a message lists; torchvision has 80 networks."""


class DistillError(Exception):
    """Base of all errors raised on purpose."""

    exit_code = 1


class DivergedError(DistillError):
    """The loss of a training is no number any more."""


class RecipeError(DistillError):
    """A recipe, an override or an option cannot be used; raised before any work starts."""

    exit_code = 2


class DataError(DistillError):
    """A source dataset cannot be read, or some of its rows cannot be used."""

    exit_code = 2


class ArtifactError(DistillError):
    """A folder is not what it should be: foreign, damaged, unwritable or not evaluated."""

    exit_code = 2


class DamagedError(ArtifactError):
    """A file that an earlier run has left is not what was written; `what` says so."""

    def __init__(self, what: str) -> None:
        super().__init__(f"{what}; move it away and run again, which makes it anew")
        self.what = what


class PublishError(DistillError):
    """The Hub refused a publication; nothing half-published is left on the branch."""


class Interrupted(DistillError):
    """Ctrl-C or another signal has ended the run; what is said of its state is true."""

    def __init__(self, kept: str, number: int = 2) -> None:
        super().__init__(f"interrupted; {kept}")
        self.exit_code = 128 + number


def refuse(problems: Iterable[str]) -> None:
    """Raise one error that lists every problem; nothing happens where there is none.

    Args:
        problems: sentences, each starting with the recipe key that it is about.

    Raises:
        RecipeError: a single problem as it is, several a line each.
    """
    listed = list(dict.fromkeys(problems))
    if len(listed) > 1:
        raise RecipeError("\n  ".join([f"{len(listed)} problems", *listed]))
    for problem in listed:
        raise RecipeError(problem)


class _Short(reprlib.Repr):
    """The `repr` of any value in bounded time and a line, whatever it holds."""

    def __init__(self) -> None:
        super().__init__()
        self.maxlevel, self.maxother = 3, MOST_SHOWN
        self.maxstring = self.maxlong = MOST_SHOWN
        self.maxdict = self.maxlist = self.maxtuple = self.maxset = 8


_short = _Short()


def cut(text: str, length: int = MOST_SHOWN) -> str:
    """A text in one line that is not longer than so many characters and three dots."""
    # a piece first: a text of megabytes is not gone through for its first line
    line = " ".join(text[: 4 * length].split())
    return line if len(line) <= length and len(text) <= 4 * length else f"{line[:length]}..."


def shown(value: object) -> str:
    """What was got, as a message repeats it: as a recipe or Python writes it, cut to a line."""
    plain = {None: "null", True: "true", False: "false"}
    if value is None or isinstance(value, bool):
        return plain[value]
    return cut(_short.repr(value))


def did_you_mean(got: str, valid: Iterable[str]) -> str:
    """The tail of an error message about an unknown name: the nearest valid name, then all of them.

    Args:
        got: the name that was given.
        valid: the names that would have been accepted.

    Returns:
        For example `did you mean 'steps'? valid names: lr, steps`.
    """
    names = sorted(valid)
    near = difflib.get_close_matches(got[:MOST_SHOWN], names, n=1, cutoff=0.5)
    hint = f"did you mean {near[0]!r}? " if near else ""
    more = f", ... ({len(names)} in all)" if len(names) > MOST_NAMES else ""
    return f"{hint}valid names: {', '.join(names[:MOST_NAMES]) or 'none'}{more}"
