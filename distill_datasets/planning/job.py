"""A run as a job on the Hub's machines: one script that carries its recipe, and what it costs.

The script is self-contained (PEP 723): `hf jobs uv run` installs what it names. What a run has
finished is kept on the Hub, so that a job that was stopped goes on when it is submitted again.
"""

import json
import math
import re
from importlib.metadata import distribution
from pathlib import Path
from typing import Any, NamedTuple

from jinja2 import Environment, PackageLoader, StrictUndefined

from distill_datasets.data.opening import EMBEDDED, without_places
from distill_datasets.errors import ArtifactError, RecipeError, did_you_mean
from distill_datasets.files.artifacts import sha256_text, write_text
from distill_datasets.hub.jobs import Flavor, flavors
from distill_datasets.recipe import Recipe

PACKAGE = "distill_datasets"
IMAGE = "ghcr.io/astral-sh/uv:python3.12-bookworm"
"""What `hf jobs uv run` takes where nobody names another."""
SAVE_SECONDS = 300
SPARE = 2.0
"""Times the planned minutes after which a job is stopped."""
LEAST_MINUTES = 60
"""Of a timeout; the Hub's own, 30 minutes, would stop most runs."""
UNPLANNED_MINUTES = 12 * 60
BUCKET = "hf://buckets/"
_REPOSITORY = re.compile(r"[\w-][\w.-]*/[\w][\w.-]*", re.ASCII)


class Job(NamedTuple):
    """A job that may be submitted.

    Attributes:
        script: the file, complete.
        command: what submits it, word by word.
        keep: where the run is kept.
        publish: the repository of the finished dataset; None publishes nothing.
        timeout_minutes: after which it is stopped.
        flavor: name of the machine, and its price where the Hub has told it.
        minutes: that the work is planned for; None where nobody knows.
    """

    script: Path
    command: list[str]
    keep: str
    publish: str | None
    timeout_minutes: int
    flavor: Flavor
    minutes: float | None

    def price(self, minutes: float) -> str:
        """What so many minutes cost, in words."""
        if self.flavor.dollars_a_minute is None:
            return "the price is not known here, see `hf jobs hardware`"
        return f"${minutes * self.flavor.dollars_a_minute:,.2f}"

    def as_json(self) -> dict[str, Any]:
        """Everything, for programs."""
        rate = self.flavor.dollars_a_minute
        return {
            "script": str(self.script),
            "command": self.command,
            "keep": self.keep,
            "publish": self.publish,
            "flavor": self.flavor.name,
            "dollars_a_minute": rate,
            "planned_minutes": self.minutes,
            "planned_dollars": None if None in (rate, self.minutes) else rate * self.minutes,  # type: ignore[operator]
            "timeout_minutes": self.timeout_minutes,
            "most_dollars": None if rate is None else rate * self.timeout_minutes,
        }


def job_of(
    recipe: Recipe,
    flavor: str,
    folder: Path,
    *,
    keep: str | None = None,
    package: str | None = None,
    image: str = IMAGE,
    minutes: float | None = None,
    timeout_minutes: int | None = None,
) -> Job:
    """Write the script of a job.

    Args:
        recipe: what is run.
        flavor: of the machine, as `hf jobs hardware` names them.
        folder: of scripts; one of the same content is left as it is.
        keep: a dataset repository, or a bucket as hf://buckets/owner/name; None: beside
            publish.repo.
        package: what pip installs there; None: this very release, or the commit that this one was
            installed from.
        image: with uv in it.
        minutes: that the work takes on that machine, where somebody knows.
        timeout_minutes: None: twice the planned ones, at least an hour, or 12 hours.

    Raises:
        RecipeError: the machine or the place is none, or the recipe names files of this machine.
        ArtifactError: the package cannot be had elsewhere.
    """
    _check_paths(recipe)
    found = _flavor(flavor)
    place = _place(keep, recipe)
    if timeout_minutes is None:
        planned = UNPLANNED_MINUTES if minutes is None else math.ceil(SPARE * minutes)
        timeout_minutes = max(LEAST_MINUTES, planned)
    text = (
        _templates()
        .get_template("job.py.jinja")
        .render(
            name=recipe.name,
            package=package or installed_from(),
            image=image,
            flavor=flavor,
            timeout=f"{timeout_minutes}m",
            recipe=recipe.resolved_yaml(),
            keep=place,
            bucket=place.startswith(BUCKET),
            publish=recipe.publish.repo,
            save_seconds=SAVE_SECONDS,
        )
    )
    script = folder / f"{recipe.name}-{sha256_text(text)[:12]}.py"
    if not script.exists():
        folder.mkdir(parents=True, exist_ok=True)
        write_text(script, text)
    command = ["hf", "jobs", "uv", "run", "--detach", str(script)]
    return Job(script, command, place, recipe.publish.repo, timeout_minutes, found, minutes)


def installed_from() -> str:
    """What pip has to be asked for to get this package elsewhere.

    Raises:
        ArtifactError: it was installed from a folder or a file of this machine.
    """
    own = distribution(PACKAGE)
    direct = json.loads(own.read_text("direct_url.json") or "{}")
    match direct:
        case {} if not direct:
            return f"{PACKAGE}=={own.version}"
        case {"vcs_info": {"vcs": str(kind), "commit_id": str(commit)}, "url": str(url)}:
            return f"{PACKAGE} @ {kind}+{url}@{commit}"
        case {"url": str(url)} if url.startswith("https://"):
            return f"{PACKAGE} @ {url}"
    raise ArtifactError(
        f"{PACKAGE} is installed from {direct.get('url')}, which a job cannot reach; say where pip "
        "gets it there, for example --package 'distill_datasets @ git+https://HOST/REPOSITORY'"
    )


def _check_paths(recipe: Recipe) -> None:
    """Refuse files that lie on this machine alone."""
    own = recipe.model_dump(mode="json")
    found = _differing(own, without_places(own))
    if found:
        raise RecipeError(
            "; ".join(
                f"{path}: {value!r} lies on this machine, and a job cannot read it; put it on the "
                "Hub and name it there as owner/name"
                for path, value in found
            )
        )


def _differing(own: Any, public: Any, path: str = "") -> list[tuple[str, Any]]:  # noqa: ANN401
    """The values of a recipe that are published as a last name alone, with their keys."""
    if isinstance(own, dict):
        return [
            each
            for key, value in own.items()
            for each in _differing(value, public[key], f"{path}.{key}" if path else key)
        ]
    if isinstance(own, list):
        return [
            each
            for place, value in enumerate(own)
            for each in _differing(value, public[place], f"{path}[{place}]")
        ]
    here = path.endswith("dataset") and own not in EMBEDDED and Path(str(own)).exists()
    return [(path, own)] if here or own != public else []


def _flavor(name: str) -> Flavor:
    known = flavors()
    if known and name not in known:
        raise RecipeError(f"--flavor: no machine {name!r}; {did_you_mean(name, known)}")
    return known.get(name, Flavor(name, None))


def _place(keep: str | None, recipe: Recipe) -> str:
    """Where the run is kept."""
    if keep is None and recipe.publish.repo is None:
        raise RecipeError(
            "--keep: the run has to be kept somewhere, so that a job that was stopped goes on; "
            "name a private dataset repository, owner/name, or a bucket, hf://buckets/owner/name"
        )
    place = keep or f"{recipe.publish.repo}-run"
    if not _REPOSITORY.fullmatch(place.removeprefix(BUCKET)):
        raise RecipeError(f"--keep: got {place!r}, expected owner/name or {BUCKET}owner/name")
    return place


def _templates() -> Environment:
    return Environment(
        loader=PackageLoader(PACKAGE, "planning/templates"),
        undefined=StrictUndefined,
        trim_blocks=True,
        keep_trailing_newline=True,
        autoescape=False,
    )
