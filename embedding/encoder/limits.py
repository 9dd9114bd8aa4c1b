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

SCHEMES_VARIABLE = "PINLAKE_IMAGE_SCHEMES"
ROOTS_VARIABLE = "PINLAKE_IMAGE_ROOTS"

OBJECT_STORE_SCHEMES = frozenset({"s3", "s3a", "gs", "gcs", "abfs", "abfss", "hdfs"})
"""Read through pyarrow's file systems, with the credentials that the process has."""

SUPPORTED_SCHEMES = OBJECT_STORE_SCHEMES | {"file", "memory"}
"""`memory` is fsspec's store inside the process."""

MAX_DETAIL_CHARS = 500

# Pillow refuses a picture above twice its own limit while it opens it. A limit of ours above that would never be reached.
_PILLOW_MAX_PIXELS = 178_956_970


class SettingError(ValueError):
    """An environment variable that says what cannot be."""


class ImageRejected(Exception):  # noqa: N818 - it refuses a picture, and reports no error of ours
    """An image that cannot be encoded: a fact about the row, never a fault of the run.

    `reason` is what `quarantine` records, `detail` a sentence for people, cut to 500 characters.
    """

    def __init__(self, reason: Reason, detail: str) -> None:
        # An address may hold lone surrogates, which no Parquet file can: they are written out as \udcxx.
        self.reason = reason
        self.detail = detail.encode("utf-8", "backslashreplace").decode("utf-8")[:MAX_DETAIL_CHARS]
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
    address is read; empty for no such bound.

    Raises ValueError for a scheme that is not supported, and for a limit that cannot be kept.
    """

    max_bytes: int = 64 * 2**20
    max_pixels: int = 40_000_000
    schemes: frozenset[str] = frozenset({"file"})
    roots: tuple[str, ...] = ()

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
        relative = [root for root in self.roots if not Path(root).is_absolute()]
        if relative:
            raise SettingError(f"{ROOTS_VARIABLE}: not absolute: {', '.join(relative)}")

    @classmethod
    def from_environment(cls, environ: Mapping[str, str] | None = None) -> ImageLimits:
        """The defaults, with the schemes and roots that the environment names.

        PINLAKE_IMAGE_SCHEMES: separated by commas, "file" where unset. PINLAKE_IMAGE_ROOTS: folders, separated as in PATH.
        """
        environ = os.environ if environ is None else environ
        schemes = (scheme.strip().lower() for scheme in environ.get(SCHEMES_VARIABLE, "file").split(","))
        roots = (root for root in environ.get(ROOTS_VARIABLE, "").split(os.pathsep) if root)
        return cls(schemes=frozenset(filter(None, schemes)), roots=tuple(roots))
