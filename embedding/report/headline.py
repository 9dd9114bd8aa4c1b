"""The top of the page: was the night good, in ten seconds. A verdict in words, what needs a look, and eight numbers."""

from __future__ import annotations

from dataclasses import dataclass

from embedding.index.tuning import RECALL_GOAL
from embedding.report.facts import Facts, Night, Releases, ReleaseState, is_released
from embedding.report.markup import NONE, Html, count, day, decimal, element, fragment, plural, seconds, share
from embedding.report.taste import TasteFacts


@dataclass(frozen=True)
class Verdict:
    """`tone` is good, warn, bad or quiet (nothing to judge); `concerns` are sentences, the gate's own first."""

    tone: str
    title: str
    concerns: list[str]


def judge(facts: Facts, release_fault: str | None) -> Verdict:
    """The night's own verdict, and whatever keeps it from being served.

    Args:
        release_fault: Why the live release could not be opened; None where it could, or where there is none.
    """
    night = facts.night
    faults = [*facts.releases.faults, *([release_fault] if release_fault else []), *facts.taste.faults]
    if night is None:
        return Verdict("bad" if faults else "quiet", "No night has run yet", faults)
    concerns = [*faults, *_release_concerns(night, facts.releases), *_taste_concerns(facts.taste)]
    if not night.passed:
        failures = night.failures or ["the gate gave no reason"]
        return Verdict("bad", f"The night of {day(night.ds)} failed its gate", [*failures, *concerns])
    if concerns:
        things = plural(len(concerns), "thing needs a look", "things need a look")
        return Verdict("bad" if faults else "warn", f"The night of {day(night.ds)} passed, but {things}", concerns)
    return Verdict("good", f"The night of {day(night.ds)} was good", [])


def _release_concerns(night: Night, releases: Releases) -> list[str]:
    live = releases.live
    if live is None:
        return [] if releases.faults else ["no release is live: nothing can be searched yet"]
    concerns = []
    if not is_released(night, live.manifest):
        concerns.append(_why_not_released(night, releases, live))
    if live.manifest.recall_at_10 < RECALL_GOAL:
        concerns.append(f"recall@10 of the live release is {live.manifest.recall_at_10:.4f}, below the goal of {RECALL_GOAL}")
    return concerns


def _why_not_released(night: Night, releases: Releases, live: ReleaseState) -> str:
    serving = f"{live.manifest.release_id} ({day(live.manifest.ds)}) still serves"
    if not night.passed:
        return f"no release is built from a failed night: {serving}"
    built = next((state for state in reversed(releases.all) if is_released(night, state.manifest)), None)
    if built is None:
        return f"no release holds this night yet: {serving}"
    if built.check is None:
        return f"release {built.manifest.release_id} of this night was not checked: {serving}"
    if not built.check.passed:
        return (
            f"release {built.manifest.release_id} of this night failed its check ({'; '.join(built.check.failures)}): {serving}"
        )
    return f"release {built.manifest.release_id} of this night was not published: {serving}"


def _taste_concerns(taste: TasteFacts) -> list[str]:
    check = taste.last_check
    if check is None or check.passed:
        return []
    reading = f"{taste.graph.graph_id} is still read" if taste.graph else "no graph is live"
    return [f"the taste graph of {day(check.ds)} failed its check ({'; '.join(check.failures)}): {reading}"]


def render_headline(facts: Facts, verdict: Verdict) -> Html:
    """The banner with the verdict, and the tiles."""
    night = facts.night
    concerns = element("ul", [element("li", concern) for concern in verdict.concerns], class_="concerns")
    empty = fragment("Run a night, or ", element("code", "make demo"), ", and write this report again.")
    banner = element(
        "div",
        element("h1", element("span", _SIGNS[verdict.tone], class_="sign", aria_hidden="true"), verdict.title),
        element("p", _summary(night) if night else empty, class_="summary"),
        concerns if verdict.concerns else None,
        _provenance(facts, night) if night else None,
        class_=f"banner {verdict.tone}",
    )
    return fragment(banner, element("dl", [_tile(*tile) for tile in _tiles(night, facts.releases.live)], class_="tiles"))


_SIGNS = {"good": "✓", "warn": "!", "bad": "✕", "quiet": "·"}


def _summary(night: Night) -> str:
    landed = (
        f"{plural(night.landed, 'pin')} landed ({night.new:,} new, {night.changed:,} changed) and {night.deleted:,} deleted"
    )
    encoded = f"{plural(night.encoded, 'content')} encoded, {plural(night.reused, 'vector')} reused"
    took = f", in {seconds(night.total_s)}" if night.total_s is not None else ""
    return f"{landed}: {encoded}, {night.quarantined:,} quarantined{took}."


def _provenance(facts: Facts, night: Night) -> Html:
    live = facts.releases.live
    pairs = [
        ("run", night.run_id),
        ("checked", f"{night.checked_at:%Y-%m-%d %H:%M} UTC"),
        ("encoder", night.embedding_version),
        ("live release", live.manifest.release_id if live else "none"),
    ]
    return element("p", [element("span", name, " ", element("code", value)) for name, value in pairs], class_="provenance")


def _tile(name: str, value: str, note: str, tone: str) -> Html:
    return element("div", element("dt", name), element("dd", value, class_="big"), element("dd", note), class_=f"tile {tone}")


def _tiles(night: Night | None, live: ReleaseState | None) -> list[tuple[str, str, str, str]]:
    """(name, value, note, tone) of each tile."""
    return [*_release_tiles(live), *(_night_tiles(night) if night else [])]


def _release_tiles(live: ReleaseState | None) -> list[tuple[str, str, str, str]]:
    if live is None:
        return [("Recall@10", NONE, "no live release", ""), ("Live pins", NONE, "no live release", "")]
    manifest = live.manifest
    point = next((point for point in manifest.sweep if point.setting == manifest.setting), None)
    tone = "" if manifest.recall_at_10 >= RECALL_GOAL else "bad"
    tiles = [
        ("Recall@10", f"{manifest.recall_at_10:.4f}", f"live release, goal {RECALL_GOAL}", tone),
        ("Live pins", count(manifest.rows), f"as of {day(manifest.ds)}", ""),
    ]
    if point:
        tiles.append(("One query", f"{point.p50_ms:.2f} ms", f"median; p99 {point.p99_ms:.2f} ms", ""))
    return tiles


def _night_tiles(night: Night) -> list[tuple[str, str, str, str]]:
    tone = "bad" if any("coverage" in failure for failure in night.failures or ()) else ""
    reused = share(night.reused / night.embedded) if night.embedded else NONE
    encode = f"encoding alone {seconds(night.encode_s)}" if night.encode_s is not None else "nothing to encode"
    return [
        ("Coverage", share(night.coverage), f"{night.embedded:,} of {night.landed:,} landed", tone),
        ("Encoded", count(night.encoded), f"{reused} of vectors reused", ""),
        ("Quarantined", count(night.quarantined), "each with its reason", ""),
        ("Images/s", decimal(night.images_per_s, 1), encode, ""),
        ("The night took", seconds(night.total_s), f"land {seconds(night.land_s)}, embed {seconds(night.embed_s)}", ""),
    ]
