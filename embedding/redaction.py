"""Text without secrets, for what people read: rows of `quarantine`, logs, the text of errors.

Addresses come out of exports and settings, and may carry a password, a key or a signature. Which of the process's own variables
are secrets is told by their names. Protects what goes through it; a secret should not come this far in the first place.
"""

from __future__ import annotations

import os
import re
import sys
import traceback
from collections.abc import Mapping
from types import TracebackType
from typing import Any
from urllib.parse import quote, unquote, urlsplit

HIDDEN = "***"

_LEAST_CHARS = 8
"""Shorter values ("true", "none") stand for themselves elsewhere in a log."""

# Azure's `container@account` is no secret.
_USER_INFO = re.compile(r"(?<=:)(?:(?<!abfs:)(?<!abfss:)//[^/\s?#'\"]*@|//[^/\s?#'\"@]*:[^/\s?#'\"]*@)")
_SECRET_WORDS = "secret|token|signature|password|passwd|credential|(?:api|access|private)[_.-]?key"  # noqa: S105
_IN_A_QUERY = re.compile(rf"(?i)([?&;](?:sig|[\w.%-]*(?:{_SECRET_WORDS})[\w.%-]*)=)[^&\s#'\"]+")
_SECRET_NAME = re.compile(rf"(?i){_SECRET_WORDS}|fernet|_auth_")
_ADDRESS_NAME = re.compile(r"(?i)_(?:URI|URL|CONN)(?:$|_)|SQL_ALCHEMY|BROKER|BACKEND")


class CredentialsInAddressError(ValueError):
    """An address that says who asks, where it would be seen by others. The message does not repeat it."""


def shown_address(text: str) -> str:
    """The text with what addresses in it carry hidden: user and password, and a query's keys, tokens and signatures.

    >>> shown_address("read https://me:pass@host/a.png?size=2&X-Amz-Signature=0a1b twice")
    'read https://***@host/a.png?size=2&X-Amz-Signature=*** twice'
    """
    return _IN_A_QUERY.sub(rf"\1{HIDDEN}", _USER_INFO.sub(f"//{HIDDEN}@", text))


def has_credentials(address: str) -> bool:
    """Whether an address says who asks (`s3://key:secret@bucket`)."""
    scheme, separator, rest = address.partition("://")
    user_info, at, _ = rest.partition("/")[0].rpartition("@")
    return bool(separator and at) and (not scheme.startswith("abfs") or ":" in user_info)


def secrets_of(environ: Mapping[str, str]) -> list[str]:
    """The values of an environment that are secrets, the longest first, and as they stand in an address."""
    found = {value for name, value in environ.items() if _SECRET_NAME.search(name)}
    for name, value in environ.items():
        if _ADDRESS_NAME.search(name) and "://" in value:
            user_info = urlsplit(value).netloc.rpartition("@")[0]
            found |= {user_info.partition(":")[2], unquote(user_info.partition(":")[2])}
    found |= {quote(value, safe="") for value in found}
    return sorted((value for value in found if len(value) >= _LEAST_CHARS), key=len, reverse=True)


def hidden(text: str, environ: Mapping[str, str] | None = None) -> str:
    """`shown_address` of the text, without the secrets of the environment (default: this process's)."""
    for secret in secrets_of(os.environ if environ is None else environ):
        text = text.replace(secret, HIDDEN)
    return shown_address(text)


def hide_in_tracebacks() -> None:
    """Lets an error that nobody catches be printed without secrets."""

    def show(kind: type[BaseException], error: BaseException, trace: TracebackType | None) -> Any:
        sys.stderr.write(hidden("".join(traceback.format_exception(kind, error, trace))))

    sys.excepthook = show
