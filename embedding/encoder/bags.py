"""Bags: the pins of a board dealt into batches' worth of neighbours, and hard negatives for each.

Plain Python over Arrow and NumPy. Every choice is a hash of ids and a seed: equal boards give equal bags, whatever the order
of the rows.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence

import numpy as np
import numpy.typing as npt
import pyarrow as pa
import pyarrow.compute as pc

from embedding.encoder.training_set import BAGS_SCHEMA, MEMBER, Ints, runs_of

PLACE_BITS = 31

LIGHT_MEMBER = pa.struct([(name, MEMBER.field(name).type) for name in ("pin_id", "duplicate_group", "weight")])
"""A pin of a bag without what is heavy."""

BOARDS = pa.schema(
    [("board_id", pa.int64()), ("owner", pa.int64()), ("category", pa.string()), ("pins", pa.list_(LIGHT_MEMBER))]
)
"""A training board with its pins, still without pictures."""

DEALT = pa.schema([*BOARDS, ("bag", pa.int64()), ("place", pa.int64())])
"""A bag: the `bag`-th of its board, at `place` (PLACE_BITS bits) in the order of all bags."""

CANDIDATES = pa.schema([*LIGHT_MEMBER, ("user_id", pa.int64()), ("board_ids", pa.list_(pa.int64()))])
"""A training pin that may be a negative."""

CHOSEN = pa.schema([*DEALT, ("negatives", pa.list_(LIGHT_MEMBER))])


def scramble(ids: Ints, seed: int) -> npt.NDArray[np.uint64]:
    """A pseudo-random 64-bit number for each id, the same on every machine (splitmix64's finaliser)."""
    x = ids.astype(np.uint64) + np.uint64(seed)
    x = (x ^ (x >> np.uint64(30))) * np.uint64(0xBF58476D1CE4E5B9)
    x = (x ^ (x >> np.uint64(27))) * np.uint64(0x94D049BB133111EB)
    return x ^ (x >> np.uint64(31))


def deal_bags(batches: Iterable[pa.RecordBatch], bag_size: int, seed: int) -> Iterator[pa.RecordBatch]:
    """From BOARDS to DEALT: each board's pins, in a pseudo-random order, dealt like cards to as few bags as hold them.

    So each pin of a board is in one of its bags, and the bags' sizes differ by at most one.
    """
    for batch in batches:
        pins = batch.column("pins")
        size = pc.list_value_length(pins).to_numpy(zero_copy_only=False).astype(np.int64)
        board = np.repeat(np.arange(len(size)), size)
        flat = pins.flatten()
        ids = flat.field("pin_id").to_numpy(zero_copy_only=False)
        boards = batch.column("board_id").to_numpy(zero_copy_only=False)
        shuffled = np.lexsort((ids, scramble(ids ^ boards[board], seed), board))
        rank = np.arange(len(ids)) - np.repeat(np.cumsum(size) - size, size)
        bags = -(-size // bag_size)
        bag_in_board = rank % np.maximum(bags, 1)[board]
        by_bag = np.lexsort((rank, bag_in_board, board))
        bag_board, bag = np.repeat(np.arange(len(size)), bags), np.arange(bags.sum()) - np.repeat(np.cumsum(bags) - bags, bags)
        sizes = np.bincount((np.cumsum(bags) - bags)[board] + bag_in_board, minlength=int(bags.sum()))
        members = pa.ListArray.from_arrays(_offsets(sizes), flat.take(pa.array(shuffled[by_bag])))
        place = scramble(boards[bag_board] ^ (bag << 32), seed + 1) >> np.uint64(64 - PLACE_BITS)
        names = ["board_id", "owner", "category"]
        columns = [batch.column(name).take(pa.array(bag_board)) for name in names]
        yield pa.RecordBatch.from_arrays(
            [*columns, members.cast(DEALT.field("pins").type), pa.array(bag), pa.array(place.astype(np.int64))], schema=DEALT
        )


def choose_negatives(bags: pa.Table, candidates: pa.Table, *, count: int, seed: int) -> pa.Table:
    """DEALT bags with up to `count` negatives each (CHOSEN), out of CANDIDATES of the same category.

    A negative is not on the bag's board, not by the board's owner, and in none of the bag's duplicate groups. Among those
    that may be, the choice is a hash of pin and bag. Costs bags x candidates steps: the caller bounds both.
    """
    candidates = candidates.sort_by("pin_id").combine_chunks()
    ids, groups, users = (candidates[name].to_numpy() for name in ("pin_id", "duplicate_group", "user_id"))
    boards = candidates["board_ids"].combine_chunks()
    on_board = boards.flatten().to_numpy(zero_copy_only=False)
    whose = pc.list_parent_indices(boards).to_numpy(zero_copy_only=False)
    chosen: list[Ints] = []
    for bag in bags.select(["board_id", "owner", "pins", "bag"]).to_pylist():
        allowed = (users != bag["owner"]) & ~np.isin(groups, [pin["duplicate_group"] for pin in bag["pins"]])
        allowed[whose[on_board == bag["board_id"]]] = False
        rows = np.flatnonzero(allowed)
        draw = scramble(ids[rows] ^ bag["board_id"], seed + 2 + bag["bag"])
        chosen.append(rows[np.argsort(draw, kind="stable")[:count]])
    members = pa.StructArray.from_arrays(
        [candidates[field.name].combine_chunks() for field in LIGHT_MEMBER], fields=list(LIGHT_MEMBER)
    )
    taken = members.take(pa.array(np.concatenate([np.zeros(0, np.int64), *chosen])))
    negatives = pa.ListArray.from_arrays(_offsets([len(rows) for rows in chosen]), taken)
    return bags.select(DEALT.names).append_column(CHOSEN.field("negatives"), negatives)


def _offsets(sizes: Sequence[int] | Ints) -> pa.Array:
    return pa.array(np.concatenate([[0], np.cumsum(sizes, dtype=np.int64)]).astype(np.int32))


BAG_KEY = ("shard", "place", "board_id", "bag")
ITEMS = pa.schema(
    [
        *[(name, pa.int64()) for name in BAG_KEY],
        ("category", pa.string()),
        ("position", pa.int32()),
        ("negative", pa.bool_()),
        *MEMBER,
    ]
)
"""A pin of a bag with all that is read of it, on the way to BAGS_SCHEMA."""


def assemble_bags(batches: Iterable[pa.RecordBatch]) -> Iterator[pa.RecordBatch]:
    """From ITEMS, sorted by BAG_KEY and `position`, to bags: BAGS_SCHEMA and the column `shard`."""
    for rows, _ in runs_of(batches, BAG_KEY, 1 << 30):
        negative = rows["negative"].combine_chunks()
        items = pa.StructArray.from_arrays([rows[f.name].combine_chunks() for f in MEMBER], fields=list(MEMBER))
        lists = [items.filter(pc.invert(negative)), items.filter(negative)]
        pins, negatives = (pa.ListArray.from_arrays(_offsets([len(one)]), one) for one in lists)
        first = rows.slice(0, 1)
        columns = [first[name].combine_chunks() for name in ("board_id", "category", "shard")]
        arrays = [columns[0], columns[1], pins, negatives, columns[2]]
        yield pa.RecordBatch.from_arrays(arrays, schema=BAGS_SCHEMA.append(pa.field("shard", pa.int64())))
