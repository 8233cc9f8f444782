"""What the Hub's client raises, what it means, and what a person can do about it."""

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


def in_plain_words(
    repo_id: str, status: int | None, said: str, endpoint: str, account: dict[str, Any]
) -> str:
    """The text of a `PublishError`.

    Args:
        repo_id: what was written to.
        status: the HTTP status; None when there was no answer or the client refused by itself.
        said: the server's words, or the client's, on one line and without secrets.
        endpoint: the server.
        account: the answer of `whoami`, {} where it is not known.
    """
    if "xet-write-token" in said:
        return "the server does not speak Xet; set HF_HUB_DISABLE_XET=1 and publish again"
    if status is None:
        return f"cannot publish to {endpoint}: {said}"
    if status == 401:
        return "the Hub does not accept the token; run `hf auth login` again or set HF_TOKEN"
    if status == 403:
        return _forbidden(repo_id, account)
    if status == 404:
        return (
            f"{repo_id} is not there, or it is private and this token may not see it; use a token "
            "of an account with access, or choose another id"
        )
    if status in (409, 412):
        return f"{repo_id} keeps changing while we publish; publish again when it is at rest"
    if status == 429 or status >= 500:
        return f"the Hub is busy (status {status}: {said}); publish again later"
    return f"the Hub refused with status {status}: {said}"


def _forbidden(repo_id: str, account: dict[str, Any]) -> str:
    if account.get("auth", {}).get("accessToken", {}).get("role") == "read":
        return (
            "the token may only read; create one with the role 'write' in the settings of your "
            "account and run `hf auth login`"
        )
    namespace = repo_id.split("/")[0]
    name = account.get("name", "this account")
    if namespace in [name, *(org.get("name") for org in account.get("orgs", []))]:
        why = f"the token, or the role in {namespace}, does not allow it"
    else:
        why = f"{namespace} is neither this account nor one of its organizations"
    return (
        f"{name} may not write to {repo_id}: {why}; ask for the role 'write' or choose another "
        "namespace"
    )
