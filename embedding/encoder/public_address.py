"""Which network addresses a picture may be fetched from.

Addresses of pictures come out of an export, so whoever writes a pin can name any host. Without a bound the workers would
ask the cloud's metadata service, a database's page or the machine itself on that person's account. So only the public
internet is read, and what an operator has named beside it. Pure functions over addresses: nothing is resolved or opened.
"""

from __future__ import annotations

import errno
import re
from collections.abc import Iterable
from dataclasses import dataclass
from ipaddress import IPv4Address, IPv4Network, IPv6Address, IPv6Network, ip_address, ip_network

# IANA's special-purpose registries, written out: what `ipaddress` calls global differs between Python's patch releases, and
# counts multicast in.
_SPECIAL_V4 = tuple(
    map(
        IPv4Network,
        (
            "0.0.0.0/8",
            "10.0.0.0/8",
            "100.64.0.0/10",  # carriers' NAT, where a cloud keeps its metadata
            "127.0.0.0/8",
            "168.63.129.16/32",  # public by its number, but the host below every virtual machine of Azure
            "169.254.0.0/16",
            "172.16.0.0/12",
            "192.0.0.0/24",  # another cloud's metadata
            "192.0.2.0/24",
            "192.88.99.0/24",
            "192.168.0.0/16",
            "198.18.0.0/15",
            "198.51.100.0/24",
            "203.0.113.0/24",
            "224.0.0.0/3",  # multicast, reserved and broadcast
        ),
    )
)
_PUBLIC_V6 = IPv6Network("2000::/3")
_SPECIAL_V6 = tuple(map(IPv6Network, ("2001::/23", "2001:db8::/32", "2002::/16", "3fff::/20")))  # tunnels, documentation
_NAT64 = IPv6Network("64:ff9b::/96")

_HOST_NAME = re.compile(r"(?!-)[a-z0-9_-]{1,63}(?:\.[a-z0-9_-]{1,63})*")


class ForbiddenAddressError(OSError):
    """A socket was asked to connect to `address`, which is not public and was not allowed.

    Its text is the same for every address: of equal errors aiohappyeyeballs hands on the first, unequal ones it melts together.
    """

    def __init__(self, address: str) -> None:
        super().__init__(errno.EACCES, "not a public address")
        self.address = address


@dataclass(frozen=True)
class PrivateHosts:
    """What may be connected to beside the public internet: networks, and names wherever they lead."""

    networks: tuple[IPv4Network | IPv6Network, ...] = ()
    names: frozenset[str] = frozenset()

    @classmethod
    def parse(cls, entries: Iterable[str]) -> PrivateHosts:
        """From entries like `10.0.0.0/8`, `fd00::/8`, `10.1.2.3` and `cdn.internal`.

        Raises ValueError for an entry that is neither a network (without bits of a host) nor a name in ASCII.
        """
        networks: list[IPv4Network | IPv6Network] = []
        names: set[str] = set()
        for entry in entries:
            name = _folded(entry)
            try:
                networks.append(ip_network(entry))
            except ValueError as error:
                # A name of digits alone is an address that was written wrongly: 10.0.0, 10.0.0.256
                if not _HOST_NAME.fullmatch(name) or not re.search("[a-z]", name):
                    raise ValueError(f"neither a network nor a host's name: {entry!r} ({error})") from None
                names.add(name)
        return cls(tuple(networks), frozenset(names))

    def has_name(self, host: str) -> bool:
        """Whether the host was named, letters' case and a final dot aside."""
        return _folded(host) in self.names

    def may_connect(self, address: str) -> bool:
        """Whether a socket may connect to `address`, which is one number as the resolver writes it, and no name."""
        try:
            number = _unwrapped(ip_address(address))
        except ValueError:
            return False
        return is_public(number) or any(number in network for network in self.networks)


def is_public(number: IPv4Address | IPv6Address) -> bool:
    """Whether the address is one of the public internet. Of an IPv6 address that stands for an IPv4 one, the latter counts."""
    number = _unwrapped(number)
    if isinstance(number, IPv4Address):
        return not any(number in network for network in _SPECIAL_V4)
    # An address with a zone ("%eth0") is of a link, whatever its number.
    return number in _PUBLIC_V6 and number.scope_id is None and not any(number in network for network in _SPECIAL_V6)


def _unwrapped(number: IPv4Address | IPv6Address) -> IPv4Address | IPv6Address:
    if isinstance(number, IPv4Address):
        return number
    if number in _NAT64:
        return IPv4Address(int(number) & 0xFFFF_FFFF)
    return number.ipv4_mapped or number


def _folded(host: str) -> str:
    return host.lower().removesuffix(".")
