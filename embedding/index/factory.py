"""FAISS indexes by name: made, searched, merged and opened alike, whatever their family.

A *factory* is a string of FAISS's own language (https://github.com/facebookresearch/faiss/wiki/The-index-factory), for example
`IVF4096,PQ128x4fs,Refine(SQ8)`. One word is ours: `Prefix64,` before it lets the base read the first 64 dimensions alone,
which for an encoder with nested dimensions (Matryoshka, arXiv 2205.13147) are a good short vector; the refinement then
compares all of them.

Vectors are float32, L2-normalised; the similarity is the inner product. Rows are numbered from 0 in the order in which they
are added. Nothing here knows of pins, files of a release or Spark.
"""

from __future__ import annotations

import re
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import faiss
import numpy as np

from embedding.index.recall import Floats, Ids

_faiss: Any = faiss
"""FAISS without its stubs, which lack much of what its Python interface adds."""

_PREFIX = re.compile(r"Prefix(\d+),(.*),Refine\(([^)]*)\)")
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
        else:
            index = faiss.index_factory(dim, factory, faiss.METRIC_INNER_PRODUCT)
    except RuntimeError as error:
        raise ValueError(f"no FAISS index is called {factory!r}") from error
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
            index.train(np.ascontiguousarray(sample_ND))
        except RuntimeError as error:
            raise ValueError(f"{factory} cannot be trained on {len(sample_ND)} vectors") from error
    return serialize(index)


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
    scores, rows = index.search(queries_QD, k, params=_parameters(index, setting, selector))
    return scores, rows


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
    if ivf is not None and not isinstance(index, faiss.IndexRefine):
        ivf.make_direct_map()
    return index


def reconstruct(index: faiss.Index, rows: Sequence[int] | Ids) -> Floats:
    """Unit vectors (N, D) of rows, as near to what was added as the index keeps them."""
    wanted = np.asarray(rows, np.int64)
    vectors_ND = index.reconstruct_batch(wanted) if len(wanted) else np.empty((0, index.d), np.float32)
    norms_N1 = np.linalg.norm(vectors_ND, axis=1, keepdims=True)
    unit: Floats = (vectors_ND / np.maximum(norms_N1, 1e-12)).astype(np.float32)
    return unit
