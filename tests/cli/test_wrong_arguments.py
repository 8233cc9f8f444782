"""What is wrong on the command line of `publish` and `list` is told at once, in few words.

The address of the Hub is one where nobody listens: an argument that got so far would be waited for.
"""

from pathlib import Path
from unittest import mock

import pytest
from support.sample_content import RESULTS, sample
from support.toy_runs import Answer, command

from distill_datasets.export.folder import write_dataset

LONG = "x" * 5000
ID, TAG, FOLDER = "is not the id of a repository", "cannot be a tag", "give the folder of a dataset"
PUBLISH: dict[str, tuple[list[str], str]] = {
    "no arguments": ([], "Missing argument"),
    "no such folder": (["absent", "a/b"], f"absent/distill.json: no such file; {FOLDER}"),
    "a folder with a long name": ([LONG, "a/b"], "cannot read this (File name too long)"),
    "a name of two lines": (["a\nb", "a/b"], FOLDER),
    "an empty name": (["", "a/b"], FOLDER),
    "an empty folder": (["empty", "a/b"], FOLDER),
    "a file": (["file.txt", "a/b"], "got a file, expected a folder that holds distill.json"),
    "one argument too many": (["set", "a/b", "c"], "Got unexpected extra argument"),
    "an unknown option": (["set", "a/b", "--nope"], "No such option"),
    "an option without its value": (["set", "a/b", "--tag"], "requires an argument"),
    "a value where none belongs": (["set", "a/b", "--private=1"], "does not take a value"),
    "no repository in the recipe": (["set"], "distill-datasets publish set ORG/NAME"),
    "an empty repository": (["set", ""], "distill-datasets publish set ORG/NAME"),
    "a recipe that is gone": (["gone"], "recipe.yaml: cannot be read"),
    "a recipe that is a list": (["listed"], "recipe.yaml: holds no recipe"),
    **{
        f"the repository {name}"[:40]: (["set", name], ID)
        for name in (
            *("x", "a/b/c", "a/", "/b", "a/b c", "https://huggingface.co/datasets/a/b", "../x"),
            *(
                "a/..",
                "a/b..c",
                "a/b.git",
                "a--b/c",
                "a/b--c",
                "a/-b",
                "\xe4/b",
                "a/b\x07",
                f"a/{LONG}",
            ),
        )
    },
    **{
        f"the tag {tag}"[:40]: (["set", "a/b", "--tag", tag], TAG)
        for tag in (
            *("", "a b", "..", "a..b", "a~1", "v1.lock", "v1.", "-x", "@", "a\nb", LONG),
            *("refs/heads/main", "refs/convert/parquet"),
        )
    },
    **{
        f"the tag {tag}": (["set", "a/b", "--tag", tag], "names a branch or a commit")
        for tag in ("main", "HEAD", "0" * 40)
    },
}
LIST: dict[str, tuple[list[str], str]] = {
    "an argument": (["objectives"], "Got unexpected extra argument"),
    "an argument behind a flag": (["--keys", "x"], "Got unexpected extra argument"),
    "an empty argument": ([""], "Got unexpected extra argument"),
    "an unknown option": (["--nope"], "No such option"),
    "a value where none belongs": (["--keys=1"], "does not take a value"),
}


@pytest.fixture(scope="module")
def here(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A finished folder beside others that are none."""
    root = tmp_path_factory.mktemp("arguments")
    for name in ("set", "gone", "listed"):
        write_dataset(root / name, sample(), RESULTS)
    (root / "gone" / "recipe.yaml").unlink()
    (root / "listed" / "recipe.yaml").write_text("- 1\n")
    (root / "empty").mkdir()
    (root / "file.txt").write_text("x")
    return root


def refused(answer: Answer, words: str) -> None:
    """Bad input, in a short message that says what is wrong."""
    assert answer.code == 2, answer
    assert words in " ".join(answer.err.replace("│", " ").split()), answer.err
    assert "Traceback" not in answer.err and len(answer.err) < 1000, answer.err


@pytest.mark.parametrize("case", PUBLISH)
def test_a_wrong_argument_of_publish_is_told_before_the_hub_is_asked(
    here: Path, monkeypatch: pytest.MonkeyPatch, case: str
) -> None:
    monkeypatch.chdir(here)
    arguments, words = PUBLISH[case]
    with mock.patch("distill_datasets.export.publish.Repository", side_effect=AssertionError):
        refused(command("publish", *arguments), words)


@pytest.mark.parametrize("case", LIST)
def test_a_wrong_argument_of_list_is_told(case: str) -> None:
    arguments, words = LIST[case]
    refused(command("list", *arguments), words)
