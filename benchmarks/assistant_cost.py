"""What a million turns cost: on a machine of one's own, from measured throughput, and at a frontier model's API.

All prices are inputs; the defaults are assumptions, round figures of the order of what is usual, and nobody's offer.
"""

from __future__ import annotations

from dataclasses import dataclass, replace

from assistant.turns import Limits

GOAL = 0.90
THINKING = Limits().thinking_tokens
"""The most that a turn in thinking mode thinks before it answers."""


@dataclass(frozen=True)
class Prices:
    """Dollars.

    machine_hour: Of the machine that was measured.
    load: The share of an hour in which it has work; its price is paid for the whole hour.
    input_million, output_million: The API's, for a million tokens in and out.
    picture_tokens: What the API counts for a picture of 1024 x 1024 pixels.
    answer_tokens: Of an answer.
    """

    machine_hour: float
    load: float = 0.5
    input_million: float = 2.50
    output_million: float = 10.00
    picture_tokens: int = 765
    answer_tokens: int = 80


def own(prices: Prices, first_s: float, step_s: float, batch: int) -> float:
    """A million turns on the machine, whose batch takes `first_s` to its first tokens and `step_s` for each token more."""
    turn_s = (first_s + (prices.answer_tokens - 1) * step_s) / batch
    return 1e6 * turn_s / 3_600 * prices.machine_hour / prices.load


def api(prices: Prices, candidates: int, text_tokens: int, pictures: bool = True) -> float:
    """A million turns at the API, pictures by address. pictures: False: it is told the titles alone."""
    read = text_tokens + (candidates * prices.picture_tokens if pictures else 0)
    return read * prices.input_million + prices.answer_tokens * prices.output_million


def variations(prices: Prices) -> list[tuple[str, Prices]]:
    """One price at a time, to where it hurts."""
    return [
        ("as assumed", prices),
        ("machine at three times the price", replace(prices, machine_hour=3 * prices.machine_hour)),
        ("machine idle nine tenths of the time", replace(prices, load=0.1)),
        (
            "API at a quarter of the price",
            replace(prices, input_million=prices.input_million / 4, output_million=prices.output_million / 4),
        ),
        (
            "API at a twentieth of the price",
            replace(prices, input_million=prices.input_million / 20, output_million=prices.output_million / 20),
        ),
        ("API counts 258 tokens a picture", replace(prices, picture_tokens=258)),
        ("answers of 300 tokens", replace(prices, answer_tokens=300)),
        (f"thinking mode, all of its {THINKING} tokens", replace(prices, answer_tokens=THINKING + prices.answer_tokens)),
    ]


def load_at_goal(prices: Prices, own_cost: float, api_cost: float) -> float:
    """The least share of an hour in which the machine must have work for the goal to hold."""
    return own_cost * prices.load / ((1 - GOAL) * api_cost)
