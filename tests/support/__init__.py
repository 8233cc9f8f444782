"""What tests of several rooms share: toy problems, a Hub-compatible server, sample content."""

from pathlib import Path

TESTS = Path(__file__).parent.parent
"""On the import path of the tests, and of the programs that they start."""
REPOSITORY = TESTS.parent
