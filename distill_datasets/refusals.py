"""What a refusal of the Hub means for the person who publishes, and what to do about it."""

from typing import Any


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
