"""Reads one picture from S3, or from a store that speaks as S3 does.

s3fs holds the client (aiobotocore's), as in embedding/encoder/web.py. Credentials, region and endpoint are those that the AWS
tools take from the environment (AWS_ENDPOINT_URL for another store). An address names a bucket and a key, and nothing of these;
so the endpoint is the operator's choice, may be private, and is trusted: where it redirects to, its client follows.
"""

from __future__ import annotations

import os
import re
from functools import cache, partial
from typing import Any

import aiohttp
from botocore import exceptions as boto
from fsspec.asyn import get_loop, sync
from s3fs import S3FileSystem

from embedding.contracts import Reason
from embedding.encoder.attempts import MayPassError, check_status, collect, fetch_patiently
from embedding.encoder.limits import ImageLimits, ImageRejected

# Buckets of old may hold capitals and underscores. Not an ARN, which could name another endpoint.
_BUCKET = re.compile(r"(?!.*\.\.)[A-Za-z0-9][A-Za-z0-9._-]{1,253}[A-Za-z0-9]")

_CHUNK_BYTES = 2**18
_MAX_CONNECTIONS = 256
_MAY_PASS = (
    boto.HTTPClientError,
    boto.ConnectionError,
    boto.ResponseStreamingError,
    boto.IncompleteReadError,
    boto.FlexibleChecksumError,
    aiohttp.ClientError,
    OSError,
)
_MAY_PASS_CODES = frozenset({"RequestTimeout", "SlowDown", "Throttling", "ThrottlingException", "RequestLimitExceeded"})


def read_s3(bucket: str, key: str, uri: str, limits: ImageLimits) -> bytes:
    """The object `key`, taken literally, of `bucket`.

    Raises ImageRejected with INVALID_URI, MISSING_IMAGE, TOO_MANY_BYTES or FETCH_FAILED.
    """
    if not _BUCKET.fullmatch(bucket):
        raise ImageRejected(Reason.INVALID_URI, f"not the name of a bucket: {bucket!r}: {uri}")
    data: bytes = sync(get_loop(), fetch_patiently, partial(_get, bucket, key, uri, limits), f"s3://{bucket}", uri, limits)
    return data


async def _get(bucket: str, key: str, uri: str, limits: ImageLimits) -> bytes:
    """One attempt."""
    try:
        client = await _made(os.getpid(), limits.connect_timeout_s, limits.read_timeout_s).set_session()
        reply = await client.get_object(Bucket=bucket, Key=key)
        async with reply["Body"] as body:
            return await collect(body.iter_chunks(_CHUNK_BYTES), reply.get("ContentLength"), uri, limits)
    except boto.ClientError as error:
        raise _failure(error, uri) from error
    except _MAY_PASS as error:
        raise MayPassError(f"{type(error).__name__}: {error}") from error
    except boto.ParamValidationError as error:  # a key over 1,024 bytes
        raise ImageRejected(Reason.INVALID_URI, f"{error}: {uri}") from error
    except boto.BotoCoreError as error:  # no credentials, no region
        raise ImageRejected(Reason.FETCH_FAILED, f"{type(error).__name__}: {error}: {uri}") from error


def _failure(error: Any, uri: str) -> Exception:
    """What an error that the store wrote means for the picture."""
    code, told = error.response.get("Error", {}).get("Code", ""), error.response.get("ResponseMetadata", {})
    detail = f"{code} {error.response.get('Error', {}).get('Message', '')}"
    try:
        check_status(told.get("HTTPStatusCode", 0), told.get("HTTPHeaders", {}), detail, uri)
    except (ImageRejected, MayPassError) as failure:
        return MayPassError(detail) if code in _MAY_PASS_CODES and isinstance(failure, ImageRejected) else failure
    return MayPassError(f"the store answered 200 with an error, {detail}")


@cache
def _made(process: int, connect_timeout_s: float, read_timeout_s: float) -> S3FileSystem:  # noqa: ARG001 - part of the key
    """The client of a process, kept for good as in embedding/encoder/web.py.

    It makes one attempt a call: repeating is `fetch_patiently`'s, which repeats a body that breaks off as well.
    """
    config = {
        "connect_timeout": connect_timeout_s,
        "read_timeout": read_timeout_s,
        "retries": {"mode": "standard", "total_max_attempts": 1},
        "max_pool_connections": _MAX_CONNECTIONS,
    }
    return S3FileSystem(config_kwargs=config, skip_instance_cache=True)
