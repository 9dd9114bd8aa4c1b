"""Makes three days of a platform's exports (docs/exports.md) out of clip art: new, edited, moved, deleted and broken pins.

    python -m demo.days --cache .cache/openclipart --exports .pinlake/exports --images .pinlake/images

Creators are the users, creator x folder their boards, and the packages' symbolic links pins of an already known picture.
Saves to other people's boards of the same folder are invented, as are the edits; no clock and no randomness is read, so
that the same clip art gives the same bytes. The first day holds four fifths of the pins, the second everything that can
happen, the third little. Pictures that are neither clip art as it is nor made here are not part of the demo.
"""

from __future__ import annotations

import argparse
import hashlib
import io
import logging
import shutil
import struct
import sys
import zlib
from collections import Counter, defaultdict
from collections.abc import Iterator, Sequence
from dataclasses import asdict, dataclass, field, replace
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import TypeVar

import pyarrow as pa
import pyarrow.parquet as pq
from PIL import Image, ImageOps

from demo.openclipart import ORDINARY_PIXELS, Clipart, ClipartUnavailableError, fetch, read_clipart
from embedding.contracts import EXPORT_SCHEMAS, SUCCESS_MARKER, Reason, export_day_folder, parse_ds

_T = TypeVar("_T")
_Link = tuple[Clipart, Clipart]
"""A symbolic link and the clip art that it shows."""

DEMO_DAYS = ("2026-11-18", "2026-11-19", "2026-11-20")
MIN_PICTURES = 40
"""Fewer ordinary pictures do not give every kind of change."""

_MIN_CHANGEABLE = 8

ODD_PINS: dict[str, Reason | None] = {
    "truncated PNG": Reason.TRUNCATED_IMAGE,
    "zero-byte file": Reason.EMPTY_IMAGE,
    "HTML called .png": Reason.NOT_AN_IMAGE,
    "623 megapixels": Reason.TOO_MANY_PIXELS,
    "missing file": Reason.MISSING_IMAGE,
    "unknown URI scheme": Reason.UNSUPPORTED_SCHEME,
    "null pin_id": Reason.NULL_ID,
    "earlier row of a repeated pin_id": Reason.DUPLICATE_ID,
    "title of 100,000 characters": Reason.TEXT_TOO_LONG,
    "neither image nor text": Reason.EMPTY_PIN,
    "later row of a repeated pin_id": None,
    "text without image": None,
    "animated GIF": None,
    "CMYK JPEG": None,
    "16-bit PNG": None,
    "palette PNG with transparency": None,
    "EXIF-rotated JPEG": None,
}
"""The odd rows of the second day, and why each must end in `quarantine`; None for those that must be embedded."""

EXPECTED_QUARANTINE: dict[str, int] = dict(Counter(reason.value for reason in ODD_PINS.values() if reason))
"""Rows of `quarantine` of the second day, by reason. The other two days have none."""

_ODD_KIND: dict[Reason | None, str] = {None: "odd", Reason.DUPLICATE_ID: "superseded"}

# Above this a picture is not edited, only to keep the demo quick.
_EDITABLE_PIXELS = 4_000_000
_HUGE_PIXELS = 178_956_970
"""What Pillow itself refuses: more than any setting of the encoder lets through."""

_PINS_FILE_SCHEMA = pa.schema([column.with_nullable(True) for column in EXPORT_SCHEMAS["pins"]])
"""A platform's writer seldom marks columns as required, and one that did could not write the row with a null id."""


@dataclass(frozen=True)
class Pin:
    """A row of the `pins` export."""

    pin_id: int | None
    board_id: int
    user_id: int
    image_uri: str | None
    title: str | None
    description: str | None
    tags: tuple[str, ...] | None
    created_at: datetime | None
    updated_at: datetime
    deleted: bool = False


@dataclass(frozen=True)
class Board:
    """A row of the `boards` export."""

    board_id: int
    user_id: int
    title: str
    created_at: datetime
    deleted: bool = False


@dataclass(frozen=True)
class Save:
    """A row of the `saves` export."""

    user_id: int
    pin_id: int
    board_id: int
    saved_at: datetime
    deleted: bool = False


@dataclass(frozen=True)
class _Shares:
    """How much happens on a day, as shares of all pictures chosen for the demo."""

    new: float
    saved_again: float
    text_edited: float = 0.0
    image_edited: float = 0.0
    moved: float = 0.0
    deleted: float = 0.0


_DAY_SHARES = (
    _Shares(new=0.80, saved_again=0.10),
    _Shares(new=0.15, saved_again=0.05, text_edited=0.02, image_edited=0.01, moved=0.01, deleted=0.01),
    _Shares(new=0.05, saved_again=0.01, text_edited=0.003, image_edited=0.002, moved=0.002, deleted=0.003),
)


@dataclass
class Day:
    """One day's rows, and under `kinds` the ids of the pins that something happened to.

    The kinds: `new`, `repinned` (a new pin of a known picture and text), `text_edited`, `image_edited`, `moved` (another
    board, same content), `deleted`, `quarantined` (must be), `odd` (unusual, must be embedded), `superseded` (has a later row
    on the same day), `mended`. A null id is in none.
    """

    ds: str
    pins: list[Pin] = field(default_factory=list)
    boards: list[Board] = field(default_factory=list)
    saves: list[Save] = field(default_factory=list)
    kinds: dict[str, list[int]] = field(default_factory=lambda: defaultdict(list))

    def at(self, what: str) -> datetime:
        """A moment between 01:00 and 23:45 of the day that depends on `what` alone."""
        midnight = datetime.fromisoformat(self.ds).replace(tzinfo=UTC)
        return midnight + timedelta(seconds=3_600 + stable_id("moment", self.ds, what) % 81_900)

    def summary(self) -> str:
        """One line of counts for people."""
        kinds = ", ".join(f"{len(ids)} {kind}" for kind, ids in self.kinds.items())
        users = len({save.user_id for save in self.saves})
        return (
            f"{self.ds}: {len(self.pins)} pins ({kinds}), {len(self.boards)} new boards, {len(self.saves)} saves, {users} users"
        )


def stable_id(*parts: str) -> int:
    """A positive 63-bit id that depends on the parts alone."""
    digest = hashlib.sha256("\x00".join(parts).encode("utf-8", "surrogateescape")).digest()
    return int.from_bytes(digest[:8], "big") >> 1


# -- the platform -----------------------------------------------------------------------------------------------------------


class _Platform:
    """The platform in small: what is on it now, and the rows that today's changes add to today's export."""

    def __init__(self, first_ds: str) -> None:
        self.today = Day(first_ds)
        self.pins: dict[int, Pin] = {}
        self.boards: dict[int, Board] = {}
        self.boards_in: dict[str, list[int]] = defaultdict(list)

    def begin(self, ds: str) -> None:
        self.today = Day(ds)

    def board_of(self, user: str, folder: str) -> Board:
        """The user's board for the folder, made today if there was none."""
        board_id = stable_id("board", user, folder)
        if board_id not in self.boards:
            made_at = datetime.fromisoformat(self.today.ds).replace(tzinfo=UTC)
            title = folder.replace("_", " ").replace("/", " / ").capitalize() or "Pins"
            self.boards[board_id] = Board(board_id, stable_id("user", user), title, made_at)
            self.boards_in[folder].append(board_id)
            self.today.boards.append(self.boards[board_id])
        return self.boards[board_id]

    def add(self, name: str, board: Board, clipart: Clipart | None, image_uri: str | None, kind: str) -> Pin:
        """A new pin, with the clip art's text, saved to its maker's board."""
        moment = self.today.at(name)
        title, description, tags = None, None, None
        if clipart is not None:
            title, description, tags = clipart.meta.title, clipart.meta.description, clipart.meta.tags or None
        pin_id = stable_id("pin", name)
        pin = Pin(pin_id, board.board_id, board.user_id, image_uri, title, description, tags, moment, moment)
        self.save(pin_id, board, moment)
        return self.put(pin, kind)

    def put(self, pin: Pin, kind: str) -> Pin:
        """Today's row of a pin."""
        self.today.pins.append(pin)
        if pin.pin_id is not None:
            self.pins[pin.pin_id] = pin
            self.today.kinds[kind].append(pin.pin_id)
        return pin

    def save(self, pin_id: int, board: Board, moment: datetime, deleted: bool = False) -> None:
        self.today.saves.append(Save(board.user_id, pin_id, board.board_id, moment, deleted))

    def save_elsewhere(self, pin_id: int, folder: str) -> None:
        """Someone else saves a known pin: to a board of the same folder if there is one, else to any."""
        own = self.pins[pin_id].user_id
        for candidates in (self.boards_in[folder], list(self.boards)):
            others = [board_id for board_id in candidates if self.boards[board_id].user_id != own]
            if others:
                board = self.boards[others[stable_id("repin", self.today.ds, str(pin_id)) % len(others)]]
                self.save(pin_id, board, self.today.at(f"repin {pin_id}"))
                return

    def edit_text(self, pin_id: int) -> None:
        pin = self.pins[pin_id]
        title = f"{pin.title or 'Untitled'} (revised)"
        tags = (*(pin.tags or ()), "revised")
        self.put(replace(pin, title=title, tags=tags, updated_at=self.today.at(f"edit {pin_id}")), "text_edited")

    def edit_image(self, pin_id: int, image_uri: str, kind: str = "image_edited") -> None:
        self.put(replace(self.pins[pin_id], image_uri=image_uri, updated_at=self.today.at(f"edit {pin_id}")), kind)

    def move(self, pin_id: int, user: str) -> None:
        """The owner moves the pin to their board "Favourites": the content stays as it is."""
        pin, moment = self.pins[pin_id], self.today.at(f"move {pin_id}")
        favourites = self.board_of(user, "favourites")
        self.put(replace(pin, board_id=favourites.board_id, updated_at=moment), "moved")
        self.save(pin_id, self.boards[pin.board_id], moment, deleted=True)
        self.save(pin_id, favourites, moment)

    def delete(self, pin_id: int) -> None:
        pin, moment = self.pins[pin_id], self.today.at(f"delete {pin_id}")
        gone = Pin(pin_id, pin.board_id, pin.user_id, None, None, None, None, None, moment, deleted=True)
        self.put(gone, "deleted")
        del self.pins[pin_id]


# -- choosing what happens --------------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class _Plan:
    """Which clip art appears on which day, and which of the first day's pins change later, in order."""

    new: tuple[list[Clipart], ...]
    links: tuple[list[_Link], ...]
    changeable: list[Clipart]
    n_chosen: int


def _plan(cliparts: Sequence[Clipart], limit: int | None) -> _Plan:
    ordinary = [c for c in cliparts if c.link_to is None and 0 < c.pixels <= ORDINARY_PIXELS]
    chosen = sorted(_whole_boards(ordinary, limit), key=lambda c: stable_id("order", c.name))
    if len(chosen) < MIN_PICTURES:
        raise ValueError(f"the demo needs {MIN_PICTURES} ordinary pictures or more, but got {len(chosen)}")
    new = _split(chosen)
    links = _plan_links([c for c in cliparts if c.link_to is not None], new)
    shown_twice = {original.name for day_links in links for _, original in day_links}
    # A picture that a link shows stays as it is, so that the link's pin is a repin whenever it comes.
    changeable = [c for c in new[0] if c.pixels <= _EDITABLE_PIXELS and c.name not in shown_twice]
    if len(changeable) < _MIN_CHANGEABLE:
        raise ValueError(
            f"the demo needs {_MIN_CHANGEABLE} pictures of the first day that no link shows, got {len(changeable)}"
        )
    return _Plan(new, links, changeable, len(chosen))


def _whole_boards(ordinary: list[Clipart], limit: int | None) -> list[Clipart]:
    """About `limit` pictures, board by board, since boards of one pin each would make no graph."""
    if limit is None or limit >= len(ordinary):
        return ordinary
    boards: dict[tuple[str, str], list[Clipart]] = defaultdict(list)
    for clipart in ordinary:
        boards[_user(clipart), clipart.folder].append(clipart)
    in_order = sorted(boards, key=lambda key: stable_id("board order", *key))
    at_most = max(3, limit // 20)
    chosen = [clipart for key in in_order for clipart in boards[key][:at_most]]
    rest = [clipart for key in in_order for clipart in boards[key][at_most:]]
    return (chosen + rest)[:limit]


def _split(items: Sequence[_T]) -> tuple[list[_T], list[_T], list[_T]]:
    """Parts the items among the three days, giving the later two at least one each where there are three."""
    second, third = (max(1, round(shares.new * len(items))) for shares in _DAY_SHARES[1:])
    first = max(0, len(items) - second - third)
    return list(items[:first]), list(items[first : first + second]), list(items[first + second :])


def _plan_links(links: Sequence[Clipart], new: tuple[list[Clipart], ...]) -> tuple[list[_Link], list[_Link], list[_Link]]:
    """Links to another folder with the clip art they show, none before the day of the latter."""
    shown_on = {clipart.name: (clipart, day) for day, cliparts in enumerate(new) for clipart in cliparts}
    by_day: tuple[list[_Link], ...] = ([], [], [])
    for link in sorted(links, key=lambda c: stable_id("order", c.name)):
        original, day = shown_on.get(link.link_to or "", (None, 0))
        if original is not None and original.folder != link.folder:
            by_day[day].append((link, original))
    first, second, third = _split(by_day[0])
    return first, by_day[1] + second, by_day[2] + third


def _user(clipart: Clipart) -> str:
    return clipart.meta.creator or "unknown"


def plan_days(cliparts: Sequence[Clipart], images_dir: Path, days: Sequence[str], limit: int | None = None) -> list[Day]:
    """The rows of the three days. Writes the edited and odd pictures into `images_dir`, and nothing else."""
    first_ds, second_ds, third_ds = _check_days(days)
    plan = _plan(cliparts, limit)
    platform, result = _Platform(first_ds), []
    waiting = iter(plan.changeable)
    for number, ds in enumerate((first_ds, second_ds, third_ds)):
        platform.begin(ds)
        _change_known_pins(platform, plan, number, waiting, images_dir)
        _add_new_pins(platform, plan, number)
        if number == 1:
            _add_odd_pins(platform, plan.changeable[0], _huge_picture(cliparts, images_dir), images_dir)
        if number == 2:
            mended = _write_image(images_dir / "mended.png", _encode(_small_copy(plan.changeable[0]), "PNG"))
            platform.edit_image(stable_id("pin", "odd/truncated PNG"), mended, "mended")
        result.append(platform.today)
    return result


def _check_days(days: Sequence[str]) -> tuple[str, str, str]:
    parsed = [parse_ds(ds) for ds in days]
    if len(parsed) != 3 or sorted(set(parsed)) != parsed:
        raise ValueError(f"the demo is made of three days in order, not of {', '.join(days) or 'none'}")
    return parsed[0], parsed[1], parsed[2]


def _change_known_pins(platform: _Platform, plan: _Plan, number: int, waiting: Iterator[Clipart], images_dir: Path) -> None:
    shares = _DAY_SHARES[number]

    def take(share: float) -> list[Clipart]:
        count = max(1, round(share * plan.n_chosen)) if share else 0
        return [clipart for _, clipart in zip(range(count), waiting, strict=False)]

    for clipart in take(shares.text_edited):
        platform.edit_text(stable_id("pin", clipart.name))
    for clipart in take(shares.image_edited):
        pin_id = stable_id("pin", clipart.name)
        platform.edit_image(pin_id, _write_image(images_dir / f"edited-{pin_id}.png", _edited_copy(clipart)))
    for clipart in take(shares.moved):
        platform.move(stable_id("pin", clipart.name), _user(clipart))
    for clipart in take(shares.deleted):
        platform.delete(stable_id("pin", clipart.name))


def _add_new_pins(platform: _Platform, plan: _Plan, number: int) -> None:
    for clipart in plan.new[number]:
        platform.add(clipart.name, platform.board_of(_user(clipart), clipart.folder), clipart, clipart.uri, "new")
    for link, original in plan.links[number]:
        platform.add(link.name, platform.board_of(_user(original), link.folder), original, link.uri, "repinned")
    known = [clipart for cliparts in plan.new[: number + 1] for clipart in cliparts]
    known = [clipart for clipart in known if stable_id("pin", clipart.name) in platform.pins]
    known.sort(key=lambda c: stable_id("saved again", platform.today.ds, c.name))
    for clipart in known[: max(1, round(_DAY_SHARES[number].saved_again * plan.n_chosen))]:
        platform.save_elsewhere(stable_id("pin", clipart.name), clipart.folder)


# -- odd and broken pins ----------------------------------------------------------------------------------------------------


def _add_odd_pins(platform: _Platform, sample: Clipart, huge_uri: str, images_dir: Path) -> None:
    """One pin for each of `ODD_PINS`, on a board of their own."""
    board = platform.board_of("pinlake demo", "odd_pictures")
    uris = _odd_images(sample, images_dir) | {
        "623 megapixels": huge_uri,
        "missing file": (images_dir / "missing.png").absolute().as_uri(),
        "unknown URI scheme": "gopher://example.org/9/picture.png",
        "text without image": None,
        "neither image nor text": None,
    }
    titles = {"title of 100,000 characters": "tedious " * 12_500, "neither image nor text": None}
    repeated_id = stable_id("pin", "odd/repeated pin_id")
    for name, reason in ODD_PINS.items():
        pin_id = repeated_id if "repeated" in name else stable_id("pin", f"odd/{name}")
        moment = platform.today.at(f"odd/{name}")
        title = titles.get(name, name)
        pin = Pin(pin_id, board.board_id, board.user_id, uris.get(name, sample.uri), title, None, None, moment, moment)
        if name == "null pin_id":
            pin = replace(pin, pin_id=None)
        elif name == "later row of a repeated pin_id":
            earlier = platform.pins[repeated_id].updated_at
            pin = replace(pin, created_at=earlier, updated_at=earlier + timedelta(minutes=1))
        platform.put(pin, _ODD_KIND.get(reason, "quarantined"))
        if pin.pin_id is not None and reason is not Reason.DUPLICATE_ID:
            platform.save(pin.pin_id, board, pin.updated_at)


def _odd_images(sample: Clipart, images_dir: Path) -> dict[str, str | None]:
    """Writes the odd pictures, each made of the sample, and returns their URIs by name."""
    picture = _small_copy(sample)
    opaque = Image.alpha_composite(Image.new("RGBA", picture.size, "white"), picture).convert("RGB")
    whole = _encode(picture, "PNG")
    grey = opaque.convert("L").tobytes()
    # A grey level g of 0..255 is 257 g of 0..65535; both bytes of the latter are g.
    deep = Image.frombytes("I;16", picture.size, b"".join(bytes((level, level)) for level in grey))
    turned = Image.Exif()
    turned[0x0112] = 6
    files = {
        "truncated PNG": ("truncated.png", whole[: len(whole) // 2]),
        "zero-byte file": ("empty.png", b""),
        "HTML called .png": ("page.png", b"<!DOCTYPE html><title>404</title><p>There is no such picture.</p>\n"),
        "animated GIF": (
            "animated.gif",
            _encode(opaque, "GIF", save_all=True, append_images=[ImageOps.invert(opaque)], duration=200, loop=0),
        ),
        "CMYK JPEG": ("cmyk.jpg", _encode(opaque.convert("CMYK"), "JPEG", quality=90)),
        "16-bit PNG": ("deep.png", _encode(deep, "PNG")),
        "palette PNG with transparency": ("palette.png", _encode(picture.quantize(64, Image.Quantize.FASTOCTREE), "PNG")),
        "EXIF-rotated JPEG": ("turned.jpg", _encode(opaque, "JPEG", quality=90, exif=turned)),
    }
    return {name: _write_image(images_dir / file_name, data) for name, (file_name, data) in files.items()}


def _small_copy(clipart: Clipart) -> Image.Image:
    """The picture as RGBA of 256 x 192, not square so that a rotation shows."""
    with Image.open(clipart.path) as image:
        return image.convert("RGBA").resize((256, 192))


def _edited_copy(clipart: Clipart) -> bytes:
    """PNG of the picture turned by a right angle, its colours inverted and its transparency kept."""
    with Image.open(clipart.path) as image:
        picture = image.convert("RGBA").transpose(Image.Transpose.ROTATE_90)
    picture.thumbnail((512, 512))
    inverted = ImageOps.invert(picture.convert("RGB"))
    inverted.putalpha(picture.getchannel("A"))
    return _encode(inverted, "PNG")


def _encode(image: Image.Image, file_format: str, **options: object) -> bytes:
    buffer = io.BytesIO()
    image.save(buffer, file_format, **options)
    return buffer.getvalue()


def _huge_picture(cliparts: Sequence[Clipart], images_dir: Path) -> str:
    """URI of the largest clip art; of a made one if the clip art has none that large."""
    largest = max(cliparts, key=lambda c: (c.pixels, c.link_to is None, c.name))
    if largest.pixels > _HUGE_PIXELS:
        return largest.uri
    return _write_image(images_dir / "huge.png", _blank_png(width=25_000, height=25_000))


def _blank_png(width: int, height: int) -> bytes:
    """A whole, valid one-bit PNG, made without holding its pixels: a few kilobytes that decode to hundreds of megabytes."""

    def chunk(kind: bytes, data: bytes) -> bytes:
        return struct.pack(">I", len(data)) + kind + data + struct.pack(">I", zlib.crc32(kind + data))

    packer, row = zlib.compressobj(1), bytes(1 + (width + 7) // 8)
    pixels = b"".join(packer.compress(row) for _ in range(height)) + packer.flush()
    header = struct.pack(">IIBBBBB", width, height, 1, 0, 0, 0, 0)
    return b"\x89PNG\r\n\x1a\n" + chunk(b"IHDR", header) + chunk(b"IDAT", pixels) + chunk(b"IEND", b"")


def _write_image(path: Path, data: bytes) -> str:
    """Writes the file, whole or not at all, unless it holds these bytes already; returns its URI."""
    if not path.exists() or path.read_bytes() != data:
        path.parent.mkdir(parents=True, exist_ok=True)
        unfinished = path.with_name(f".{path.name}.unfinished")
        unfinished.write_bytes(data)
        unfinished.replace(path)
    return path.absolute().as_uri()


# -- writing ----------------------------------------------------------------------------------------------------------------


def write_days(
    cliparts: Sequence[Clipart],
    exports_dir: Path,
    images_dir: Path,
    days: Sequence[str] = DEMO_DAYS,
    limit: int | None = None,
) -> list[Day]:
    """Writes the exports of three days below `exports_dir` and returns what is in them.

    Each day appears at once, its marker last; a day that is there with the same bytes is left alone. `limit` is the number
    of ordinary pictures, `MIN_PICTURES` or more: each kind of change is there at any size. Raises ValueError for too few
    pictures or days that are not three in order.
    """
    planned = plan_days(cliparts, images_dir, days, limit)
    for day in planned:
        write_day(day, exports_dir)
    return planned


def write_day(day: Day, exports_dir: Path) -> Path:
    """Writes one day beside its place and renames it there; returns its folder."""
    final = Path(export_day_folder(str(exports_dir), day.ds))
    # A name that no reader takes for a day.
    unfinished = final.with_name(f".unfinished-{day.ds}")
    shutil.rmtree(unfinished, ignore_errors=True)
    rows: dict[str, Sequence[Pin | Board | Save]] = {"pins": day.pins, "boards": day.boards, "saves": day.saves}
    for entity, entity_rows in rows.items():
        (unfinished / entity).mkdir(parents=True)
        schema = _PINS_FILE_SCHEMA if entity == "pins" else EXPORT_SCHEMAS[entity]
        table = pa.Table.from_pylist([asdict(row) for row in entity_rows], schema=schema)
        pq.write_table(table, unfinished / entity / "part-0.parquet", compression="zstd")
    (unfinished / SUCCESS_MARKER).touch()
    if _same_files(unfinished, final):
        shutil.rmtree(unfinished)
    else:
        _replace_folder(unfinished, final)
    return final


def _same_files(left: Path, right: Path) -> bool:
    def contents(folder: Path) -> dict[str, bytes]:
        return {path.relative_to(folder).as_posix(): path.read_bytes() for path in folder.rglob("*") if path.is_file()}

    return right.is_dir() and contents(left) == contents(right)


def _replace_folder(new: Path, final: Path) -> None:
    """Puts `new` in the place of `final`. A folder cannot be renamed onto a full one, so the old day first goes aside:
    a reader in between finds no day, never half of one."""
    aside = new.with_name(f".replaced-{final.name}")
    shutil.rmtree(aside, ignore_errors=True)
    if final.exists():
        final.rename(aside)
    new.rename(final)
    shutil.rmtree(aside, ignore_errors=True)


def parse_args(arguments: Sequence[str] | None = None) -> argparse.Namespace:
    """The command line's arguments."""
    parser = argparse.ArgumentParser(prog="python -m demo.days", description="Makes three days of exports of clip art.")
    parser.add_argument("--cache", type=Path, required=True, help="folder for the clip art, fetched if it is not there")
    parser.add_argument("--exports", type=Path, required=True, help="where the days are written, as ds=YYYY-MM-DD")
    parser.add_argument("--images", type=Path, required=True, help="where edited and broken pictures are written")
    parser.add_argument("--limit", type=int, help=f"take so many pictures ({MIN_PICTURES} or more) instead of all")
    return parser.parse_args(arguments)


def main(arguments: Sequence[str] | None = None) -> int:
    """The command line; returns the exit status."""
    args = parse_args(arguments)
    logging.basicConfig(level=logging.INFO, format="%(message)s", stream=sys.stderr)
    try:
        for day in write_days(read_clipart(fetch(args.cache)), args.exports, args.images, limit=args.limit):
            print(day.summary())
    except (ClipartUnavailableError, ValueError) as error:
        print(f"error: {error}", file=sys.stderr)
        return 1
    return 0


if __name__ == "__main__":
    sys.exit(main())
