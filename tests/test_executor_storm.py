"""Workers that die all the time: every future ends, and nothing is lost but what is named."""

from __future__ import annotations

import random

import pytest

from ipcmap import Arena
from storm_pool import lost_of, weather


def test_every_future_ends_in_a_short_storm(
    engine: str, arena: Arena, chance: random.Random
) -> None:
    """Lost are no more tasks than workers were killed."""
    storm = weather(arena, chance, 400)

    assert len(storm.futures) == 400
    assert len(lost_of(storm)) <= storm.deaths


def test_every_result_is_right_where_tasks_are_done_again(
    engine: str, arena: Arena, chance: random.Random
) -> None:
    """More often than any task is unlucky."""
    storm = weather(arena, chance, 400, retries=10)

    assert lost_of(storm) == []


@pytest.mark.storm
@pytest.mark.timeout(600)
@pytest.mark.parametrize("retries", [0, 3])
def test_ten_thousand_tasks_come_through(
    engine: str, arena: Arena, chance: random.Random, retries: int
) -> None:
    """The same for as long as it takes."""
    storm = weather(arena, chance, 10_000, retries=retries)

    assert len(storm.futures) == 10_000
    lost = lost_of(storm)
    assert len(lost) <= storm.deaths
    assert not (retries and lost)
