"""Which index, and how it is searched: chosen by trying, under a recall goal and a budget of bytes a vector.

(docs/decisions/0010-recipes-chosen-by-trying.md)

`try_recipe` builds a plausible family on a sample and sweeps its search parameters; `choose` takes the one that answers
most queries a second among those that reach the goal within the budget, and says why in a sentence. Graphs and lists change
places as rows are added, so the `finalists` of a small sample are tried again on up to `FINAL_ROWS`. `sweep` is then run once
more on the finished index, because the setting that reaches a goal depends on the number of rows.

Throughput is that of one batch on `threads` threads, the median of repetitions; latencies are those of single queries, one
after the other, on one thread.
"""

from __future__ import annotations

import math
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, replace
from functools import partial
from typing import Any, Protocol

import faiss
import numpy as np

from embedding.index.factory import (
    SearchSetting,
    deserialize,
    is_mergeable,
    lists_of,
    make_index,
    refinement_of,
    search,
    serialize,
    train_index,
)
from embedding.index.recall import Floats, Ids, Truth

RECALL_GOAL = 0.95
TOP = 10
POINTS_A_CENTROID = 39
"""FAISS's own minimum for k-means."""
TRAINING_POINTS_A_CENTROID = 64
ID_BYTES = 8
"""A pin's id, beside what the index itself takes."""
COARSE_GRAPH_FROM = 65_536
"""From so many lists on they are found by walking a graph of centroids (HNSW) instead of by comparing all. Not before it must
be: the walk also decides where a vector is stored, and what lies in a list that is not its nearest is found late or never."""
FINAL_ROWS = 1_000_000
"""The finalists are tried on so many vectors at most."""
FINALIST = 0.1
"""A kind of index whose best recipe answers this share of the fastest's queries is tried again on more vectors: of a million
texts a graph was three times as fast as lists at a recall of 0.99, and on 50,000 of them half as fast."""
AS_GOOD, SMALLER = 0.92, 0.75
"""A recipe whose throughput is this share of the best, and that takes this share of its bytes or less, is the better one. Two
that differ in nothing but how finely they refine lie within 6% of each other: at 0.95 noise decided whether ten million pins
take twice the memory. What hardly saves anything does not give up speed for it."""

_MEASURE_S = 0.15
_GAIN = 0.001
_CLOSER_LINES, _CLOSER_STEPS = 2, 3
"""Around the goal: so many factors of refinement, so many settings of each, which come within a tenth of the least effort."""


@dataclass(frozen=True)
class Wanted:
    """What is asked of an index: recall@10, threads that search a batch, bytes a vector at most (None: no limit)."""

    recall_goal: float = RECALL_GOAL
    threads: int = 1
    bytes_budget: float | None = None


@dataclass(frozen=True)
class SearchPoint:
    """What one setting gave: recall@10 against exact search, milliseconds a query, queries a second.

    recall_low: Lower end of the recall's 95% interval over the queries by pin, or over those by words if it is lower: what
        counts against a goal. What just reaches it on the queries of the build falls short on half of all others.
    """

    setting: SearchSetting
    recall_at_10: float
    recall_low: float
    p50_ms: float
    p99_ms: float
    qps: float


@dataclass(frozen=True)
class Trial:
    """What a recipe gave on a sample.

    point: The fastest that reached the goal; where none did, the one of highest recall.
    bytes_a_vector: Of index and pin id, without what does not grow with the rows (centroids, codebooks).
    """

    factory: str
    rows: int
    bytes_a_vector: float
    build_s: float
    point: SearchPoint
    reached: bool
    fits: bool


@dataclass(frozen=True)
class Choice:
    """The recipe of a release, why it was taken, and what was tried.

    chosen_by: The release whose build tried them; later builds of a like size keep its choice.
    """

    factory: str
    why: str
    chosen_by: str
    rows: int
    wanted: Wanted
    trials: list[Trial]


class Searchable(Protocol):
    """What is tuned: an index, or several that are searched as one."""

    def search(self, queries_QD: Floats, k: int, setting: SearchSetting) -> tuple[Floats, Ids]:
        """Scores and ids (Q, k), best first."""


@dataclass(frozen=True)
class OneIndex:
    """A FAISS index whose rows stand for `ids`."""

    index: faiss.Index
    ids: Ids

    def search(self, queries_QD: Floats, k: int, setting: SearchSetting) -> tuple[Floats, Ids]:
        """Scores and ids (Q, k), best first."""
        scores, rows = search(self.index, queries_QD, k, setting)
        return scores, np.where(rows >= 0, self.ids[np.maximum(rows, 0)], -1)


# -- what is tried ---------------------------------------------------------------------------------------------------------


def candidates(rows: int, dim: int, bytes_budget: float | None = None) -> list[str]:
    """The factories worth trying for so many vectors, smallest lakes first; without those that cannot fit the budget.

    A lake of a few thousand pins is searched by comparing all, or by lists of plain vectors. Product quantisation for fast scan
    (arXiv 1812.09162), nested prefixes and RaBitQ (arXiv 2405.12497), all refined, come in where there is enough to train them
    on, or where the budget rules the plain ones out. Not RaBitQ with extra bits instead: FAISS decodes no more of it than the
    signs, at a cosine of 0.92 to the vector, and a search by pin or among a few pins asks with decoded vectors.
    """
    lists = lists_for(rows)
    plain = [f"IVF{lists},Flat", f"IVF{lists},SQ8"] if lists > 1 else []
    found = ["Flat", "SQ8"] if rows <= 200_000 else []
    found += plain
    if rows <= 2_000_000:
        found += ["HNSW16,SQbf16", "HNSW16,SQ8", "HNSW24,SQ8"] if rows >= 1_000 else []
    tight = bytes_budget is not None and all(_least_bytes(name, dim) > bytes_budget for name in found)
    if lists > 1 and (rows >= 20_000 or tight):
        coarse = f"IVF{lists}" + ("_HNSW32" if lists >= COARSE_GRAPH_FROM else "")
        half, quarter, eighth = (f"PQ{max(2, dim // part)}x4fs" for part in (2, 4, 8))
        found += [f"{coarse},{half},Refine(SQfp16)", f"{coarse},{half},Refine(SQ8)", f"{coarse},{quarter},Refine(SQ8)"]
        found += [f"{coarse},{quarter},Refine(SQ4)", f"{coarse},{eighth},Refine(SQ4)"]
        if tight and dim % 16 == 0:
            found += [f"Balanced,{coarse},{part},Refine(PQ{dim // 2})" for part in (quarter, eighth)]
            found += [f"RR{dim},{coarse},RaBitQfs,Refine(PQ{dim // 4}np)"]
        found += [f"RR{dim},{coarse},RaBitQfs,Refine(SQ8)", f"Prefix{dim // 4},{coarse},{eighth},Refine(SQ8)"]
    return [name for name in found if bytes_budget is None or _least_bytes(name, dim) <= bytes_budget]


def lists_for(rows: int) -> int:
    """About 4 sqrt(N) lists, a power of two, as FAISS's guide has it, never fewer than 39 rows a list; 1 for a small lake."""
    lists = min(4 * int(rows**0.5), rows // POINTS_A_CENTROID)
    return 1 << (lists.bit_length() - 1) if lists >= 16 else 1


def _least_bytes(factory: str, dim: int) -> float:
    """A lower bound of the bytes a vector that a factory takes, pin id included."""
    index: Any = make_index(factory, dim)
    if isinstance(faiss.downcast_index(index), faiss.IndexHNSW):
        return float(index.storage.sa_code_size() + 4 * index.hnsw.nb_neighbors(0) + ID_BYTES)
    if (fine := refinement_of(index)) is not None:
        inner: Any = faiss.try_extract_index_ivf(index)
        return float(inner.code_size + 8 + fine.sa_code_size() + ID_BYTES)
    ivf: Any = faiss.try_extract_index_ivf(index)
    code = ivf.code_size + 8 if ivf is not None else index.sa_code_size()
    return float(code + ID_BYTES)


def training_rows(factory: str) -> int:
    """How many vectors a factory is trained on: enough for its lists and for its codebooks."""
    return max(lists_of(factory) * TRAINING_POINTS_A_CENTROID, 20_000)


@dataclass(frozen=True)
class SampleSweep:
    """A recipe's index of a sample, and the settings worth having."""

    factory: str
    rows: int
    bytes_a_vector: float
    build_s: float
    points: list[SearchPoint]

    def trial(self, wanted: Wanted) -> Trial:
        """What it means for a goal and a budget."""
        point = best_point(self.points, wanted.recall_goal)
        return Trial(
            factory=self.factory,
            rows=self.rows,
            bytes_a_vector=self.bytes_a_vector,
            build_s=self.build_s,
            point=point,
            reached=point.recall_low >= wanted.recall_goal,
            fits=wanted.bytes_budget is None or self.bytes_a_vector <= wanted.bytes_budget,
        )


def sweep_sample(
    factory: str,
    vectors_ND: Floats,
    ids_N: Ids,
    queries_QD: Floats,
    truth: Truth,
    wanted: Wanted,
    goals: Sequence[float] = (),
) -> SampleSweep:
    """Builds a factory's index on a sample and sweeps it. `truth` is of the queries' neighbours within that sample."""
    started = time.perf_counter()
    with omp_threads(wanted.threads):
        trained = train_index(factory, vectors_ND.shape[1], vectors_ND[: training_rows(factory)])
        index = deserialize(trained)
        index.add(vectors_ND)
    seconds = round(time.perf_counter() - started, 2)
    size = round((len(serialize(index)) - len(trained)) / len(vectors_ND) + ID_BYTES, 1)
    points = sweep(OneIndex(index, ids_N), factory, queries_QD, truth, wanted, latencies=False, goals=goals)
    return SampleSweep(factory, len(vectors_ND), size, seconds, points)


def try_recipe(factory: str, vectors_ND: Floats, ids_N: Ids, queries_QD: Floats, truth: Truth, wanted: Wanted) -> Trial:
    """`sweep_sample`, for one goal and budget."""
    return sweep_sample(factory, vectors_ND, ids_N, queries_QD, truth, wanted).trial(wanted)


def choose(trials: Sequence[Trial], rows: int, wanted: Wanted, chosen_by: str) -> Choice:
    """The fastest recipe that reaches the goal within the budget; or one that is about as fast and much smaller.

    Where none does both, the budget is kept and the highest recall taken. Raises ValueError where nothing fits the budget.
    """
    goal, bytes_budget = wanted.recall_goal, wanted.bytes_budget
    fitting = [trial for trial in trials if trial.fits]
    if not fitting:
        least = min((trial.bytes_a_vector for trial in trials), default=0.0)
        raise ValueError(f"no index fits in {bytes_budget:g} bytes a vector; the smallest that was tried takes {least:g}")
    reached = [trial for trial in fitting if trial.reached]
    within = "" if bytes_budget is None else f" within {bytes_budget:g} bytes a vector"
    if reached:
        fastest = max(reached, key=lambda trial: trial.point.qps)
        best = _smallest_of_the_fastest(reached)
        why = f"{best.point.qps:,.0f} queries/s at recall@10 {best.point.recall_at_10:.3f}{within}, "
        why += "the most" if best is fastest else f"as good as the fastest ({fastest.factory}) and smaller"
        why += f" of {len(fitting)} recipes on {best.rows:,} vectors; {len(reached)} reached {goal:g}"
    else:
        best = max(fitting, key=lambda trial: trial.point.recall_at_10)
        why = f"none of {len(fitting)} recipes reached recall@10 {goal:g}{within} on {best.rows:,} vectors; this came nearest"
    return Choice(best.factory, why, chosen_by, rows, wanted, list(trials))


def _smallest_of_the_fastest(reached: Sequence[Trial]) -> Trial:
    fastest = max(reached, key=lambda trial: trial.point.qps)
    as_fast = (trial for trial in reached if trial.point.qps >= AS_GOOD * fastest.point.qps)
    smaller = (trial for trial in as_fast if trial.bytes_a_vector <= SMALLER * fastest.bytes_a_vector)
    return min(smaller, key=lambda trial: trial.bytes_a_vector, default=fastest)


def finalists(trials: Sequence[Trial], rows: int) -> list[str]:
    """The graphs and the best lists of a small sample, where a graph and lists may be the best of all `rows`; otherwise none.

    How either grows depends on the vectors: a sample of texts thins out what they are alike in, and a graph finds its way
    among the whole of them with less effort than among a few.
    """
    reached = [trial for trial in trials if trial.fits and trial.reached]
    if not reached or rows <= 2 * max(trial.rows for trial in reached):
        return []
    fastest = max(trial.point.qps for trial in reached)
    close = [trial for trial in reached if trial.point.qps >= FINALIST * fastest]
    graphs = [trial for trial in close if not is_mergeable(trial.factory)]
    lists = [trial for trial in close if lists_of(trial.factory) > 1]
    return [trial.factory for trial in (*graphs, _smallest_of_the_fastest(lists))] if graphs and lists else []


# -- how it is searched ----------------------------------------------------------------------------------------------------


def sweep(
    index: Searchable,
    factory: str,
    queries_QD: Floats,
    truth: Truth,
    wanted: Wanted,
    *,
    latencies: bool = True,
    goals: Sequence[float] = (),
    certain: bool = True,
) -> list[SearchPoint]:
    """The settings that are worth having: none of them is both slower and less exact than another; fastest first.

    Efforts are doubled, and looked at more closely where they come to the goal, or to each of `goals`: where the lower end of
    the recall's interval does or, unless `certain`, the recall itself.
    """
    reaches = _reaches_for_certain if certain else _reaches
    measured: list[SearchPoint] = []
    index.search(queries_QD, TOP + 1, next(next(_lines_of_settings(factory))))  # what was just built or opened is cold
    for line in _lines_of_settings(factory):
        best_before = max((point.recall_at_10 for point in measured), default=0.0)
        before = -1.0
        for setting in line:
            point = _measure(index, setting, queries_QD, truth, wanted.threads)
            measured.append(point)
            fastest = max((p.qps for p in measured if p.recall_at_10 >= max(wanted.recall_goal, 0.99)), default=0.0)
            if point.recall_at_10 >= 0.9995 or point.recall_at_10 - before < _GAIN or point.qps < fastest:
                break
            before = point.recall_at_10
        if len(measured) > 1 and max(point.recall_at_10 for point in measured) - best_before < _GAIN:
            break
    for goal in goals or (wanted.recall_goal,):
        for under, above in _around(measured, partial(reaches, goal)):
            measured += _closer(index, under, above, partial(reaches, goal), queries_QD, truth, wanted.threads)
    measured = _steady(measured)
    frontier = [point for point in measured if not any(_dominates(other, point) for other in measured)]
    frontier.sort(key=lambda point: -point.qps)
    return [_with_latencies(index, point, queries_QD) if latencies else point for point in frontier]


def _reaches(goal: float, point: SearchPoint) -> bool:
    return point.recall_at_10 >= goal


def _reaches_for_certain(goal: float, point: SearchPoint) -> bool:
    return point.recall_low >= goal


def _around(measured: Sequence[SearchPoint], reaches: Callable[[SearchPoint], bool]) -> list[tuple[SearchPoint, SearchPoint]]:
    """Of the fastest lines that reach the goal: the last setting that misses it, and the first that does not."""
    found = []
    for factor in {point.setting.k_factor for point in measured}:
        line = sorted((p for p in measured if p.setting.k_factor == factor), key=lambda point: _effort(point.setting))
        first = next((number for number, point in enumerate(line) if reaches(point)), 0)
        if first:
            found.append((line[first - 1], line[first]))
    return sorted(found, key=lambda pair: -pair[1].qps)[:_CLOSER_LINES]


def _closer(
    index: Searchable,
    under: SearchPoint,
    above: SearchPoint,
    reaches: Callable[[SearchPoint], bool],
    queries_QD: Floats,
    truth: Truth,
    threads: int,
) -> list[SearchPoint]:
    """Settings between two of one line, each at the geometric mean of the nearest ones around the goal."""
    found = []
    for _ in range(_CLOSER_STEPS):
        effort = round(math.sqrt(_effort(under.setting) * _effort(above.setting)))
        if effort in (_effort(under.setting), _effort(above.setting)):
            break
        name = "ef_search" if above.setting.ef_search else "nprobe"
        found.append(_measure(index, replace(above.setting, **{name: effort}), queries_QD, truth, threads))
        under, above = (under, found[-1]) if reaches(found[-1]) else (found[-1], above)
    return found


def _effort(setting: SearchSetting) -> int:
    return setting.ef_search or setting.nprobe


def _dominates(other: SearchPoint, point: SearchPoint) -> bool:
    at_least = other.recall_at_10 >= point.recall_at_10 and other.qps >= point.qps
    return at_least and (other.recall_at_10, other.qps) != (point.recall_at_10, point.qps)


def _steady(measured: Sequence[SearchPoint]) -> list[SearchPoint]:
    """The points, of each line none slower than one of more effort: where the clock says so, it was disturbed."""
    steady: list[SearchPoint] = []
    for factor in {point.setting.k_factor for point in measured}:
        least = 0.0
        line = sorted((p for p in measured if p.setting.k_factor == factor), key=lambda p: -_effort(p.setting))
        for point in line:
            least = max(point.qps, 1.001 * least)
            steady.append(replace(point, qps=round(least, 1)))
    return steady


def _lines_of_settings(factory: str) -> Iterator[Iterator[SearchSetting]]:
    """Lines of ever more thorough settings, one line a factor of refinement."""
    lists = lists_of(factory)
    if not is_mergeable(factory):
        yield (SearchSetting(ef_search=8 << i) for i in range(8))
    elif "Refine" in factory:
        for factor in (2, 4, 8, 16, 32, 64):
            yield (SearchSetting(nprobe=1 << i, k_factor=factor) for i in range(lists.bit_length()))
    elif lists > 1:
        yield (SearchSetting(nprobe=1 << i) for i in range(lists.bit_length()))
    else:
        yield iter([SearchSetting()])


def best_point(points: Sequence[SearchPoint], goal: float = RECALL_GOAL) -> SearchPoint:
    """The fastest that reaches the goal beyond doubt (`recall_low`); where none does, the one of highest recall."""
    reached = [point for point in points if point.recall_low >= goal]
    return max(reached, key=lambda point: point.qps) if reached else max(points, key=lambda point: point.recall_at_10)


def _measure(index: Searchable, setting: SearchSetting, queries_QD: Floats, truth: Truth, threads: int) -> SearchPoint:
    with omp_threads(threads):
        seconds: list[float] = []
        while not seconds or (sum(seconds) < _MEASURE_S and len(seconds) < 20):
            started = time.perf_counter()
            _, ids = index.search(queries_QD, TOP + 1, setting)
            seconds.append(time.perf_counter() - started)
    qps = len(queries_QD) / float(np.median(seconds))
    return SearchPoint(setting, round(truth.recall(ids), 4), round(truth.recall_low(ids), 4), 0.0, 0.0, round(qps, 1))


def single_query_ms(ask: Callable[[Floats], object], queries_QD: Floats) -> Floats:
    """Milliseconds of each query (1, D) asked alone, on one thread; (Q,)."""
    times = []
    with omp_threads(1):
        for query in queries_QD:
            started = time.perf_counter()
            ask(query[None, :])
            times.append((time.perf_counter() - started) * 1_000)
    return np.array(times, np.float32)


def _with_latencies(index: Searchable, point: SearchPoint, queries_QD: Floats) -> SearchPoint:
    milliseconds = single_query_ms(lambda query_1D: index.search(query_1D, TOP + 1, point.setting), queries_QD[:300])
    p50, p99 = (round(float(np.percentile(milliseconds, share)), 4) for share in (50, 99))
    return replace(point, p50_ms=p50, p99_ms=p99)


@contextmanager
def omp_threads(threads: int) -> Iterator[None]:
    """FAISS on so many threads meanwhile."""
    before = faiss.omp_get_max_threads()
    faiss.omp_set_num_threads(max(1, threads))
    try:
        yield
    finally:
        faiss.omp_set_num_threads(before)
