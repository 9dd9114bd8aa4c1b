"""The part of the page about taste: the graph and its gate, a map of interests, and a few users with pictures."""

from __future__ import annotations

from dataclasses import dataclass

from embedding.contracts import RELATED_PINS, USER_INTERESTS
from embedding.index.reader import Release
from embedding.report.charts import Bar, Series, stacked_bars
from embedding.report.gallery import Row, Tile
from embedding.report.history import DayPoint, over_days
from embedding.report.interest_map import InterestMap, draw_map, make_map
from embedding.report.markup import NONE, Html, count, day, decimal, element, fragment, plural, share, shorten
from embedding.report.profiles import Profile, Profiles, make_profiles
from embedding.report.sections import gallery_row, note, numbers, pill, query_and_strip, section, short_count, table
from embedding.report.taste import TasteFacts, current_users, sample_interests, users_to_show
from embedding.tables.lake import Lake
from embedding.taste.checks import TasteCheck
from embedding.taste.graph import GraphManifest

_LABEL_CHARS = 80


@dataclass(frozen=True)
class Tastes:
    """Of the users: `users` of them were looked at, all of them where `whole`; None for the map where nobody has interests."""

    users: int
    whole: bool
    map: InterestMap | None
    profiles: Profiles


def make_tastes(lake: Lake, release: Release) -> Tastes:
    """The users' part, under the release's encoder."""
    users = current_users(lake, release.manifest.embedding_version)
    sample = sample_interests(lake, users)
    profiles = make_profiles(lake, release, users_to_show(users))
    return Tastes(len(users.user_ids), users.whole, make_map(sample) if sample else None, profiles)


def taste_section(facts: TasteFacts, tastes: Tastes | None) -> Html:
    """All of it; a sentence for each piece that is not there.

    Args:
        tastes: None where there is no live release, or it cannot be opened.
    """
    lead = (
        "Who keeps which pin on which board, as a graph that walks pass through; and what each user is interested in, as "
        "clusters of what they saved."
    )
    if facts.graph is None and not facts.checks and not (tastes and tastes.map):
        nothing = "There is no graph and nobody's interests are known yet: run the DAG ", element("code", "taste_profiles"), "."
        return section("taste", "Taste", None, *(note(fault) for fault in facts.faults), note(*nothing))
    return section("taste", "Taste", lead, _graph_and_gate(facts), _charts(facts), _users(tastes))


def _graph_and_gate(facts: TasteFacts) -> Html:
    graph = _graph_table(facts.graph) if facts.graph else note("No graph is live.")
    check = facts.last_check
    gate = _gate(check) if check else note("No check of a graph is noted.")
    return fragment(element("h3", "The graph and its gate"), element("div", graph, gate, class_="halves"))


def _graph_table(graph: GraphManifest) -> Html:
    rows = [
        element(
            "tr",
            element("th", name.capitalize(), scope="row"),
            numbers(
                *(count(number) for number in (side.nodes, side.edges, side.pruned)),
                *(count(degree) for degree in (side.degree_p50, side.degree_p99, side.degree_max)),
            ),
        )
        for name, side in graph.sides.items()
    ]
    head = ["", "Nodes", "Edges", "Left out", "Median", "99th", "Most"]
    made_of = plural(len(graph.days), "day")
    said = element("span", element("code", graph.graph_id), f", of {made_of}; edges a node: median, 99th percentile, most")
    top = element("div", pill("live", "good"), said, class_="gate")
    return element("div", top, table("The live graph", head, rows), _origin(graph))


def _origin(graph: GraphManifest) -> Html | None:
    """What a graph was made from, where that is told."""
    if (made := graph.increment) is not None:
        said = f"Made from {made.since}: {plural(made.added, 'edge')} added, {made.removed:,} removed."
        return element("p", said, class_="lead origin")
    return element("p", f"Built whole: {graph.why_whole}.", class_="lead origin") if graph.why_whole else None


def _gate(check: TasteCheck) -> Html:
    """What the last check counted, and what it would have let through."""
    counts = check.counts
    fine = pill("passed", "good") if check.passed else pill("failed", "bad")
    said = element("span", f"the last check, of {day(check.ds)}, ", element("code", check.graph_id))
    failures = element("ul", [element("li", failure) for failure in check.failures]) if check.failures else None
    changing = [
        ("Edges", float(counts.edges), counts.edges_before, 0),
        ("Interests a user", counts.interests_a_user, counts.interests_a_user_before, 2),
    ]
    rows = [
        _gate_row(name, decimal(now, digits), decimal(before, digits), _bounds(check.bounds(before), digits))
        for name, now, before, digits in changing
    ]
    rows += [
        _gate_row("Users with interests of their history", count(counts.up_to_date), NONE, count(counts.users)),
        _gate_row("Edges that only the graph has, or only the tables", count(counts.other_edges), NONE, "0"),
        _gate_row("Pins without a row of related pins", count(counts.no_row), NONE, "0"),
        _gate_row("Rows that name a pin that left", count(counts.naming_gone), NONE, "0"),
    ]
    top = element("div", fine, said, failures, class_="gate")
    return element("div", top, table("The gate's counts", ["", "Now", "Before", "Let through"], rows))


def _gate_row(name: str, *values: str) -> Html:
    return element("tr", element("th", name, scope="row"), numbers(*values))


def _bounds(bounds: tuple[float, float] | None, digits: int) -> str:
    return f"{bounds[0]:,.{digits}f} to {bounds[1]:,.{digits}f}" if bounds else "any"


def _charts(facts: TasteFacts) -> Html | None:
    """Lines and bars over the days; None where there is one day alone."""
    latest = {check.ds: check for check in facts.checks}
    days = [latest[ds] for ds in sorted(latest)]
    charts = []
    if len(days) > 1:
        edges = [_point(check, float(check.counts.edges), check.counts.edges_before, 0) for check in days]
        charts.append(over_days("Edges of the graph", edges, short_count))
        of_user = [_point(check, check.counts.interests_a_user, check.counts.interests_a_user_before, 2) for check in days]
        charts.append(over_days("Interests a user", of_user, short_count))
    related, interests = (facts.written.get(contract.name, {}) for contract in (RELATED_PINS, USER_INTERESTS))
    written = sorted({*related, *interests})
    if len(written) > 1:
        series = [
            Series("pins walked from", "encoded", [float(related.get(ds, 0)) for ds in written]),
            Series("interests clustered", "other", [float(interests.get(ds, 0)) for ds in written]),
        ]
        charts.append(stacked_bars("Rows that a day wrote", [Bar(ds[5:], ds) for ds in written], series, short_count))
    return element("div", charts, class_="charts") if charts else None


def _point(check: TasteCheck, value: float, before: float | None, digits: int) -> DayPoint:
    said = f"{check.ds}: {value:,.{digits}f}, {'passed' if check.passed else 'failed'}"
    bounds = check.bounds(before)
    if bounds:
        said += f"; let through were {_bounds(bounds, digits)}"
    return DayPoint(check.ds, value, said, bounds, bad=not check.passed)


def _users(tastes: Tastes | None) -> Html:
    if tastes is None:
        return note("Nobody's interests can be shown: there is no live release whose vectors they are clusters of.")
    if tastes.map is None:
        return note(
            "Nobody has interests under the live release's encoder yet: run the DAG ", element("code", "taste_profiles"), "."
        )
    profiles = tastes.profiles
    return fragment(
        element("h3", "A map of interests"),
        element("p", _map_lead(tastes, tastes.map), class_="lead"),
        draw_map(tastes.map),
        element("h3", f"{plural(len(profiles.users), 'user')}, and what they would be shown"),
        note(profiles.graph_fault) if profiles.graph_fault else None,
        [_profile(profile) for profile in profiles.users],
        _related(profiles.related) if profiles.related else None,
    )


def _map_lead(tastes: Tastes, made: InterestMap) -> str:
    people = len({int(user) for user in made.sample.user_ids})
    whose = "everybody" if people == tastes.users and tastes.whole else f"{people:,} users who were drawn by lot"
    if not tastes.whole:
        whose += f" from the {tastes.users:,} whose interests changed last"
    groups = f"colour the nearest of {len(made.names)} groups, named by the tags that tell them from the others"
    of_whom = f"{plural(len(made.sample), 'interest')} of {whose}"
    return f"{of_whom}, each at its medoid's place: near is alike. Area is importance, {groups}."


def _profile(profile: Profile) -> Html:
    rest = profile.of_interests - len(profile.interests)
    more = f", the first {len(profile.interests)} here" if rest else ""
    said = f"{plural(profile.of_interests, 'interest')} in {plural(profile.pins, 'pin')}{more}"
    rows = [
        _profile_row(
            shorten(interest.label or "without tags", _LABEL_CHARS),
            f"{share(interest.share)} of the importance, {plural(interest.size, 'pin')}",
            interest.pins,
        )
        for interest in profile.interests
    ]
    shown = _profile_row("What we would show", f"diversity {profile.diversity:.2f}", profile.recommended)
    return element(
        "div",
        element("h4", f"User {profile.user_id}", element("small", said)),
        element("div", rows, class_="interests"),
        shown if profile.recommended else None,
        class_="profile card",
    )


def _profile_row(name: str, said: str, pins: list[Tile]) -> Html:
    query = fragment(element("strong", element("bdi", name)), said)
    return element("div", query_and_strip(name, query, pins), class_="gallery")


def _related(row: Row) -> Html:
    return fragment(element("h3", "A pin, and what walks from it pass most often"), gallery_row(row))
