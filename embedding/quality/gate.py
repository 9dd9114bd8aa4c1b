"""The rules of the nightly gate, over counts and sums that a job has gathered. Pure: nothing is read here.

A night that breaks a rule is recorded as failed in `nights`, emits no asset, and no release is built from its day.
"""

from __future__ import annotations

from dataclasses import dataclass

MIN_ROWS_FOR_COLLAPSE_CHECK = 50
MAX_MEAN_VECTOR_NORM = 0.98
"""The norm of the mean of unit vectors is 1 when all are alike. Real nights lie well below; an encoder that has lost its
weights, or reads a constant image, comes close to 1."""

NORM_TOLERANCE = 1e-3


@dataclass(frozen=True)
class NightCounts:
    """What one night left in the tables.

    exported: Rows by the export's Parquet footers, and the deletions that users' deletions imply. All else is the tables' own.
    """

    exported: int
    deleted: int
    landed_usable: int
    new: int
    embedded: int
    embedded_pins: int
    encoded: int
    quarantined: int

    @property
    def landed(self) -> int:
        """Rows of pins in the export that were no deletions."""
        return self.exported - self.deleted

    @property
    def changed(self) -> int:
        return self.landed_usable - self.new

    @property
    def reused(self) -> int:
        return self.embedded - self.encoded

    @property
    def coverage(self) -> float | None:
        return self.embedded / self.landed if self.landed else None


@dataclass(frozen=True)
class VectorFacts:
    """What one pass over a night's vectors found."""

    wrong_dimension: int
    off_norm: int
    mean_vector_norm: float | None


def check_counts(counts: NightCounts, min_coverage: float) -> list[str]:
    """The sentences for what is wrong; empty where nothing is."""
    failures = []
    if counts.landed != counts.embedded + counts.quarantined:
        failures.append(
            f"rows were lost or doubled: {counts.landed} landed, but {counts.embedded} embedded "
            f"and {counts.quarantined} quarantined"
        )
    if counts.embedded != counts.embedded_pins:
        failures.append(f"{counts.embedded - counts.embedded_pins} vectors too many: some pins have more than one")
    if counts.coverage is not None and counts.coverage < min_coverage:
        failures.append(f"coverage {counts.coverage:.3f} is below {min_coverage:.3f}: see the reasons in quarantine")
    return failures


def check_vectors(facts: VectorFacts, rows: int) -> list[str]:
    """As `check_counts`, for the vectors. `rows` is how many there are."""
    failures = []
    if facts.wrong_dimension:
        failures.append(f"{facts.wrong_dimension} vectors of a wrong dimension")
    if facts.off_norm:
        failures.append(f"{facts.off_norm} vectors whose norm is not 1 (within {NORM_TOLERANCE}), or that hold NaN")
    collapsed = facts.mean_vector_norm is not None and facts.mean_vector_norm > MAX_MEAN_VECTOR_NORM
    if collapsed and rows >= MIN_ROWS_FOR_COLLAPSE_CHECK:
        failures.append(f"the vectors are almost all the same (norm of their mean {facts.mean_vector_norm:.3f})")
    return failures
