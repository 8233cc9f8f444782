"""What the Hub's client raises, and what it means."""

import json
from typing import Any


def failures() -> tuple[type[Exception], ...]:
    """What the client raises: refusals, lost connections, and the wrappers it puts around both."""
    return (*http_errors(), ConnectionError, RuntimeError, ValueError)


def http_errors() -> tuple[type[Exception], ...]:
    """`HfHubHTTPError`, and the ancestor of all errors of the HTTP library that it stands on.

    That library differs between versions of `huggingface_hub`, so it is not imported by name.
    """
    from huggingface_hub.errors import HfHubHTTPError

    ancestors = [base for base in HfHubHTTPError.__mro__ if base.__module__ != "builtins"]
    return HfHubHTTPError, ancestors[-1]


def cause(error: BaseException) -> BaseException:
    """The refusal inside the `RuntimeError` that the client makes of a failed upload."""
    while isinstance(error, RuntimeError) and error.__cause__ is not None:
        error = error.__cause__
    return error


def status(error: BaseException) -> int | None:
    """The HTTP status of a refusal; None when there was no answer."""
    from huggingface_hub.errors import HfHubHTTPError

    return int(error.response.status_code) if isinstance(error, HfHubHTTPError) else None


def is_transport(error: BaseException) -> bool:
    """A broken connection, or an answer cut short or from a gateway."""
    from huggingface_hub.errors import LocalEntryNotFoundError, OfflineModeIsEnabled

    if isinstance(error, OfflineModeIsEnabled) or "xet-write-token" in str(error):
        return False
    kinds = (*http_errors(), ConnectionError, LocalEntryNotFoundError, json.JSONDecodeError)
    return isinstance(error, kinds)


def asked_seconds(error: BaseException) -> float:
    """How long the Hub asks to wait, at most a minute."""
    from huggingface_hub.errors import HfHubHTTPError

    if not isinstance(error, HfHubHTTPError):
        return 0.0
    text = error.response.headers.get("Retry-After", "")
    return min(60.0, float(text)) if text.isdecimal() else 0.0


def said(error: BaseException) -> str:
    """What the server said, or the error's own words, in one line."""
    from huggingface_hub.errors import HfHubHTTPError

    server: Any = error.server_message if isinstance(error, HfHubHTTPError) else None
    return " ".join(str(server or error or type(error).__name__).split())[:500]
