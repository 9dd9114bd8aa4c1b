"""FAISS indexes by name: made, searched, merged and opened alike, whatever their family.

A *factory* is a string of FAISS's own language (https://github.com/facebookresearch/faiss/wiki/The-index-factory), for example
`IVF4096,PQ128x4fs,Refine(SQ8)`. Two words are ours:

- `Prefix64,` before it lets the base read the first 64 dimensions alone, which for an encoder with nested dimensions
  (Matryoshka, arXiv 2205.13147) are a good short vector; the refinement then compares all of them.
- `Balanced,` before it rotates the vectors to their principal axes, dealt out so that the parts of the product quantisers
  behind it have about the same variance each (eigenvalue allocation: Ge et al., Optimized Product Quantization, 2013). FAISS's
  PCA centres the vectors as well, which an inner product does not survive, and its OPQ takes minutes where this takes none.
  If a product quantiser refines, the best of its candidates are compared once more by the cosine of their reconstructions:
  a quantised unit vector is no unit vector. Of 100,000 text vectors of 256 dimensions 95.6% of the ten nearest are kept by
  128 bytes; 94.4% without that last step; 89.0% by 128 bytes of scalars (SQ4).

Vectors are float32, L2-normalised; the similarity is the inner product. Rows are numbered from 0 in the order in which they
are added. Nothing here knows of pins, files of a release or Spark.
"""

from __future__ import annotations

import re
from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import faiss
import numpy as np
from numpy.typing import NDArray

from embedding.index.recall import Floats, Ids

_faiss: Any = faiss
"""FAISS without its stubs, which lack much of what its Python interface adds."""

_PREFIX = re.compile(r"Prefix(\d+),(.*),Refine\(([^)]*)\)")
_ROTATION_POINTS = 50_000
GRAPH_EFFORT = 200
"""Candidates that a new vector's neighbours in an HNSW graph are chosen from (arXiv 1603.09320: efConstruction). With FAISS's
own 40 searches among a million text vectors found 0.94 of the ten nearest; with this they find 0.97 at the same `ef_search`."""
_BY_COSINE = 4
_DECODED_AT_ONCE = 16_384
_BALANCED = "Balanced,"
_LISTS = re.compile(r"\bIVF(\d+)")


@dataclass(frozen=True)
class SearchSetting:
    """What a search may trade for speed; 0 where the index has no such parameter.

    nprobe: How many inverted lists a query visits.
    k_factor: How many times k candidates the refinement compares in full.
    ef_search: How many candidates a walk over an HNSW graph keeps.
    """

    nprobe: int = 0
    k_factor: int = 0
    ef_search: int = 0

    def __str__(self) -> str:
        said = [f"{name} {value}" for name, value in vars(self).items() if value]
        return ", ".join(said) or "all rows"

    @property
    def short(self) -> str:
        """The numbers alone, for a chart's labels."""
        return "×".join(str(value) for value in vars(self).values() if value) or "all"


def family_of(factory: str) -> str:
    """A factory without the number of its lists and how they are found.

    >>> family_of("IVF16384_HNSW32,PQ64x4fs,Refine(SQ8)")
    'IVF,PQ64x4fs,Refine(SQ8)'
    """
    return ",".join("IVF" if part.startswith("IVF") else part for part in factory.split(","))


def make_index(factory: str, dim: int) -> faiss.Index:
    """An empty index for inner products. Raises ValueError where FAISS does not know the factory."""
    try:
        if prefixed := _PREFIX.fullmatch(factory):
            first = min(int(prefixed[1]), dim)
            base = faiss.index_factory(first, prefixed[2], faiss.METRIC_INNER_PRODUCT)
            cut = faiss.IndexPreTransform(_faiss.RemapDimensionsTransform(dim, first, False), base)
            fine = faiss.index_factory(dim, prefixed[3], faiss.METRIC_INNER_PRODUCT)
            index: faiss.Index = faiss.IndexRefine(cut, fine)
        elif factory.startswith(_BALANCED):
            turned = faiss.index_factory(dim, factory.removeprefix(_BALANCED), faiss.METRIC_INNER_PRODUCT)
            index = faiss.IndexPreTransform(_faiss.LinearTransform(dim, dim, False), turned)
        else:
            index = faiss.index_factory(dim, factory, faiss.METRIC_INNER_PRODUCT)
    except RuntimeError as error:
        raise ValueError(f"no FAISS index is called {factory!r}") from error
    if isinstance(index, faiss.IndexHNSW):
        index.hnsw.efConstruction = GRAPH_EFFORT
    ivf = faiss.try_extract_index_ivf(index)
    if ivf is not None:
        ivf.cp.seed = 1234
        # Fewer points than 39 a centroid are no fault of a small lake; the recall that was measured says what they gave.
        ivf.cp.min_points_per_centroid = 1
    return index


def train_index(factory: str, dim: int, sample_ND: Floats) -> bytes:
    """An empty, trained index, serialised. Raises ValueError where the sample is too small for the factory."""
    index = make_index(factory, dim)
    if not index.is_trained:
        try:
            if factory.startswith(_BALANCED):
                _balance(index, sample_ND)
            index.train(np.ascontiguousarray(sample_ND))
        except RuntimeError as error:
            raise ValueError(f"{factory} cannot be trained on {len(sample_ND)} vectors") from error
    return serialize(index)


def refinement_of(index: Any) -> Any:
    """The index whose codes refine the answers of another; None where nothing does."""
    index = faiss.downcast_index(index)
    if isinstance(index, faiss.IndexPreTransform):
        return refinement_of(index.index)
    return faiss.downcast_index(index.refine_index) if isinstance(index, faiss.IndexRefine) else None


def _balance(index: Any, sample_ND: Floats) -> None:
    """Sets the rotation of a `Balanced` index, and how its quantisers are trained."""
    some_ND = sample_ND[:_ROTATION_POINTS].astype(np.float64)
    variances, axes = np.linalg.eigh(some_ND.T @ some_ND / len(some_ND))
    ivf: Any = faiss.downcast_index(_faiss.try_extract_index_ivf(index))
    fine: Any = refinement_of(index)
    parts = _deal(np.argsort(-variances), variances, ivf.pq.M)
    if isinstance(fine, faiss.IndexPQ):
        parts = [axis for part in parts for axis in _deal(part, variances, fine.pq.M // ivf.pq.M)]
        quantiser: Any = fine
        quantiser.pq.cp.niter, quantiser.pq.cp.max_points_per_centroid, quantiser.pq.cp.min_points_per_centroid = 10, 40, 1
        quantiser.do_polysemous_training = False  # minutes of annealing for a search that nobody does here
    rotation = _faiss.downcast_VectorTransform(index.chain.at(0))
    faiss.copy_array_to_vector(np.ascontiguousarray(axes.T[np.concatenate(parts)], np.float32).ravel(), rotation.A)
    rotation.set_is_orthonormal()
    rotation.is_trained = True


def _deal(axes: NDArray[np.int64], variances: NDArray[np.float64], count: int) -> list[NDArray[np.int64]]:
    """Axes, the one of largest variance first, in `count` parts of equal length whose variances have about one product."""
    parts: list[list[int]] = [[] for _ in range(count)]
    logs = np.zeros(count)
    for axis in axes:
        room = [number for number, part in enumerate(parts) if len(part) < len(axes) // count]
        taken = min(room, key=lambda number: logs[number])
        parts[taken].append(int(axis))
        logs[taken] += np.log(max(variances[axis], 1e-12)) - np.log(variances.min().clip(1e-12))
    return [np.array(part, np.int64) for part in parts]


def serialize(index: faiss.Index) -> bytes:
    return bytes(faiss.serialize_index(index).tobytes())


def deserialize(data: bytes) -> faiss.Index:
    index: faiss.Index = faiss.deserialize_index(np.frombuffer(data, np.uint8))
    return index


def lists_of(factory: str) -> int:
    """The number of inverted lists in a factory string; 1 where it has none.

    >>> lists_of("RR256,IVF4096_HNSW32,RaBitQfs4"), lists_of("Flat")
    (4096, 1)
    """
    found = _LISTS.search(factory)
    return int(found[1]) if found else 1


def is_mergeable(factory: str) -> bool:
    """Whether parts that were filled apart make one index; a graph does not."""
    return not factory.startswith("HNSW")


def merge_into(whole: faiss.Index, part: faiss.Index) -> None:
    """Moves the rows of `part` behind those of `whole`. Both must come from one trained index, which is what is checked."""
    _merge(whole, part, int(whole.ntotal))


def _merge(whole: Any, part: Any, first_row: int) -> None:
    whole, part = faiss.downcast_index(whole), faiss.downcast_index(part)
    if type(whole) is not type(part):
        raise ValueError(f"{type(part).__name__} cannot be merged into {type(whole).__name__}")
    if isinstance(whole, faiss.IndexRefine):
        _merge(whole.base_index, part.base_index, first_row)
        _merge(whole.refine_index, part.refine_index, first_row)
        whole.ntotal = whole.base_index.ntotal
    elif isinstance(whole, faiss.IndexPreTransform):
        _merge(whole.index, part.index, first_row)
        whole.ntotal = whole.index.ntotal
    elif isinstance(whole, faiss.IndexIVF):
        whole.check_compatible_for_merge(part)
        whole.merge_from(part, first_row)
    else:
        whole.merge_from(part, 0)


def search(
    index: faiss.Index, queries_QD: Floats, k: int, setting: SearchSetting, selector: faiss.IDSelector | None = None
) -> tuple[Floats, Ids]:
    """Scores (Q, k) and rows (Q, k), best first; row -1 where there are fewer than k. Only rows that `selector` takes.

    Thread-safe: all parameters travel with the call.
    """
    fine: Any = refinement_of(index)
    if not isinstance(fine, faiss.IndexPQ):
        scores, rows = index.search(queries_QD, k, params=_parameters(index, setting, selector))
        return scores, rows
    more = k * min(_BY_COSINE, max(1, setting.k_factor))
    wider = replace(setting, k_factor=max(1, setting.k_factor * k // more))
    _, rows = index.search(queries_QD, more, params=_parameters(index, wider, selector))
    return _by_cosine(fine, _turned(index, queries_QD), rows, k)


def search_lists(
    index: Any, queries_QD: Floats, k: int, lists: tuple[Ids, Floats], selector: faiss.IDSelector
) -> tuple[Floats, Ids]:
    """`search` in each query's own inverted lists (Q, P), -1 for none, with their centroids' scores; without refinement."""
    ivf, queries_QE = inner_ivf(index, queries_QD)
    queries_QE = np.ascontiguousarray(queries_QE)
    numbers, scores = (np.ascontiguousarray(array) for array in lists)
    found = np.empty((len(queries_QE), k), np.float32), np.empty((len(queries_QE), k), np.int64)
    at = [_faiss.swig_ptr(array) for array in (queries_QE, numbers, scores, *found)]
    # FAISS's own Python wrapper of this function takes no parameters.
    parameters = _faiss.SearchParametersIVF(nprobe=numbers.shape[1], sel=selector)
    ivf.search_preassigned_c(len(queries_QE), at[0], k, *at[1:], False, parameters)
    return found


def refined_scores(index: Any, queries_QD: Floats, asked: Ids, rows: Ids) -> Floats:
    """Cosines (N,) of pairs: the number of a query, and a row as the refinement of an index keeps it."""
    fine, turned_QD = refinement_of(index), _turned(faiss.downcast_index(index), queries_QD)
    cosines = np.empty(len(rows), np.float32)
    for start in range(0, len(rows), _DECODED_AT_ONCE):
        some = slice(start, start + _DECODED_AT_ONCE)
        cosines[some] = np.einsum("nd,nd->n", reconstruct(fine, rows[some]), turned_QD[asked[some]])
    return cosines


def inner_ivf(index: Any, queries_QD: Floats | None = None) -> tuple[Any, Any]:
    """The inverted lists within an index, and the queries as they see them. Raises ValueError where there are none."""
    inner: Any = faiss.downcast_index(index)
    while not isinstance(inner, faiss.IndexIVF):
        if isinstance(inner, faiss.IndexRefine):
            inner = faiss.downcast_index(inner.base_index)
        elif isinstance(inner, faiss.IndexPreTransform):
            queries_QD = None if queries_QD is None else _turned(inner, queries_QD)
            inner = faiss.downcast_index(inner.index)
        else:
            raise ValueError(f"{type(inner).__name__} has no inverted lists")
    return inner, queries_QD


def _turned(index: Any, vectors_ND: Floats) -> Floats:
    """The vectors as what is within an index sees them."""
    if not isinstance(index, faiss.IndexPreTransform):
        return vectors_ND
    chain: Any = index.chain
    turned_ND: Floats = _faiss.downcast_VectorTransform(chain.at(0)).apply(vectors_ND)
    return turned_ND


def _by_cosine(fine: Any, queries_QD: Floats, rows_QK: Ids, k: int) -> tuple[Floats, Ids]:
    """The k best of each query's rows, by the cosine with their reconstructions."""
    found_QKD = reconstruct(fine, np.maximum(rows_QK, 0).ravel()).reshape(*rows_QK.shape, -1)
    cosines_QK = np.matmul(found_QKD, queries_QD[:, :, None])[:, :, 0]
    scores_QK = np.where(rows_QK >= 0, cosines_QK, -np.inf).astype(np.float32)
    order = np.argsort(-scores_QK, axis=1, kind="stable")[:, :k]
    return np.take_along_axis(scores_QK, order, 1), np.take_along_axis(rows_QK, order, 1)


def _parameters(index: Any, setting: SearchSetting, selector: faiss.IDSelector | None) -> Any:
    index = faiss.downcast_index(index)
    chosen = {} if selector is None else {"sel": selector}
    if isinstance(index, faiss.IndexRefine):
        base = _parameters(index.base_index, setting, selector)
        return _faiss.IndexRefineSearchParameters(k_factor=float(setting.k_factor or 1), base_index_params=base)
    if isinstance(index, faiss.IndexPreTransform):
        return _faiss.SearchParametersPreTransform(index_params=_parameters(index.index, setting, selector))
    if isinstance(index, faiss.IndexIVF):
        return _faiss.SearchParametersIVF(nprobe=min(max(setting.nprobe, 1), index.nlist), **chosen)
    if isinstance(index, faiss.IndexHNSW):
        return _faiss.SearchParametersHNSW(efSearch=max(setting.ef_search, 1), **chosen)
    return faiss.SearchParameters(**chosen)


def open_file(path: Path) -> faiss.Index:
    """An index of a file, memory-mapped as far as its family allows: a list's or a refinement's codes stay in the file until
    they are asked for, fast-scan codes and graphs are read. Its rows can be reconstructed."""
    index: faiss.Index = faiss.read_index(str(path), faiss.IO_FLAG_MMAP_IFC)
    ivf: Any = faiss.try_extract_index_ivf(index)
    if ivf is not None and isinstance(faiss.downcast_InvertedLists(ivf.invlists), faiss.ArrayInvertedLists):
        index = faiss.read_index(str(path), faiss.IO_FLAG_MMAP)
        ivf = faiss.try_extract_index_ivf(index)
        # The threads that read lists ahead cost more than they bring where lists are in the page cache.
        _faiss.downcast_InvertedLists(ivf.invlists).prefetch_nthread = 0
    if ivf is not None and refinement_of(index) is None:
        ivf.make_direct_map()
    return index


def reconstruct(index: faiss.Index, rows: Sequence[int] | Ids) -> Floats:
    """Unit vectors (N, D) of rows, as near to what was added as the index keeps them."""
    wanted = np.asarray(rows, np.int64)
    vectors_ND = index.reconstruct_batch(wanted) if len(wanted) else np.empty((0, index.d), np.float32)
    norms_N1 = np.linalg.norm(vectors_ND, axis=1, keepdims=True)
    unit: Floats = (vectors_ND / np.maximum(norms_N1, 1e-12)).astype(np.float32)
    return unit
