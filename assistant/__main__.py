"""Starts the assistant's service: python -m assistant --home .pinlake

It answers on this machine alone unless PINLAKE_ASSISTANT_TOKEN holds a token (16 characters or more), which every request must
then carry. Ctrl-C ends it once the answers under way are told, at most GRACE_S later.
"""

from __future__ import annotations

import argparse
import logging
import os
import socket
import sys
from collections.abc import Sequence

import uvicorn

from assistant.service.app import create_app
from assistant.service.brains import BRAINS
from assistant.service.settings import TOKEN_VARIABLE, Rate, ServiceError, Settings
from assistant.shadow import ShadowConfig, ShadowSettingError
from embedding.encoder.limits import SettingError

GRACE_S = 10
"""For answers under way, once the service is told to end."""
CONNECTIONS = 512
"""At once; more are refused with 503."""


def parse_args(argv: Sequence[str] | None = None) -> argparse.Namespace:
    parser = argparse.ArgumentParser(prog="python -m assistant", description="The assistant: a page, and an API beside it.")
    parser.add_argument(
        "--home",
        default=os.environ.get("PINLAKE_HOME", ".pinlake"),
        help="where the tables and releases lie: a folder or an object-store URI (default $PINLAKE_HOME, else .pinlake)",
    )
    parser.add_argument(
        "--host", default="127.0.0.1", help=f"other than this machine's only with {TOKEN_VARIABLE} (default %(default)s)"
    )
    parser.add_argument("--port", type=int, default=8100, help="0 takes a free one (default %(default)s)")
    parser.add_argument("--brain", choices=BRAINS, default="core", help="what answers (default %(default)s)")
    parser.add_argument(
        "--requests",
        type=_rate,
        default=Settings.requests,
        metavar="PER_S",
        help="a client, in the long run (default %(default)s)",
    )
    parser.add_argument(
        "--chats", type=_rate, default=Settings.chats, metavar="PER_S", help="turns, likewise (default %(default)s)"
    )
    parser.add_argument("--turns", type=int, default=Settings.turns, help="answered at once (default %(default)s)")
    parser.add_argument("--people", action="store_true", help="let the page list some users to try: for a demo")
    return parser.parse_args(argv)


def _rate(text: str) -> Rate:
    """So many a second, and six seconds' worth at once."""
    per_s = float(text)
    if not 0 < per_s <= 100_000:
        raise argparse.ArgumentTypeError("more than 0 a second")
    return Rate(per_s, max(1, round(6 * per_s)))


class Server(uvicorn.Server):
    """Prints the address once it can be asked."""

    async def startup(self, sockets: list[socket.socket] | None = None) -> None:
        await super().startup(sockets)
        if self.started:
            host, port = self.servers[0].sockets[0].getsockname()[:2]
            sys.stdout.write(f"http://{host}:{port}\n")
            sys.stdout.flush()


def main(argv: Sequence[str] | None = None) -> int:
    args = parse_args(argv)
    logging.basicConfig(level=logging.INFO, format="%(asctime)s %(levelname)s %(message)s")
    token = os.environ.pop(TOKEN_VARIABLE, None)  # popped: no process that this one starts is to have it
    try:
        settings = Settings(
            args.home,
            token or None,
            args.host,
            args.port,
            args.brain,
            ShadowConfig.from_environment(),
            args.people,
            requests=args.requests,
            chats=args.chats,
            turns=args.turns,
        )
        app = create_app(settings)
    except (ServiceError, ShadowSettingError, SettingError) as error:
        sys.stderr.write(f"{error}\n")
        return 2
    if settings.token is None:
        sys.stderr.write(f"no {TOKEN_VARIABLE} is set: this machine alone is answered\n")
    config = uvicorn.Config(
        app,
        args.host,
        args.port,
        log_level="warning",
        access_log=False,  # addresses hold what people search for
        limit_concurrency=CONNECTIONS,
        timeout_graceful_shutdown=GRACE_S,
        server_header=False,
    )
    server = Server(config)
    server.run()
    return 0 if server.started else 1


if __name__ == "__main__":
    sys.exit(main())
