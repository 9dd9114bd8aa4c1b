"""The page below its headline, section by section: facts in, HTML out. A missing piece is a sentence, never an error."""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence
from itertools import groupby
from statistics import median

from embedding.contracts import Reason
from embedding.index.factory import family_of
from embedding.index.release import Manifest
from embedding.index.tuning import RECALL_GOAL, Choice, Trial
from embedding.report.charts import Bar, Series, recall_against_latency, recipes_against, stacked_bars
from embedding.report.facts import Example, Facts, Night, QuarantineGroup, Releases, ReleaseState, TableState
from embedding.report.gallery import Galleries, Row, Tile
from embedding.report.history import recall_over_time
from embedding.report.markup import (
    Child,
    Html,
    count,
    day,
    decimal,
    element,
    fragment,
    plural,
    seconds,
    share,
    shorten,
    shorten_middle,
    size,
)

_TITLE_CHARS, _DETAIL_CHARS, _URI_CHARS = 80, 160, 56

REASONS = {
    Reason.NULL_ID: "the row has no id",
    Reason.DUPLICATE_ID: "another row of the day has the same key",
    Reason.INVALID_TEXT: "the text is no valid text",
    Reason.TEXT_TOO_LONG: "a text is longer than any that is read",
    Reason.EMPTY_PIN: "neither a picture nor a word",
    Reason.UNSUPPORTED_SCHEME: "the picture's address is of a kind that is not read",
    Reason.INVALID_URI: "the picture's address is no address",
    Reason.FORBIDDEN_ADDRESS: "the picture's address leads into a private network",
    Reason.MISSING_IMAGE: "there is no file at the picture's address",
    Reason.EMPTY_IMAGE: "the picture's file has no bytes",
    Reason.TOO_MANY_BYTES: "the picture's file is too large",
    Reason.FETCH_FAILED: "the picture could not be fetched",
    Reason.NOT_AN_IMAGE: "what lies there is no picture",
    Reason.TRUNCATED_IMAGE: "the picture's file ends too early",
    Reason.TOO_MANY_PIXELS: "the picture has too many pixels",
    Reason.DECODE_FAILED: "the picture cannot be decoded",
    Reason.INVALID_VECTOR: "the encoder gave no usable vector",
}
"""The reasons of the contract in words for people."""


def section(anchor: str, title: str, lead: Child, *children: Child) -> Html:
    head = element("h2", title, id=f"{anchor}-title")
    intro = element("p", lead, class_="lead") if lead else None
    return element("section", head, intro, children, id=anchor, aria_labelledby=f"{anchor}-title")


def note(*children: Child) -> Html:
    """A sentence in the place of something that is not there."""
    return element("p", children, class_="note card")


def table(label: str, head: Sequence[str], rows: Sequence[Html], numeric_from: int = 1) -> Html:
    """A table in a box of its own that scrolls sideways; the columns from `numeric_from` on are numbers."""
    cells = [element("th", name, scope="col", class_="num" if i >= numeric_from else None) for i, name in enumerate(head)]
    inner = element("table", element("thead", element("tr", cells)), element("tbody", rows))
    return element("div", inner, class_="scroll card", role="region", aria_label=label, tabindex=0)


def numbers(*values: Child) -> list[Html]:
    """Cells of a table that are numbers."""
    return [element("td", value, class_="num") for value in values]


def nights_section(nights: Sequence[Night]) -> Html:
    """Charts and a table of the last runs: what they did, and how fast."""
    if not nights:
        return section("nights", "The nights", None, note("No night has been checked yet."))
    charts = element("div", _work_chart(nights), _seconds_chart(nights), _speed_chart(nights), class_="charts")
    lead = (
        f"The last {plural(len(nights), 'run')}. An unchanged pin keeps its vector, and a content is encoded once, "
        "however many pins show it."
    )
    return section("nights", "The nights", lead, charts, _nights_table(nights))


def _bars(nights: Sequence[Night]) -> list[Bar]:
    return [Bar(night.ds[5:], f"{night.ds} ({night.status})", bad=not night.passed) for night in nights]


def _work_chart(nights: Sequence[Night]) -> Html:
    kinds = (("reused", "reused"), ("encoded", "encoded"), ("quarantined", "quarantined"))
    series = [Series(name, kind, [float(getattr(night, name)) for night in nights]) for name, kind in kinds]
    return stacked_bars("What became of the pins", _bars(nights), series, short_count)


def _seconds_chart(nights: Sequence[Night]) -> Html:
    unit, scale = _time_unit([night.total_s or 0.0 for night in nights])

    def scaled(name: str) -> list[float | None]:
        values = [getattr(night, name) for night in nights]
        return [None if value is None else value / scale for value in values]

    names = (("land", "land", "land_s"), ("fetch, hash, commit", "other", "embed_other_s"), ("encode", "encoded", "encode_s"))
    series = [Series(name, kind, scaled(column)) for name, kind, column in names]
    return stacked_bars(f"Where the time went, in {unit}", _bars(nights), series, short_count)


def _time_unit(durations_s: Sequence[float]) -> tuple[str, float]:
    """(name, seconds) of the unit that fits the ordinary night.

    >>> _time_unit([30.0, 45.0, 9_000.0])
    ('seconds', 1.0)
    """
    ordinary = median(durations_s)
    return next(
        ((unit, scale) for unit, scale in (("hours", 3_600.0), ("minutes", 60.0)) if ordinary >= 2 * scale), ("seconds", 1.0)
    )


def _speed_chart(nights: Sequence[Night]) -> Html:
    series = [Series("images a second", "encoded", [night.images_per_s for night in nights])]
    return stacked_bars("Images a second while encoding", _bars(nights), series, short_count)


def short_count(value: float) -> str:
    """A number in five characters or so.

    >>> short_count(1234.0), short_count(12_345.0), short_count(7.25)
    ('1.2k', '12k', '7.2')
    """
    for unit, scale in (("M", 1e6), ("k", 1e3)):
        if value >= scale:
            return f"{value / scale:.1f}".removesuffix(".0") + unit if value < 10 * scale else f"{value / scale:.0f}{unit}"
    return f"{value:.1f}".removesuffix(".0") if value < 10 else f"{value:.0f}"


_NIGHT_HEAD = ("landed", "new", "changed", "deleted", "encoded", "reused", "quarantined")


def _nights_table(nights: Sequence[Night]) -> Html:
    head = ["Day", "Status", *(name.capitalize() for name in _NIGHT_HEAD), "Coverage", "Images/s", "Took"]
    several_encoders = len({night.embedding_version for night in nights}) > 1
    rows: list[Html] = []
    decided: set[tuple[str, str]] = set()
    for night in reversed(nights):
        key = (night.ds, night.embedding_version)
        rows.append(_night_row(night, with_encoder=several_encoders, superseded=key in decided))
        decided.add(key)
        if night.failures:
            reasons = element("span", "; ".join(night.failures))
            rows.append(element("tr", element("td", reasons, colspan=len(head), class_="failure"), class_="more"))
    return table("The nights, newest first", head, rows, numeric_from=2)


def _night_row(night: Night, *, with_encoder: bool, superseded: bool) -> Html:
    """A run of a day. Only the latest run of a day decides whether it is released: earlier ones are marked."""
    name = fragment(night.ds, element("small", night.embedding_version) if with_encoder else None)
    return element(
        "tr",
        element("th", name, scope="row", title=f"run {night.run_id}, checked {night.checked_at:%Y-%m-%d %H:%M} UTC"),
        element(
            "td", pill(night.status, "good" if night.passed else "bad"), pill("ran again", "quiet") if superseded else None
        ),
        numbers(*(count(getattr(night, column)) for column in _NIGHT_HEAD)),
        numbers(share(night.coverage), decimal(night.images_per_s, 1), seconds(night.total_s)),
        class_=None if night.passed else "failed",
    )


def pill(words: str, tone: str) -> Html:
    return element("span", words, class_=f"pill {tone}")


def quarantine_section(groups: Sequence[QuarantineGroup], current_version: str | None) -> Html:
    """Reasons against days, then examples by day, the newest day open.

    Args:
        current_version: The last night's encoder, None before the first night; rows of another encoder say so.
    """
    title = "Quarantine"
    if not groups:
        nothing = "Nothing is in quarantine: every row of every export went through."
        return section("quarantine", title, None, note(nothing if current_version else "No night has been checked yet."))
    days = [(ds, list(of_day)) for ds, of_day in groupby(groups, lambda group: group.key.ds)]
    lead = (
        "Rows that got no further, by reason. A pin is tried again when its content changes, or when someone asks: those of "
        "stage embed by the DAG requeue_pins, by reason or by pin; the others with a corrected export."
    )
    details = [_quarantine_day(ds, of_day, current_version, opened=i == 0) for i, (ds, of_day) in enumerate(days)]
    return section("quarantine", title, lead, _reason_matrix(groups), element("div", details, class_="card days"))


def _reason_matrix(groups: Sequence[QuarantineGroup]) -> Html:
    counts: Counter[tuple[str, str]] = Counter()
    for group in groups:
        counts[group.key.reason, group.key.ds] += group.rows
    days = sorted({group.key.ds for group in groups})
    totals = {reason: sum(counts[reason, ds] for ds in days) for reason, _ in counts}
    largest = max(counts.values())
    rows = [
        element(
            "tr",
            element("th", element("code", reason), scope="row"),
            [_heat_cell(counts[reason, ds], largest) for ds in days],
            element("td", count(total), class_="num total"),
        )
        for reason, total in sorted(totals.items(), key=lambda item: (-item[1], item[0]))
    ]
    return table("Quarantined rows by reason and day", ["Reason", *(ds[5:] for ds in days), "All"], rows)


def _heat_cell(number: int, largest: int) -> Html:
    if not number:
        return element("td", "·", class_="num none")
    level = 1 + min(3, int(4 * number / (largest + 1)))
    return element("td", count(number), class_=f"num heat{level}")


def _quarantine_day(ds: str, groups: Sequence[QuarantineGroup], current_version: str | None, *, opened: bool) -> Html:
    total = sum(group.rows for group in groups)
    rows = [_reason_row(group, current_version) for group in groups]
    head = element("summary", element("strong", day(ds)), " ", element("span", plural(total, "row"), class_="muted"))
    return element("details", head, element("ul", rows, class_="reasons"), open=opened)


def _reason_row(group: QuarantineGroup, current_version: str | None) -> Html:
    key = group.key
    known = REASONS.get(Reason(key.reason)) if key.reason in set(Reason) else None
    where = [key.stage, *([key.entity] if key.entity != "pin" else [])]
    if key.embedding_version not in (None, current_version):
        where.append(str(key.embedding_version))
    return element(
        "li",
        element("span", count(group.rows), class_="amount"),
        element("div", element("code", key.reason), " ", known, " ", [pill(word, "quiet") for word in where]),
        element("ul", [_example(example) for example in group.examples]),
    )


def _example(example: Example) -> Html:
    pin = f"pin {example.pin_id}" if example.pin_id is not None else "no pin id"
    # An address is shown and never linked: what an export calls an address may be a script.
    said = not example.image_uri or example.image_uri in (example.detail or "")[:_DETAIL_CHARS]
    uri = None if said else element("code", shorten_middle(example.image_uri or "", _URI_CHARS))
    detail = element("bdi", shorten(example.detail, _DETAIL_CHARS)) if example.detail else None
    content = element("code", f"content {example.content_sha256[:12]}", class_="muted") if example.content_sha256 else None
    return element("li", element("span", pin, class_="pin"), detail, uri, content)


def recall_section(live: ReleaseState | None) -> Html:
    """What each setting of the live release's search costs and finds."""
    title = "Recall against latency"
    if live is None:
        return section("recall", title, None, note("There is no live release to show."))
    manifest = live.manifest
    if not manifest.sweep:
        return section("recall", title, None, note(f"Release {manifest.release_id} carries no measurements."))
    goal = manifest.choice.wanted.recall_goal if manifest.choice else RECALL_GOAL
    lead = (
        f"Recall@10 of {manifest.release_id} against exact search, as its build measured it, one query at a time on one "
        f"thread. Chosen was the fastest that reaches {goal} by pins and by words, each at the lower end of its 95% interval."
    )
    for point in manifest.selections:
        lead += f" Among {point.share:.0%} of the pins searches reach {point.recall_at_10:.3f}."
    chart = recall_against_latency(manifest.sweep, manifest.setting, goal)
    measured = element("div", chart, _sweep_table(manifest), class_="halves")
    return section("recall", title, lead, measured, _recipes(manifest.choice) if manifest.choice else None)


def _recipes(choice: Choice) -> Html:
    """What was tried before the recipe was taken, and why this one was."""
    wanted = choice.wanted
    budget = "no limit of memory" if wanted.bytes_budget is None else f"at most {wanted.bytes_budget:g} bytes a vector"
    asked = f"recall@10 of {wanted.recall_goal:g}, {budget}, {wanted.threads} threads"
    said = f"{choice.factory}: {choice.why}. Asked for: {asked}."
    rows = [
        element(
            "tr",
            element("th", element("code", trial.factory), *_recipe_pills(trial, choice), scope="row"),
            element("td", str(trial.point.setting)),
            numbers(
                f"{trial.rows:,}",
                f"{trial.bytes_a_vector:,.0f}",
                f"{trial.point.recall_at_10:.4f}",
                f"{trial.point.qps:,.0f}",
                f"{trial.build_s:.1f}",
            ),
        )
        for trial in sorted(choice.trials, key=lambda trial: -trial.point.qps)
    ]
    head = ["Recipe", "Setting", "Vectors", "Bytes a vector", "Recall@10", "Queries/s", "Build, s"]
    charts = [recipes_against(choice, unit) for unit in ("queries a second", "bytes a vector")]
    return fragment(
        element("h3", "Recipes that were tried"),
        element("p", said, f" Tried by the build of {choice.chosen_by}.", class_="lead"),
        element("div", *charts, class_="halves"),
        table("Recipes, fastest first", head, rows, numeric_from=2),
    )


def _recipe_pills(trial: Trial, choice: Choice) -> list[Html]:
    if family_of(trial.factory) == family_of(choice.factory):
        return [pill("chosen", "good")]
    if not trial.fits:
        return [pill("too large", "warn")]
    return [] if trial.reached else [pill("below the goal", "warn")]


def _sweep_table(manifest: Manifest) -> Html:
    rows = [
        element(
            "tr",
            element(
                "th", str(point.setting), pill("chosen", "good") if point.setting == manifest.setting else None, scope="row"
            ),
            numbers(f"{point.recall_at_10:.4f}", f"{point.p50_ms:.3f}", f"{point.p99_ms:.3f}", f"{point.qps:,.0f}"),
        )
        for point in manifest.sweep
    ]
    return table("The points of the sweep", ["Setting", "Recall@10", "p50 ms", "p99 ms", "Queries/s"], rows)


def galleries_section(galleries: Galleries | None) -> Html:
    """Pins with their neighbours, and words with what they find, by the live release."""
    title = "What the search finds"
    if galleries is None:
        return section("gallery", title, None, note("There is no live release to search."))
    if galleries.release_fault:
        return section("gallery", title, None, note("The live release cannot be opened: ", galleries.release_fault))
    unsaid = note("Words were not tried, because the release's encoder cannot be loaded here: ", galleries.words_fault or "")
    words = [gallery_row(row) for row in galleries.words]
    pins = [gallery_row(row) for row in galleries.pins]
    lead = "The nearest pins of the live release, with their cosine. Pins that show one picture share one vector: cosine 1."
    return section(
        "gallery",
        title,
        lead,
        element("h3", "Words"),
        unsaid if galleries.words_fault else words,
        element("h3", "Pins and their neighbours"),
        pins or note("The release holds no pin."),
    )


def gallery_row(row: Row) -> Html:
    """A card with a query and what it found."""
    if isinstance(row.query, str):
        name, query = row.query, element("div", element("q", row.query), class_="words")
    else:
        name, query = f"pin {row.query.pin_id}", gallery_tile(row.query)
    return element("div", query_and_strip(name, query, row.results), class_="gallery card")


def query_and_strip(name: str, query: Html, results: Sequence[Tile]) -> Html:
    """What was asked, and beside it the pins that were found, in a strip that scrolls sideways."""
    found = element("ol", [element("li", gallery_tile(tile)) for tile in results])
    strip = element("div", found, class_="strip", role="region", aria_label=f"Results of {name}", tabindex=0)
    nothing = element("p", "It found nothing else.", class_="muted")
    return fragment(element("div", query, class_="query"), strip if results else nothing)


def gallery_tile(tile: Tile) -> Html:
    title = shorten(tile.title, _TITLE_CHARS) if tile.title and tile.title.strip() else None
    alt = title or f"pin {tile.pin_id}, without a title"
    if tile.picture.data_uri:
        picture = element("img", src=tile.picture.data_uri, alt=alt, loading="lazy", decoding="async")
    else:
        picture = element("span", tile.picture.missing, class_="missing")
    caption = element(
        "figcaption",
        element("bdi", title, class_="title") if title else element("span", f"pin {tile.pin_id}", class_="title muted"),
        element("span", f"{tile.score:.3f}", class_="cosine") if tile.score is not None else None,
        element("bdi", tile.said, class_="said") if tile.said else None,
    )
    return element("figure", element("div", picture, class_="frame"), caption, title=f"pin {tile.pin_id}", class_="tile-pin")


def releases_section(releases: Releases) -> Html:
    """The whole releases, newest first."""
    if not releases.all:
        return section("releases", "Releases", None, note("No release has been built yet."))
    live = releases.live.manifest.release_id if releases.live else None
    head = ["Release", "State", "Day", "Index", "Pins", "Recall@10", "Days", "Size", "Built (UTC)"]
    rows = [_release_row(state, state.manifest.release_id == live) for state in reversed(releases.all)]
    lead = "A release is live by one pointer; the earlier ones stay for rollback. Recall is the independent check's."
    chart = recall_over_time(releases.rows, live)
    return section("releases", "Releases", lead, chart, table("Releases, newest first", head, rows, numeric_from=4))


def _release_row(state: ReleaseState, live: bool) -> Html:
    manifest = state.manifest
    built_at = manifest.built_at[:16].replace("T", " ")
    return element(
        "tr",
        element("th", element("code", manifest.release_id), scope="row", title=manifest.embedding_version),
        element("td", _release_pill(state, live)),
        element("td", manifest.ds),
        element("td", element("code", f"{manifest.factory}, {manifest.setting}")),
        numbers(count(manifest.rows), f"{manifest.recall_at_10:.4f}", len(manifest.days), size(state.size_bytes), built_at),
        class_="live" if live else None,
    )


def _release_pill(state: ReleaseState, live: bool) -> Html:
    if live:
        return pill("live", "good")
    if state.check is None:
        return pill("not checked", "warn")
    if not state.check.passed:
        return fragment(pill("check failed", "bad"), element("small", "; ".join(state.check.failures)))
    return pill("checked", "quiet")


def tables_section(tables: Sequence[TableState]) -> Html:
    """What the lake holds, table by table."""
    if not tables:
        return section("tables", "In the lake", None, note("There are no tables yet."))
    rows = [
        element(
            "tr",
            element("th", element("code", state.name), scope="row"),
            numbers(count(state.rows), count(state.files), size(state.size_bytes), state.version),
        )
        for state in tables
    ]
    return section("tables", "In the lake", None, table("Tables", ["Table", "Rows", "Files", "Size", "Version"], rows))


def footer(facts: Facts, made_at: str) -> Html:
    """How the page was made, and from what."""
    versions = ", ".join(f"{state.name} {state.version}" for state in facts.tables) or "no tables"
    live = facts.releases.live
    release = f"release {live.manifest.release_id}" if live else "no release"
    return element(
        "footer",
        element("p", "Made by ", element("code", "pinlake report"), f" on {made_at} from ", element("code", facts.home), "."),
        element("p", f"Table versions: {versions}; {release}."),
    )
