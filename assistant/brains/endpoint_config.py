"""Where a context endpoint is, how patiently it is asked, and which addresses of pictures it is given."""

from __future__ import annotations

import os
from collections.abc import Mapping
from dataclasses import dataclass
from ipaddress import ip_address
from urllib.parse import urlsplit

from embedding.encoder.limits import ImageLimits
from embedding.encoder.public_address import PrivateHosts

URL_VARIABLE, MODEL_VARIABLE, KEY_VARIABLE = "PINLAKE_CONTEXT_URL", "PINLAKE_CONTEXT_MODEL", "PINLAKE_CONTEXT_API_KEY"
PICTURES_VARIABLE, TIMEOUT_VARIABLE = "PINLAKE_CONTEXT_PICTURES", "PINLAKE_CONTEXT_TIMEOUT_S"
MAX_URL_CHARS = 2_000


class EndpointSettingError(ValueError):
    """A setting of the endpoint that cannot be; the message says which."""


@dataclass(frozen=True)
class EndpointConfig:
    """Where the endpoint is and how patiently it is asked.

    pictures: The most pictures that are sent a turn, by URL; 0 for a model that reads text alone.
    connect_timeout_s, silence_timeout_s, total_timeout_s: Until a connection stands; the longest silence; of one call in all.
    attempts: Of a call that could not be made, or was answered with 429 or 5xx, before its first word.
    private_hosts: Beside the public web, whose pictures' addresses may be sent (as `PINLAKE_IMAGE_PRIVATE_HOSTS`).
    """

    url: str
    model: str
    pictures: int = 8
    connect_timeout_s: float = 5.0
    silence_timeout_s: float = 30.0
    total_timeout_s: float = 90.0
    attempts: int = 3
    backoff_s: float = 0.5
    private_hosts: tuple[str, ...] = ()

    def __post_init__(self) -> None:
        parts = urlsplit(self.url)
        if parts.scheme not in ("http", "https") or not parts.hostname:
            raise EndpointSettingError(f"{URL_VARIABLE}: an address like https://host/v1 is needed")
        if parts.username or parts.password:
            raise EndpointSettingError(f"{URL_VARIABLE}: no name or password in the address; the key goes into {KEY_VARIABLE}")
        if not self.model:
            raise EndpointSettingError(f"{MODEL_VARIABLE}: which model is asked?")
        if min(self.connect_timeout_s, self.silence_timeout_s, self.total_timeout_s) <= 0 or self.attempts < 1:
            raise EndpointSettingError(f"{TIMEOUT_VARIABLE}: more than 0 seconds, and at least one attempt")

    @classmethod
    def from_environment(cls, environ: Mapping[str, str] | None = None) -> EndpointConfig | None:
        """None where no endpoint is named. Raises EndpointSettingError."""
        environ = os.environ if environ is None else environ
        if not (url := environ.get(URL_VARIABLE, "").strip()):
            return None
        try:
            pictures, silence_s = int(environ.get(PICTURES_VARIABLE, "8")), float(environ.get(TIMEOUT_VARIABLE, "30"))
        except ValueError as error:
            raise EndpointSettingError(f"{PICTURES_VARIABLE} and {TIMEOUT_VARIABLE} are numbers: {error}") from None
        private = ImageLimits.from_environment(environ).private_hosts
        model = environ.get(MODEL_VARIABLE, "").strip()
        return cls(url, model, pictures, silence_timeout_s=silence_s, total_timeout_s=3 * silence_s, private_hosts=private)


def is_sent(uri: str, private: PrivateHosts) -> bool:
    """Whether a picture's address is given to the endpoint: http or https, of the public web or a host that was named.

    Whoever writes a pin writes its address, and the endpoint would fetch it from where it stands.
    """
    try:
        parts = urlsplit(uri)
        host, _ = parts.hostname, parts.port
    except ValueError:
        return False
    if len(uri) > MAX_URL_CHARS or parts.scheme not in ("http", "https") or not host or parts.username or parts.password:
        return False
    try:
        ip_address(host)
    except ValueError:  # a name
        name = host.lower().removesuffix(".")
        inside = "." not in name or name.endswith((".localhost", ".local", ".internal", ".home.arpa")) or name[-1].isdigit()
        return private.has_name(host) or not inside
    return private.may_connect(host)
