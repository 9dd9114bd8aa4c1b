"""`pinlake`: look at the tables, releases and encoders, search and recommend, write the report, roll a release back.

All but two commands only read. `rollback` replaces the pointer to the live release, and `abandon` ends a migration; no command
writes a table or a release: that is what the jobs do.
"""

from __future__ import annotations

import argparse
import os
import re
import sys
from collections.abc import Callable, Sequence
from datetime import UTC, datetime
from pathlib import Path
from typing import TYPE_CHECKING

from embedding.contracts import NIGHTS, PIN_EMBEDDINGS, TABLES
from embedding.tables.lake import Lake
from embedding.tables.storage import is_local

if TYPE_CHECKING:
    from embedding.index.live import LiveRelease
    from embedding.index.reader import Neighbour
    from embedding.tables.sql import AsOf
    from embedding.taste.recommend import Recommender

Printer = Callable[[str], None]


class UsageError(Exception):
    """What the user asked for cannot be done; the message says why."""


def parse_args(argv: Sequence[str] | None = None) -> argparse.Namespace:
    parser = argparse.ArgumentParser(prog="pinlake", description="Look at the lake, search it, roll it back.")
    parser.add_argument(
        "--home",
        default=os.environ.get("PINLAKE_HOME", ".pinlake"),
        help="where the tables and releases lie: a folder or an object-store URI (default $PINLAKE_HOME, else .pinlake)",
    )
    commands = parser.add_subparsers(dest="command", required=True)
    commands.add_parser("status", help="tables, releases and the last nights").set_defaults(run=status)
    commands.add_parser("encoders", help="the encoders' versions: which is live, which are kept fresh").set_defaults(
        run=encoders
    )
    releases_parser = commands.add_parser("releases", help="every checked release: figures, lineage, which is live")
    releases_parser.add_argument("--last", type=_positive, default=20, help="how many, the newest ones (default 20)")
    releases_parser.set_defaults(run=releases)
    rollback_parser = commands.add_parser("rollback", help="make an earlier release live again")
    rollback_parser.add_argument(
        "--to", metavar="RELEASE", help="default: the one before the last cut-over, else the one before"
    )
    rollback_parser.set_defaults(run=rollback)
    commands.add_parser("abandon", help="end the migration under way; nights stop embedding for it").set_defaults(run=abandon)
    search_parser = commands.add_parser("search", help="the nearest pins of a pin, a text or a picture")
    query = search_parser.add_mutually_exclusive_group(required=True)
    query.add_argument("--pin", type=int, metavar="ID", help="a pin of the live release")
    query.add_argument("--text", help='words, for example "red bicycle"')
    query.add_argument("--image", type=Path, metavar="FILE", help="a picture")
    search_parser.add_argument("-k", type=_positive, default=10, help="how many (default 10)")
    search_parser.add_argument("--board", type=int, metavar="ID", help="only pins of this board")
    search_parser.add_argument("--tag", help="only pins that have this tag")
    search_parser.set_defaults(run=search)
    related_parser = commands.add_parser("related", help="what others keep beside a pin, by walks over the boards")
    related_parser.add_argument("--pin", type=int, metavar="ID", required=True)
    related_parser.add_argument("-k", type=_positive, default=10, help="how many (default 10)")
    related_parser.set_defaults(run=related)
    interests_parser = commands.add_parser("interests", help="what a user is interested in")
    interests_parser.add_argument("--user", type=int, metavar="ID", required=True)
    interests_parser.set_defaults(run=interests)
    recommend_parser = commands.add_parser("recommend", help="pins for a user, each with a reason")
    recommend_parser.add_argument("--user", type=int, metavar="ID", required=True)
    recommend_parser.add_argument("-k", type=_positive, default=20, help="how many (default 20)")
    recommend_parser.set_defaults(run=recommend)
    report_parser = commands.add_parser("report", help="one HTML file: nights, quarantine, recall, galleries")
    report_parser.add_argument("--out", type=Path, help="default <home>/report.html")
    report_parser.set_defaults(run=report)
    _add_sql(commands)
    return parser.parse_args(argv)


def _add_sql(commands: argparse._SubParsersAction[argparse.ArgumentParser]) -> None:
    from embedding.tables.results import FORMATS
    from embedding.tables.sql import DEFAULT_MEMORY, MACROS, VIEWS

    views = "\n".join(f"  {name:18s} {view.about}" for name, view in (VIEWS | MACROS).items())
    sql_parser = commands.add_parser(
        "sql",
        help="a question to the tables in SQL",
        description="A question to the tables in DuckDB's SQL, which can only read.",
        epilog=f"Besides the tables, which docs/tables.md describes and SHOW TABLES lists, there are:\n{views}",
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    asked = sql_parser.add_mutually_exclusive_group(required=True)
    asked.add_argument("question", nargs="?", help="one SELECT, SHOW, DESCRIBE, SUMMARIZE or EXPLAIN; - reads standard input")
    asked.add_argument("--file", type=Path, metavar="FILE", help="the question is in a file")
    sql_parser.add_argument("--format", choices=FORMATS, default="table", help="json: an object a line (default table)")
    sql_parser.add_argument(
        "--out", type=Path, metavar="FILE", help="where a csv, json or parquet goes instead of standard output"
    )
    sql_parser.add_argument(
        "--limit", type=_rows, metavar="ROWS", help="the first rows alone (default 40 of a table, else all)"
    )
    sql_parser.add_argument(
        "--as-of",
        action="append",
        default=[],
        metavar="TIME|TABLE=VERSION",
        help="tables as they stood at a time (2026-11-18 or 2026-11-18T06:00, UTC), or one at a version; may be repeated",
    )
    sql_parser.add_argument(
        "--memory", default=DEFAULT_MEMORY, help=f"the rest goes to a temporary folder (default {DEFAULT_MEMORY})"
    )
    sql_parser.set_defaults(run=sql)


def _rows(text: str) -> int:
    number = int(text)
    if number < 1:
        raise argparse.ArgumentTypeError("at least 1")
    return number


def _positive(text: str) -> int:
    number = int(text)
    if not 0 < number <= 1_000:
        raise argparse.ArgumentTypeError("from 1 to 1000")
    return number


def format_table(rows: Sequence[Sequence[object]], head: Sequence[str]) -> str:
    """Rows as aligned text, numbers to the right."""
    texts = [[_cell(cell) for cell in row] for row in rows]
    widths = [max(len(head[i]), *(len(row[i]) for row in texts)) if texts else len(head[i]) for i in range(len(head))]
    right = [bool(rows) and all(isinstance(row[i], int | float) or row[i] is None for row in rows) for i in range(len(head))]

    def line(cells: Sequence[str]) -> str:
        pairs = zip(cells, widths, right, strict=True)
        return "  ".join(cell.rjust(width) if to_right else cell.ljust(width) for cell, width, to_right in pairs).rstrip()

    return "\n".join([line(head), line(["-" * width for width in widths]), *(line(row) for row in texts)])


def _cell(value: object) -> str:
    if value is None:
        return "-"
    if isinstance(value, float):
        return f"{value:.1f}" if abs(value) >= 10 else f"{value:.4g}"
    return printable(str(value))


def printable(text: str) -> str:
    """Text from pins, safe for a terminal: control characters, which could move the cursor or worse, become `?`."""
    return "".join(c if c.isprintable() else "?" for c in text)


def printable_lines(text: str) -> str:
    """The same for what may have several lines, without the colours that some libraries give their errors."""
    return "\n".join(printable(line) for line in re.sub(r"\x1b\[\d*m", "", text).splitlines())


def status(args: argparse.Namespace, out: Printer) -> None:
    from embedding.index.release import list_releases, live_release_id
    from embedding.tables.lake import data_files

    lake = Lake(args.home)
    if not any(lake.exists(contract) for contract in TABLES.values()):
        raise UsageError(f"there are no tables under {lake.home}: run `make demo`, or give --home")
    rows = []
    for name, contract in TABLES.items():
        if lake.exists(contract):
            table = lake.open(contract)
            files = data_files(table)
            rows.append(
                (name, table.version(), sum(f.num_rows for f in files), len(files), sum(f.size_bytes for f in files) / 1e6)
            )
    out(f"lake {lake.home}\n\n" + format_table(rows, ("table", "version", "rows", "files", "MB")))
    live, faults = live_release_id(lake), list[str]()
    releases = [
        ("live" if m.release_id == live else "", m.release_id, m.rows, m.recall_at_10, m.factory, m.embedding_version)
        for m in list_releases(lake, faults)[-10:]
    ]
    out("\n" + format_table(releases, ("", "release", "pins", "recall@10", "index", "embedding_version")))
    for fault in faults:
        out(f"fault: {fault}")
    if lake.exists(NIGHTS):
        out("\n" + nights_table(lake, last=10))


NIGHT_COLUMNS = ("ds", "status", "landed", "new", "changed", "deleted", "encoded", "reused", "quarantined", "images_per_s")


def nights_table(lake: Lake, last: int) -> str:
    """The last runs of nights as text, oldest first."""
    from embedding.tables.nights import last_nights

    nights = last_nights(lake, NIGHT_COLUMNS, last)
    return format_table([[night[name] for name in NIGHT_COLUMNS] for night in nights], NIGHT_COLUMNS)


def encoders(args: argparse.Namespace, out: Printer) -> None:
    """Each version with its state, its vectors, the days it has of those that passed under the live one, its releases."""
    from embedding.encoder.store import stored_versions, version_state
    from embedding.index.release import list_releases, live_version
    from embedding.tables.lake import data_files
    from embedding.tables.nights import passed_days

    lake = Lake(args.home)
    versions = stored_versions(lake)
    if not versions:
        raise UsageError(f"there are no encoders under {lake.encoders_uri}: the first night brings one")
    vectors: dict[str | None, int] = {}
    if lake.exists(PIN_EMBEDDINGS):
        for file in data_files(lake.open(PIN_EMBEDDINGS)):
            version = file.partition["embedding_version"]
            vectors[version] = vectors.get(version, 0) + file.num_rows
    releases = [manifest.embedding_version for manifest in list_releases(lake, [])]
    served = set(passed_days(lake, live_version(lake) or versions[0]))
    rows = []
    for version in versions:
        days = f"{len(served & set(passed_days(lake, version)))} of {len(served)}"
        rows.append((version, *version_state(lake, version), days, vectors.get(version, 0), releases.count(version)))
    out(format_table(rows, ("embedding_version", "state", "since", "days", "vectors", "releases")))


RELEASE_COLUMNS = ("release_id", "status", "rows", "recall_at_10", "p99_ms", "qps", "bytes_a_vector", "factory", "setting")


def releases(args: argparse.Namespace, out: Printer) -> None:
    """The table `releases` as text, oldest first."""
    from embedding.index.history import release_rows
    from embedding.index.release import read_pointer

    lake = Lake(args.home)
    rows = release_rows(lake)[-args.last :]
    if not rows:
        raise UsageError(f"no release was ever checked under {lake.home}")
    pointer = read_pointer(lake)
    marks = {} if pointer is None else dict.fromkeys(pointer.withdrawn, "withdrawn") | {pointer.release_id: "live"}
    lines = [
        (marks.get(row["release_id"], ""), *(row[name] for name in RELEASE_COLUMNS), f"{row['built_at']:%Y-%m-%d %H:%M}")
        for row in rows
    ]
    out(format_table(lines, ("", *RELEASE_COLUMNS, "built_at")))
    for row in rows:
        for failure in row["failures"]:
            out(f"{row['release_id']} failed: {failure}")


def rollback(args: argparse.Namespace, out: Printer) -> None:
    from embedding.index.cut_over import roll_back

    lake = Lake(args.home)
    out(roll_back(lake, args.to, "pinlake rollback"))
    out("The next night and release follow it; to have today's pins in it at once, trigger index_release for the last day.")


def abandon(args: argparse.Namespace, out: Printer) -> None:
    from embedding.encoder.store import candidate_version, mark_abandoned
    from embedding.index.release import pointer_lock

    lake = Lake(args.home)
    with pointer_lock(lake):
        version = candidate_version(lake)
        if version is None:
            raise UsageError("no migration is under way")
        mark_abandoned(lake, version, "pinlake abandon")
    out(f"{version} is no candidate any more. Its vectors stay until retire_encoders.py --encoder {version} deletes them.")


def search(args: argparse.Namespace, out: Printer) -> None:
    from embedding.index.live import LiveRelease

    lake = Lake(args.home)
    live = LiveRelease(lake)
    neighbours, release = _neighbours(lake, live, args), live.release
    rows = [(rank, n.score, n.pin_id, (n.title or "")[:48], n.image_uri or "") for rank, n in enumerate(neighbours, start=1)]
    said = f"release {release.manifest.release_id}, {release.manifest.rows} pins"
    if release.changes and len(release.changes.superseded):
        said += f"; {len(release.changes.superseded)} changed since, {release.changes.searchable} of them are searched"
    out(f"{said}\n")
    out(format_table(rows, ("#", "cosine", "pin_id", "title", "image")))


def _neighbours(lake: Lake, live: LiveRelease, args: argparse.Namespace) -> list[Neighbour]:
    from embedding.index.part import Criteria
    from embedding.index.searcher import Searcher

    searcher = Searcher(lake, live)
    among = None if args.board is None and args.tag is None else Criteria(args.board, args.tag)
    if args.pin is not None:
        try:
            return searcher.by_pin(args.pin, args.k, among)
        except KeyError:
            raise UsageError(f"the live release has no pin {args.pin}") from None
    if args.text is not None:
        if not args.text.strip():
            raise UsageError("--text is empty")
        return searcher.by_text(args.text, args.k, among)
    from embedding.encoder.fetch import fetch_image
    from embedding.encoder.limits import ImageLimits

    limits = ImageLimits.from_environment()
    return searcher.by_image(fetch_image(str(args.image.resolve()), limits), args.k, among, limits)


def related(args: argparse.Namespace, out: Printer) -> None:
    recommender, live = _recommender(args)
    ids, scores = recommender.related(args.pin, args.k)
    if not len(ids):
        raise UsageError(f"pin {args.pin} is on no board of the live graph")
    known = live.release.describe(ids.tolist())
    rows = [
        (rank, float(score), int(pin), (known.get(int(pin), {}).get("title") or "")[:48])
        for rank, (pin, score) in enumerate(zip(ids, scores, strict=True), start=1)
    ]
    out(format_table(rows, ("#", "visits", "pin_id", "title")))


def interests(args: argparse.Namespace, out: Printer) -> None:
    from embedding.index.live import LiveRelease
    from embedding.taste.recommend import read_interests

    lake = Lake(args.home)
    live = LiveRelease(lake)
    found = read_interests(lake, live.release.manifest.embedding_version, args.user)
    known = live.release.describe([interest.medoid_pin for interest in found])
    rows = [
        (i.cluster, i.importance, i.size, i.label or "", i.medoid_pin, (known.get(i.medoid_pin, {}).get("title") or "")[:48])
        for i in found
    ]
    out(format_table(rows, ("cluster", "importance", "pins", "label", "medoid_pin", "title")))


def recommend(args: argparse.Namespace, out: Printer) -> None:
    import numpy as np

    from embedding.taste.recommend import diversity

    recommender, live = _recommender(args)
    found = recommender.recommend(args.user, args.k)
    pins = [r.pin_id for r in found]
    known = live.release.describe(pins)
    rows = [(rank, r.pin_id, (known.get(r.pin_id, {}).get("title") or "")[:48], r.why) for rank, r in enumerate(found, start=1)]
    out(format_table(rows, ("#", "pin_id", "title", "why")))
    spread = diversity(live.release.vectors_of(np.array(pins, np.int64))) if pins else 0.0
    out(f"\ndiversity {spread:.2f} (mean of 1 - cosine over all pairs), {len({r.cluster for r in found})} interests")


def _recommender(args: argparse.Namespace) -> tuple[Recommender, LiveRelease]:
    from embedding.index.live import LiveRelease
    from embedding.taste.recommend import Recommender

    lake = Lake(args.home)
    live = LiveRelease(lake)
    return Recommender(lake, live), live


TABLE_ROWS = 40


def sql(args: argparse.Namespace, out: Printer) -> None:
    from embedding.tables.results import first_rows, table_rows, write_file, write_parquet, write_text
    from embedding.tables.sql import SqlError, ask, batches, open_sql

    text = _question(args)
    if args.format == "table" and args.out is not None:
        raise UsageError("--out takes a --format: csv, json or parquet")
    if args.format == "parquet" and args.out is None and sys.stdout.isatty():
        raise UsageError("Parquet is not for a terminal: give --out")
    try:
        with open_sql(Lake(args.home), text, _as_of(args.as_of), args.memory) as connection:
            reader = ask(connection, text)
            if args.format == "table":
                rows, more = table_rows(batches(reader), args.limit or TABLE_ROWS)
                out(format_table(rows, reader.schema.names))
                if more:
                    print(f"the first {len(rows)} rows; --limit shows more, --format csv all", file=sys.stderr)
                return
            answer = first_rows(batches(reader), args.limit)
            if args.out is not None:
                write_file(args.format, reader.schema, answer, args.out)
            elif args.format == "parquet":
                write_parquet(reader.schema, answer, sys.stdout.buffer)
            else:
                write_text(args.format, reader.schema, answer, sys.stdout)
            sys.stdout.flush()
    except SqlError as error:
        raise UsageError(printable_lines(str(error))) from error
    except BrokenPipeError:  # whoever read it has enough: what is still in the buffer goes nowhere
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
    except (OSError, KeyboardInterrupt) as error:
        raise UsageError(printable_lines(str(error)) or "interrupted") from error


def _question(args: argparse.Namespace) -> str:
    """The SQL that was given as an argument, on standard input, or in a file."""
    try:
        if args.file is not None:
            return str(args.file.read_text())
        return sys.stdin.read() if args.question == "-" else str(args.question)
    except (OSError, UnicodeDecodeError) as error:
        raise UsageError(f"the question cannot be read: {error}") from error


def _as_of(given: Sequence[str]) -> AsOf:
    from embedding.tables.sql import AsOf

    at, versions = None, {}
    for text in given:
        name, _, version = text.partition("=")
        try:
            if version and name in TABLES:
                versions[name] = int(version)
            else:
                at = datetime.fromisoformat(text)
        except ValueError:
            raise UsageError(f"--as-of {text}: give a time such as 2026-11-18T06:00, or TABLE=VERSION") from None
    return AsOf(at if at is None or at.tzinfo else at.replace(tzinfo=UTC), versions)


def report(args: argparse.Namespace, out: Printer) -> None:
    from embedding.report.page import write_report

    lake = Lake(args.home)
    if args.out is None and not is_local(lake.home):
        raise UsageError("the lake is in an object store: say with --out where the report goes")
    target = args.out or Path(lake.home) / "report.html"
    write_report(lake, target)
    out(target.resolve().as_uri())


def main(argv: Sequence[str] | None = None) -> int:
    """The command. Errors that a user can mend are one sentence on stderr and status 2."""
    from embedding.encoder.config import ConfigError
    from embedding.encoder.limits import ImageRejected, SettingError
    from embedding.index.release import ReleaseError
    from embedding.redaction import CredentialsInAddressError
    from embedding.taste.graph import GraphError, UnknownUserError

    bad_input = (UsageError, ReleaseError, ConfigError, ImageRejected, SettingError, GraphError, UnknownUserError)
    args = parse_args(argv)
    try:
        args.run(args, print)
    except (*bad_input, CredentialsInAddressError) as error:
        print(f"pinlake: {error}", file=sys.stderr)
        return 2
    return 0


if __name__ == "__main__":
    sys.exit(main())
