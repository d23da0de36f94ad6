"""Say in one sentence why a file at a URL cannot be read, without credentials or signed addresses.

`remote.py` reads the files.
"""

import re
from collections.abc import Iterator
from contextlib import contextmanager

from training.data.failures import sentence


# A failed connection, by the names of the errors of aiohttp, botocore and httpx, which need not be installed.
_CONNECTION = {
    "ClientConnectionError", "ClientPayloadError", "EndpointConnectionError", "ConnectionClosedError",
    "HTTPClientError", "ReadTimeoutError", "TransportError", "ConnectionError", "TimeoutError",
}  # fmt: skip
_NO_CREDENTIALS = {"NoCredentialsError", "PartialCredentialsError", "NoAuthTokenError", "DefaultCredentialsError"}
CREDENTIALS = {
    "s3": "AWS_PROFILE, or AWS_ACCESS_KEY_ID and AWS_SECRET_ACCESS_KEY; FSSPEC_S3_ANON=true for a public bucket",
    "gs": "GOOGLE_APPLICATION_CREDENTIALS; FSSPEC_GS_TOKEN=anon for a public bucket",
    "hf": "HF_TOKEN, or `hf auth login`",
}


class RemoteError(OSError, ValueError):
    """A file at a URL that cannot be read, at least not now.

    Attributes:
        again: whether trying again may help.
    """

    def __init__(self, text: str, again: bool = False):
        super().__init__(text)
        self.again = again


@contextmanager
def named_remote_errors(url: str) -> Iterator[None]:
    """Turn any error of reading a URL into one sentence.

    Raises:
        RemoteError: without its cause, in which addresses may be signed.
    """
    try:
        yield
    except RemoteError:
        raise
    except ImportError:  # of an optional package; `remote.py` has the sentence
        raise
    except Exception as error:  # storage libraries share no base class
        raise _explained(url, error) from None


def _explained(url: str, error: Exception) -> RemoteError:
    chain = _chain(error)
    names = {cls.__name__ for each in chain for cls in type(each).__mro__}
    statuses = {_status(each) for each in chain}
    # Before the missing file, because fsspec says so of every answer of a web server that it does not like.
    if statuses & {401, 403} or "PermissionError" in names or names & _NO_CREDENTIALS:
        scheme = url.partition("://")[0]
        hint = f"; credentials come from the environment ({CREDENTIALS[scheme]})" if scheme in CREDENTIALS else ""
        return RemoteError(f"there is no permission to read '{url}'{hint}")
    passing = any(status in (429, 500, 502, 503, 504) for status in statuses) or bool(names & _CONNECTION)
    if not passing and (404 in statuses or "FileNotFoundError" in names or "NoSuchBucket" in names):
        return RemoteError(f"there is nothing at '{url}'")
    if any("support range requests" in str(each) for each in chain):
        return RemoteError(
            f"the server of '{url}' does not answer byte ranges, so a clip cannot be read by itself; download the file"
        )
    told = chain[-1] if passing and len(chain) > 1 else error
    reason = re.sub(r"\?\S+", "?...", sentence(told))
    return RemoteError(f"'{url}' cannot be read ({type(told).__name__}: {reason})", again=passing)


def _chain(error: BaseException) -> list[BaseException]:
    """Return an error and its causes."""
    found: list[BaseException] = []
    each: BaseException | None = error
    while each is not None and each not in found:
        found.append(each)
        each = each.__cause__ or each.__context__
    return found


def _status(error: BaseException) -> int | None:
    """Return the status of an answer over HTTP, wherever a library keeps it."""
    answer = getattr(error, "response", None)
    if isinstance(answer, dict):  # botocore
        return answer.get("ResponseMetadata", {}).get("HTTPStatusCode")
    for holder, name in ((answer, "status_code"), (error, "status"), (error, "code")):
        if isinstance(value := getattr(holder, name, None), int):
            return value
    return None
