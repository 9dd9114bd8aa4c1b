"""What the encoder accepts of an image, and how it says no.

Holds settings and one exception. It reads no file and no image, and the only thing that it takes from the machine is the
environment, when asked to.
"""

from __future__ import annotations

import os
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

from embedding.contracts import Reason
from embedding.encoder.public_address import PrivateHosts
from embedding.redaction import shown_address

SCHEMES_VARIABLE = "PINLAKE_IMAGE_SCHEMES"
ROOTS_VARIABLE = "PINLAKE_IMAGE_ROOTS"
PRIVATE_HOSTS_VARIABLE = "PINLAKE_IMAGE_PRIVATE_HOSTS"

WEB_SCHEMES = frozenset({"http", "https"})

S3_SCHEMES = frozenset({"s3", "s3a"})

OTHER_STORE_SCHEMES = frozenset({"gs", "gcs", "abfs", "abfss", "hdfs"})
"""Read through pyarrow's file systems, with the credentials that the process has and with those clients' own patience."""

SUPPORTED_SCHEMES = WEB_SCHEMES | S3_SCHEMES | OTHER_STORE_SCHEMES | {"file", "memory"}
"""`memory` is fsspec's store inside the process."""

MAX_DETAIL_CHARS = 500

# Pillow refuses a picture above twice its own limit while it opens it. A limit of ours above that would never be reached.
_PILLOW_MAX_PIXELS = 178_956_970


class SettingError(ValueError):
    """An environment variable that says what cannot be."""


class ImageRejected(Exception):  # noqa: N818 - it refuses a picture, and reports no error of ours
    """An image that cannot be encoded: a fact about the row, never a fault of the run.

    `reason` is what `quarantine` records, `detail` a sentence for people, cut to 500 characters and without the secrets that
    an address in it may carry.
    """

    def __init__(self, reason: Reason, detail: str) -> None:
        # An address may hold lone surrogates, which no Parquet file can: they are written out as \udcxx.
        self.reason = reason
        self.detail = shown_address(detail.encode("utf-8", "backslashreplace").decode("utf-8"))[:MAX_DETAIL_CHARS]
        super().__init__(self.reason, self.detail)

    def __str__(self) -> str:
        return f"{self.reason}: {self.detail}"

    def __reduce__(self) -> tuple[type[ImageRejected], tuple[Reason, str]]:
        return ImageRejected, (self.reason, self.detail)


@dataclass(frozen=True)
class ImageLimits:
    """What is fetched and decoded. None of it decides a vector: an image is taken whole or not at all.

    max_bytes: of the encoded file. max_pixels: width times height, read from the header before anything is decoded.
    schemes: of the addresses, out of `SUPPORTED_SCHEMES`. roots: folders (symbolic links resolved) outside which no `file`
    address is read; empty for no such bound. private_hosts: networks and hosts' names that http and https may read beside
    the public internet (`PrivateHosts.parse`).

    Over a network (http, https, s3): connect_timeout_s until a connection stands, read_timeout_s for the longest silence
    within an answer, total_timeout_s for a picture with all its `attempts` and the waits between them, which grow from
    about backoff_s to twice as long each time.

    Raises ValueError for a scheme that is not supported, and for a limit that cannot be kept.
    """

    max_bytes: int = 64 * 2**20
    max_pixels: int = 40_000_000
    schemes: frozenset[str] = frozenset({"file"})
    roots: tuple[str, ...] = ()
    private_hosts: tuple[str, ...] = ()
    connect_timeout_s: float = 10.0
    read_timeout_s: float = 20.0
    total_timeout_s: float = 120.0
    attempts: int = 4
    backoff_s: float = 0.5

    def __post_init__(self) -> None:
        unknown = sorted(self.schemes - SUPPORTED_SCHEMES)
        if unknown:
            raise SettingError(
                f"{SCHEMES_VARIABLE}: images cannot be read from {', '.join(unknown)}; "
                f"supported: {', '.join(sorted(SUPPORTED_SCHEMES))}"
            )
        if self.max_bytes < 1 or not 1 <= self.max_pixels <= _PILLOW_MAX_PIXELS:
            raise ValueError(
                f"max_bytes must be at least 1 and max_pixels between 1 and {_PILLOW_MAX_PIXELS}, "
                f"not {self.max_bytes} and {self.max_pixels}"
            )
        if (
            min(self.connect_timeout_s, self.read_timeout_s, self.total_timeout_s) <= 0
            or self.attempts < 1
            or self.backoff_s < 0
        ):
            raise ValueError("timeouts must be over 0 seconds, attempts at least 1 and backoff_s not negative")
        relative = [root for root in self.roots if not Path(root).is_absolute()]
        if relative:
            raise SettingError(f"{ROOTS_VARIABLE}: not absolute: {', '.join(relative)}")
        try:
            PrivateHosts.parse(self.private_hosts)
        except ValueError as error:
            raise SettingError(f"{PRIVATE_HOSTS_VARIABLE}: {error}") from None

    @classmethod
    def from_environment(cls, environ: Mapping[str, str] | None = None) -> ImageLimits:
        """The defaults, with the schemes, roots and private hosts that the environment names.

        PINLAKE_IMAGE_SCHEMES: separated by commas, "file" where unset. PINLAKE_IMAGE_ROOTS: folders, separated as in PATH.
        PINLAKE_IMAGE_PRIVATE_HOSTS: networks and names, separated by commas ("10.0.0.0/8,cdn.internal"), none where unset.
        """
        environ = os.environ if environ is None else environ
        schemes = (scheme.strip().lower() for scheme in environ.get(SCHEMES_VARIABLE, "file").split(","))
        roots = (root for root in environ.get(ROOTS_VARIABLE, "").split(os.pathsep) if root)
        private = (host.strip() for host in environ.get(PRIVATE_HOSTS_VARIABLE, "").split(","))
        return cls(schemes=frozenset(filter(None, schemes)), roots=tuple(roots), private_hosts=tuple(filter(None, private)))
