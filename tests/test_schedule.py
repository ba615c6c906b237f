"""When nights are due: hand-worked slots, the same moments as Prefect's, missed nights."""

from __future__ import annotations

import time
from datetime import UTC, date, datetime, timedelta
from typing import Any

import anyio
import pytest

from flows.deploying import as_prefect
from nightshift.config import build
from nightshift.errors import ConfigError
from nightshift.schedule import ScheduleConfig, between, due, name_of, newest, slots


def at(text: str) -> datetime:
    return datetime.fromisoformat(text).replace(tzinfo=UTC)


def found(config: ScheduleConfig, after: str, until: str) -> list[str]:
    return [f"{one:%m-%dT%H:%M}" for one in slots(config, at(after), at(until))]


def test_cron_is_local_time_and_follows_the_clock_into_summer() -> None:
    config = ScheduleConfig(cron="30 2 * * *", timezone="Europe/Berlin")
    # Clocks went forward on 2026-03-29; 02:30 is 01:30 UTC before, 00:30 after.
    assert found(config, "2026-03-27", "2026-03-28T12:00") == ["03-27T01:30", "03-28T01:30"]
    assert found(config, "2026-03-30", "2026-03-30T12:00") == ["03-30T00:30"]


def test_a_day_of_the_month_or_a_weekday_will_do_where_both_are_given() -> None:
    config = ScheduleConfig(cron="0 4 1 * mon")
    # In November 2026, the 1st is a Sunday, and Mondays are 2, 9, 16, 23, 30.
    days = [one[:5] for one in found(config, "2026-10-31", "2026-11-30T23:00")]
    assert days == ["11-01", "11-02", "11-09", "11-16", "11-23", "11-30"]


def test_an_interval_is_elapsed_time_from_a_fixed_start() -> None:
    config = ScheduleConfig(every="6h")
    assert found(config, "2026-11-22T00:00", "2026-11-22T13:00") == ["11-22T06:00", "11-22T12:00"]


SCHEDULES = [
    {"cron": "0 2 * * *", "timezone": "Europe/Berlin"},
    {"cron": "*/20 1-3 * * 1-5", "timezone": "America/New_York"},
    {"cron": "15 23 28 2,12 sun", "timezone": "Asia/Tokyo"},
    {"every": "6h", "timezone": "Europe/Berlin"},
    {"every": "1d", "timezone": "Europe/Berlin"},
    {
        "rrule": "FREQ=WEEKLY;BYDAY=MO,TH;BYHOUR=2;BYMINUTE=0;BYSECOND=0",
        "timezone": "Europe/Berlin",
    },
]


@pytest.mark.parametrize("given", SCHEDULES, ids=lambda one: str(one))
def test_prefect_starts_runs_at_exactly_these_moments(given: dict[str, Any]) -> None:
    from prefect.server.schemas import schedules as theirs

    config = ScheduleConfig(**given)
    theirs_of: Any = as_prefect(config).schedule
    schedule = getattr(theirs, type(theirs_of).__name__)(**theirs_of.model_dump())

    async def dates(start: datetime, end: datetime) -> list[datetime]:
        return await schedule.get_dates(n=400, start=start, end=end)

    # A week in each direction of both changes of clocks.
    for middle in ("2026-03-29", "2026-10-25", "2026-12-30"):
        start, end = at(middle) - timedelta(days=7), at(middle) + timedelta(days=7)
        expected = [one.astimezone(UTC) for one in anyio.run(dates, start, end)]
        assert list(slots(config, start - timedelta(seconds=1), end)) == expected


def test_a_night_is_named_by_its_local_date_and_later_ones_of_a_day_by_the_time_as_well() -> None:
    berlin = ScheduleConfig(cron="0 0 * * *", timezone="Europe/Berlin")
    assert name_of(berlin, at("2026-11-22T23:00")) == "2026-11-23"
    often = ScheduleConfig(every="6h")
    names = [name_of(often, at(f"2026-11-22T{hour}:00")) for hour in ("00", "06", "18")]
    assert names == ["2026-11-22", "2026-11-22T06-00", "2026-11-22T18-00"]


NIGHTLY = "0 2 * * *"
NOW = at("2026-11-24T09:00")


def test_missed_nights_collapse_into_the_newest() -> None:
    config = ScheduleConfig(cron=NIGHTLY)
    names = [one.name for one in due(config, {"2026-11-20"}, at("2026-11-01"), NOW)]
    assert names == ["2026-11-24"]


def test_missed_nights_are_backfilled_in_order_from_the_last_one_that_was_worked() -> None:
    config = ScheduleConfig(cron=NIGHTLY, missed="backfill")
    slots_ = due(config, {"2026-11-20"}, at("2026-11-01"), NOW)
    assert [one.name for one in slots_] == [f"2026-11-{day}" for day in (21, 22, 23, 24)]
    assert slots_[0].at == at("2026-11-21T02:00")


def test_nothing_is_missed_before_the_pipeline_began() -> None:
    config = ScheduleConfig(cron=NIGHTLY, missed="backfill")
    assert [one.name for one in due(config, set(), None, NOW)] == ["2026-11-24"]
    began = at("2026-11-22T12:00")
    assert [one.name for one in due(config, set(), began, NOW)] == ["2026-11-23", "2026-11-24"]


def test_without_a_schedule_days_are_backfilled_at_their_ends() -> None:
    found_ = between(ScheduleConfig(), date(2026, 11, 22), date(2026, 11, 23))
    assert [(one.name, one.at) for one in found_] == [
        ("2026-11-22", at("2026-11-23")),
        ("2026-11-23", at("2026-11-24")),
    ]


def test_a_schedule_that_begins_later_has_no_newest_slot() -> None:
    rule = "DTSTART:20300101T020000\nRRULE:FREQ=DAILY"
    assert newest(ScheduleConfig(rrule=rule), NOW) is None


@pytest.mark.parametrize(
    ("given", "words"),
    [
        ({"cron": "0 2 * *"}, "expected five fields (minute, hour, day, month, weekday), found 4"),
        ({"cron": "0 25 * * *"}, "hour: found '25', expected 0 to 23"),
        ({"cron": "0 2 * * mo"}, "weekday: found 'mo', expected 0 to 7 or sun, mon,"),
        ({"cron": "0 2 9-3 * *"}, "day: found '9-3', which ends before it begins"),
        ({"cron": "0 2 30 2 *"}, "no month of 2 has a day 30"),
        ({"every": "6 hours"}, "expected a number and m, h, d or w, such as 30m, 6h, 1d"),
        ({"every": "0h"}, "expected a number and m, h, d or w"),
        ({"rrule": "FREQ=SOMETIMES"}, "not a rule of iCalendar"),
        ({"rrule": "DTSTART:20200101T000000Z\nRRULE:FREQ=DAILY"}, "without a zone"),
        ({"timezone": "Europe/Berln"}, "did you mean 'Europe/Berlin'?"),
        ({"cron": "0 2 * * *", "every": "6h"}, "found cron and every"),
        ({"missed": "forget"}, "'collapse' or 'backfill'"),
        ({"crom": "0 2 * * *"}, "did you mean 'cron'?"),
    ],
)
def test_a_schedule_that_cannot_be_kept_is_refused_with_the_way_out(
    given: dict[str, Any], words: str
) -> None:
    with pytest.raises(ConfigError) as caught:
        build(ScheduleConfig, given, "pipelines.yaml", {})
    assert words in str(caught.value)


NOT_KEPT = [
    ({"rrule": "FREQ=DAILY;INTERVAL=0"}, "found INTERVAL or COUNT '0', expected 1 to 10000"),
    ({"rrule": "FREQ=HOURLY;COUNT=99999999999"}, "found INTERVAL or COUNT '99999999999'"),
    ({"rrule": "FREQ=SECONDLY"}, "expected a minute or more between two"),
    ({"rrule": "FREQ=DAILY;BYSECOND=0,30"}, "expected a minute or more between two"),
    ({"rrule": "FREQ=MINUTELY;BYSETPOS=5"}, "found BYSETPOS with HOURLY or MINUTELY"),
    ({"rrule": "FREQ=DAILY;BYMONTH=2;BYMONTHDAY=30"}, "never happens"),
    ({"rrule": "FREQ=MINUTELY;BYMONTH=2;BYMONTHDAY=30;COUNT=3"}, "never happens"),
    ({"rrule": "RRULE:FREQ=MINUTELY\nEXRULE:FREQ=MINUTELY"}, "which RFC 5545 no longer has"),
    ({"rrule": "DTSTART:99991231T000000\nRRULE:FREQ=DAILY"}, "expected 2000 to 2099"),
    ({"rrule": "FREQ=DAILY;UNTIL=20991231T000000Z"}, "expected a local time, without Z"),
    ({"every": "999999w"}, "found 999999w, expected at most 366d"),
]


@pytest.mark.parametrize(("given", "words"), NOT_KEPT, ids=lambda one: str(one))
@pytest.mark.timeout(20)
def test_a_schedule_that_would_take_for_ever_is_refused_at_once(
    given: dict[str, Any], words: str
) -> None:
    began = time.monotonic()
    with pytest.raises(ConfigError) as caught:
        build(ScheduleConfig, given, "pipelines.yaml", {})
    assert words in str(caught.value)
    assert time.monotonic() - began < 10


@pytest.mark.parametrize(
    "given",
    [
        {"cron": "0 2 30 2 1"},
        {"cron": "* * * * *"},
        {"rrule": "FREQ=MINUTELY"},
        {"rrule": "FREQ=HOURLY"},
        {"rrule": "FREQ=DAILY;BYMONTH=2;BYMONTHDAY=29;BYDAY=MO"},
    ],
    ids=lambda one: str(one),
)
@pytest.mark.timeout(60)
def test_a_schedule_that_is_kept_is_told_fast(given: dict[str, Any]) -> None:
    config = ScheduleConfig(**given, missed="backfill")
    began = time.monotonic()
    newest(config, NOW)
    next(slots(config, NOW, NOW + timedelta(days=400)), None)
    due(config, set(), at("2020-01-01"), NOW)
    list(between(config, date(2026, 11, 1), date(2026, 11, 3)))
    assert time.monotonic() - began < 15  # a second on a machine with nothing else to do


@pytest.mark.parametrize(
    "rule",
    [
        "FREQ=HOURLY;INTERVAL=7",
        "FREQ=MINUTELY;INTERVAL=95;BYHOUR=1,2",
        "FREQ=DAILY;INTERVAL=3;BYHOUR=2,14;BYMINUTE=30",
        "FREQ=WEEKLY;INTERVAL=2;BYDAY=SU,MO;WKST=SU",
        "FREQ=WEEKLY;INTERVAL=3",
        "DTSTART:20200131T020000\nRRULE:FREQ=MONTHLY;INTERVAL=2",
        "FREQ=MONTHLY;BYDAY=-1FR;BYSETPOS=1",
        "DTSTART:20200229T020000\nRRULE:FREQ=YEARLY",
        "FREQ=YEARLY;INTERVAL=2;BYMONTH=11;BYDAY=MO",
        "FREQ=DAILY;COUNT=2520",
        "FREQ=DAILY;UNTIL=20261124T000000",
        "DTSTART:20200101T020000\nRRULE:FREQ=DAILY\nEXDATE:20261122T020000\nRDATE:20261122T050000",
    ],
)
def test_a_rule_that_is_counted_from_nearby_has_the_moments_it_always_had(rule: str) -> None:
    from dateutil.rrule import rrulestr

    first, last = datetime(2026, 10, 1), datetime(2028, 3, 2)
    expected = rrulestr(rule, dtstart=datetime(2020, 1, 1)).between(first, last)
    found_ = slots(ScheduleConfig(rrule=rule), first.replace(tzinfo=UTC), last.replace(tzinfo=UTC))
    assert [one.replace(tzinfo=None) for one in found_] == [one for one in expected if one > first]


def test_nights_of_a_day_have_the_same_names_one_by_one_and_in_one_pass() -> None:
    config = ScheduleConfig(rrule="FREQ=HOURLY;INTERVAL=5", timezone="Europe/Berlin")
    several = list(between(config, date(2026, 10, 24), date(2026, 10, 27)))
    assert len(several) > 15
    assert [one.name for one in several] == [name_of(config, one.at) for one in several]
