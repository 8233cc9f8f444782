"""What the Hub's client raises, what it means, and what a person can do about it.

The client wraps what its HTTP library raises, and that library differs between versions of
`huggingface_hub` (requests, httpx, httpx2), so that nothing here imports it by name.
"""

import json
import re
from typing import Any, NamedTuple

BROKEN = (
    *(json.JSONDecodeError, UnicodeDecodeError),
    *(KeyError, IndexError, TypeError, AttributeError, AssertionError),
)
"""What the client raises of an answer that is no JSON, or JSON without what it looks for."""
XET_TOKEN = "xet-write-token"
"""In the address, and so in every error, of a request for the right to upload by Xet."""


class Wanted(NamedTuple):
    """What is read from the Hub, in the words of the recipe that asks for it.

    Attributes:
        noun: `dataset` or `model`.
        name: organization/name.
        revision: a branch, tag or commit; None: the newest.
        key: the recipe key that names it; `revision_key` is the one of its revision.
        revision_key: see `key`.
        offline: what else helps without a connection.
    """

    noun: str
    name: str
    revision: str | None
    key: str
    revision_key: str
    offline: str

    @property
    def page(self) -> str:
        """Its address."""
        from huggingface_hub import constants

        return f"{constants.ENDPOINT}/{'datasets/' if self.noun == 'dataset' else ''}{self.name}"


def failures() -> tuple[type[Exception], ...]:
    """What the client raises: refusals, lost connections, broken answers, and wrappers of them."""
    from huggingface_hub.errors import EntryNotFoundError

    return (*http_errors(), EntryNotFoundError, OSError, RuntimeError, ValueError, *BROKEN)


def fetch_errors() -> tuple[type[Exception], ...]:
    """What reading may raise: refusals, lost connections, and a cache that cannot be used."""
    from huggingface_hub.errors import EntryNotFoundError, HFValidationError

    return (*http_errors(), EntryNotFoundError, HFValidationError, OSError)


def http_errors() -> tuple[type[Exception], ...]:
    """`HfHubHTTPError`, and the ancestor of all errors of the HTTP library that it stands on."""
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

    if isinstance(error, HfHubHTTPError) and error.response is not None:
        return int(error.response.status_code)
    # Xet's own client has no class for a refusal, and says the status in its words
    said = re.search(r"\b([45]\d\d)\b", str(error)) if XET_TOKEN in str(error) else None
    return int(said[1]) if said else None


def is_transport(error: BaseException) -> bool:
    """A broken connection, or an answer that was cut short, changed, or is from a gateway."""
    from huggingface_hub.errors import LocalEntryNotFoundError, OfflineModeIsEnabled

    if isinstance(error, OfflineModeIsEnabled):
        return False
    kinds = (*http_errors(), ConnectionError, LocalEntryNotFoundError, *BROKEN)
    return isinstance(error, kinds)


def asked_seconds(error: BaseException) -> float:
    """How long the Hub asks to wait, at most a minute."""
    from huggingface_hub.errors import HfHubHTTPError

    if not isinstance(error, HfHubHTTPError):
        return 0.0
    text = "" if error.response is None else error.response.headers.get("Retry-After", "")
    return min(60.0, float(text)) if text.isdecimal() else 0.0


def one_line(error: BaseException) -> str:
    """The server's words, or the error's own, in one line."""
    from huggingface_hub.errors import HfHubHTTPError

    server: Any = error.server_message if isinstance(error, HfHubHTTPError) else None
    return " ".join(str(server or error or type(error).__name__).split())[:500]


def absent(wanted: Wanted) -> str:
    """What there is to say of a name that the Hub does not know, or does not show."""
    return (
        f"{wanted.key}: the Hub has no {wanted.noun} {wanted.name!r}, or it is private and your "
        "login may not see it; check the name, or log in with `hf auth login`"
    )


def why_unread(error: BaseException, wanted: Wanted) -> str:
    """Why something cannot be read from the Hub: recipe key, problem and remedy in a sentence."""
    from huggingface_hub import errors

    name = wanted.name
    match error:
        case errors.GatedRepoError():
            problem = (
                f"the {wanted.noun} {name!r} is gated; accept its conditions on {wanted.page} and "
                "log in with `hf auth login`"
            )
        case errors.RepositoryNotFoundError():
            return absent(wanted)
        case errors.RevisionNotFoundError():
            return (
                f"{wanted.revision_key}: {name!r} has no branch, tag or commit "
                f"{wanted.revision!r}; the valid ones are listed on {wanted.page}"
            )
        case errors.HfHubHTTPError():
            code = status(error)
            remedy = (
                "log in again with `hf auth login`"
                if code in (401, 403)
                else "try again later; finished work is kept"
            )
            problem = f"the Hub answered {code} for {name!r}; {remedy}"
        case errors.HFValidationError():
            problem = f"{name!r} is no valid Hub id; expected organization/name"
        case _ if isinstance(error, BROKEN):
            problem = (
                f"the Hub gave a broken answer about {name!r} ({type(error).__name__}: "
                f"{one_line(error)}); try again, and look at the connection if it happens again"
            )
        case _:
            problem = (
                f"{name!r} cannot be fetched and is not in the cache ({type(error).__name__}: "
                f"{one_line(error)}); check the network, unset HF_HUB_OFFLINE, {wanted.offline}"
            )
    return f"{wanted.key}: {problem}"


def why_unwritten(
    error: BaseException,
    doing: str,
    words: str,
    repo_id: str,
    endpoint: str,
    account: dict[str, Any],
) -> str:
    """Why something cannot be written to the Hub, and the remedy.

    Args:
        error: what the client raised.
        doing: what was asked of the Hub, such as `read its refs`.
        words: `one_line` of the error, without secrets.
        repo_id: what was written to.
        endpoint: the server.
        account: the answer of `whoami`, {} where it is not known.
    """
    code = status(error)
    if isinstance(error, BROKEN):
        return (
            f"{endpoint} gave a broken answer when asked to {doing} ({type(error).__name__}: "
            f"{words}); publish again, and look at the connection if it happens again"
        )
    if code is None:
        return f"cannot publish to {endpoint}: asked to {doing}, {words}"
    if code == 401:
        return "the Hub does not accept the token; run `hf auth login` again or set HF_TOKEN"
    if code == 403:
        return _forbidden(doing, repo_id, account)
    if code == 404 and XET_TOKEN in str(error):
        return "the server does not speak Xet; set HF_HUB_DISABLE_XET=1 and publish again"
    if code == 404:
        return (
            f"{repo_id} is not there, or it is private and this token may not see it; use a token "
            "of an account with access, or choose another id"
        )
    if code in (409, 412):
        return (
            f"{repo_id} keeps changing while we publish (status {code}, asked to {doing}); publish "
            "again when it is at rest"
        )
    if code == 429 or code >= 500:
        return (
            f"the Hub is busy (status {code} when asked to {doing}: {words}); publish again later"
        )
    return f"the Hub refused to {doing} with status {code}: {words}"


def _forbidden(doing: str, repo_id: str, account: dict[str, Any]) -> str:
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
        f"{name} may not write to {repo_id} (status 403 when asked to {doing}): {why}; ask for the "
        "role 'write' or choose another namespace"
    )
