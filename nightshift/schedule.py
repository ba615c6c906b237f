"""When a pipeline's nights are due: cron, an interval or an iCalendar rule, in a time zone.

A schedule is a list of moments that never changes, its slots. Each slot is a night with a name of
its own, so which nights were missed is told from the table `nights`, whoever kept the clock.
"""

from __future__ import annotations

import re
from collections.abc import Collection, Iterator
from contextlib import suppress
from dataclasses import dataclass
from datetime import UTC, date, datetime, timedelta
from functools import cached_property
from typing import Any, Literal
from zoneinfo import ZoneInfo, available_timezones

from pydantic import Field, field_validator, model_validator

from .config import Config, nearest

ANCHOR = datetime(2020, 1, 1)
"""Where intervals and rules without DTSTART begin, local time; Prefect's rules begin here, too."""
MOST_MISSED = 366
"""Missed nights that are worked in order, at most: the newest ones."""
REACHES = (2, 40, 400, 4000)
"""Days to look back for slots, in turn: what is often is found near, and without a long list."""
LONGEST = timedelta(days=366)
"""Between two nights of `every`."""
LAST_YEARS = datetime(9950, 1, 1)
"""Calendars end in 9999. A rule that does not happen from here on never does, which is told sooner
than by counting from today: Mondays on 29 February are 28 years apart."""
MOST_COUNTED = 10_000
"""COUNT and INTERVAL of a rule, at most."""
EVERY = re.compile(r"(\d{1,6}) *(m|h|d|w)")
UNITS = {"m": "minutes", "h": "hours", "d": "days", "w": "weeks"}
MONTHS = ("jan", "feb", "mar", "apr", "may", "jun", "jul", "aug", "sep", "oct", "nov", "dec")
WEEKDAYS = ("sun", "mon", "tue", "wed", "thu", "fri", "sat")
FIELDS = (
    ("minute", 0, 59, ()),
    ("hour", 0, 23, ()),
    ("day", 1, 31, ()),
    ("month", 1, 12, MONTHS),
    ("weekday", 0, 7, WEEKDAYS),
)
"""The five fields of cron: name, lowest, highest, words from the lowest on."""


@dataclass(frozen=True)
class Slot:
    """A night that the schedule asks for."""

    name: str
    at: datetime
    """UTC."""


class ScheduleConfig(Config):
    """When the pipeline's nights start by themselves."""

    cron: str | None = None
    """Five fields, as `0 2 * * *`: minute, hour, day, month, weekday."""
    every: str | None = None
    """An interval, as 30m, 6h, 1d, 2w, counted from the start of 2020 in the time zone; at most
    366d."""
    rrule: str | None = None
    """A rule of iCalendar, as `FREQ=WEEKLY;BYDAY=MO,TH;BYHOUR=2;BYMINUTE=0;BYSECOND=0`, in local
    time; a minute or more apart."""
    timezone: str = "UTC"
    """A name of the IANA time zone database, such as Europe/Berlin; nights are named by its
    dates."""
    paused: bool = False
    """Deployed, but nothing starts by itself."""
    missed: Literal["collapse", "backfill"] = "collapse"
    """Nights that were missed: one night takes all files, or each is worked in order on the files
    that were there then."""
    tags: list[str] = Field(default=[], max_length=20)
    """Tags of the deployments, beside `nightshift` and the pipeline's name."""
    work_pool: str | None = Field(default=None, pattern=r"^[A-Za-z0-9][A-Za-z0-9_. -]{0,62}$")
    """The Prefect work pool whose workers run it; by default `nightshift`, of `nightshift up`."""

    @field_validator("timezone")
    @classmethod
    def _is_a_zone(cls, found: str) -> str:
        known = available_timezones()
        if found not in known:
            raise ValueError(f"expected an IANA time zone; {nearest(found, known)[:200]}")
        return found

    @field_validator("cron")
    @classmethod
    def _is_cron(cls, found: str | None) -> str | None:
        if found is not None:
            cron_fields(found)
        return found

    @field_validator("every")
    @classmethod
    def _is_an_interval(cls, found: str | None) -> str | None:
        if found is not None:
            interval_of(found)
        return found

    @field_validator("rrule")
    @classmethod
    def _is_a_rule(cls, found: str | None) -> str | None:
        if found is not None:
            _rule(found)
        return found

    @model_validator(mode="after")
    def _has_one_kind(self) -> ScheduleConfig:
        given = [name for name in ("cron", "every", "rrule") if getattr(self, name) is not None]
        if len(given) > 1:
            raise ValueError(f"expected one of cron, every, rrule, found {' and '.join(given)}")
        return self

    @property
    def is_set(self) -> bool:
        """Whether nights start by themselves at all, paused or not."""
        return bool(self.cron or self.every or self.rrule)

    @cached_property
    def zone(self) -> ZoneInfo:
        """The time zone."""
        return ZoneInfo(self.timezone)


# --- slots ----------------------------------------------------------------------------------


def slots(config: ScheduleConfig, after: datetime, until: datetime) -> Iterator[datetime]:
    """Moments at which nights are due, in UTC: later than `after`, up to `until`."""
    if config.every is not None:
        step = interval_of(config.every)
        start = ANCHOR.replace(tzinfo=config.zone).astimezone(UTC)
        number = (after.astimezone(UTC) - start) // step + 1
        while (at := start + number * step) <= until:
            yield at
            number += 1
        return
    first, last = (one.astimezone(config.zone).replace(tzinfo=None) for one in (after, until))
    # A day more on either side: local times around a change of clocks come in another order.
    first, last, seen = first - timedelta(days=1), last + timedelta(days=1), set[datetime]()
    found = _of_cron(config.cron, first, last) if config.cron else _of_rule(config.rrule, first)
    for local in found:
        if local > last:
            return
        at = _moment(local, config.zone)
        if after < at <= until and at not in seen:
            seen.add(at)
            yield at


def _moment(local: datetime, zone: ZoneInfo) -> datetime:
    """A local time in UTC: of two, the first; one that a change of clocks leaves out is taken by
    the new time, as Prefect's cron does."""
    at = local.replace(tzinfo=zone).astimezone(UTC)
    there = at.astimezone(zone).replace(tzinfo=None) == local
    return at if there else local.replace(tzinfo=zone, fold=1).astimezone(UTC)


def named(config: ScheduleConfig, after: datetime, until: datetime) -> Iterator[Slot]:
    """Slots later than `after`, up to `until`. A slot's night is its local date; with the time,
    too, unless it is the first of its date."""
    local = after.astimezone(config.zone)
    midnight = local.replace(hour=0, minute=0, second=0, microsecond=0, fold=0)
    days = set[date]()
    for at in slots(config, midnight - timedelta(seconds=1), until):
        local = at.astimezone(config.zone)
        day = local.date()
        if at > after:
            yield Slot(f"{day}T{local:%H-%M}" if day in days else day.isoformat(), at)
        days.add(day)


def name_of(config: ScheduleConfig, at: datetime) -> str:
    """The night of one slot."""
    return next(named(config, at - timedelta(seconds=1), at)).name


def newest(config: ScheduleConfig, now: datetime) -> datetime | None:
    """The last slot there was up to now; None before the first."""
    for days in REACHES:
        found = list(slots(config, now - timedelta(days=days), now))
        if found:
            return found[-1]
    return None


def between(config: ScheduleConfig, first: date, last: date) -> Iterator[Slot]:
    """The nights of some dates, in order; without a schedule one a day, at its end."""
    start = datetime.combine(first, datetime.min.time(), config.zone)
    end = datetime.combine(last + timedelta(days=1), datetime.min.time(), config.zone)
    second = timedelta(seconds=1)
    if config.is_set:
        yield from named(config, start - second, end - second)
        return
    for count in range((last - first).days + 1):
        day = first + timedelta(days=count)
        at = datetime.combine(day + timedelta(days=1), datetime.min.time(), config.zone)
        yield Slot(day.isoformat(), at.astimezone(UTC))


def due(
    config: ScheduleConfig, worked: Collection[str], since: datetime | None, now: datetime
) -> list[Slot]:
    """The nights to work now, oldest first: the newest slot's, with `backfill` those missed, too.

    Args: names of published nights; when the pipeline began (nothing is missed before), or None.
    """
    last = newest(config, now)
    if last is None:
        return []
    found = [Slot(name_of(config, last), last)]
    if config.missed == "collapse" or since is None:
        return found
    earlier = list[Slot]()
    for days in REACHES:
        first = max(since, last - timedelta(days=days))
        earlier = list(named(config, first, last - timedelta(seconds=1)))
        if first == since or len(earlier) >= MOST_MISSED:
            break
        if any(one.name in worked for one in earlier):
            break
    for one in reversed(earlier[-MOST_MISSED:]):
        if one.name in worked:
            break
        found.append(one)
    return found[::-1]


# --- notations ------------------------------------------------------------------------------


def interval_of(text: str) -> timedelta:
    """`6h` as a duration.

    Raises: ValueError for other text, for less than a minute, and for more than a year.
    """
    match = EVERY.fullmatch(text.strip())
    if match is None or not int(match[1]):
        raise ValueError("expected a number and m, h, d or w, such as 30m, 6h, 1d")
    found = timedelta(**{UNITS[match[2]]: int(match[1])})
    if found > LONGEST:
        raise ValueError(f"found {text.strip()}, expected at most {LONGEST.days}d")
    return found


def cron_fields(text: str) -> list[list[int] | None]:
    """The values of each field of a cron line, None for `*`; Sunday is 0.

    Raises: ValueError that names the field, what it may hold, and what was found.
    """
    parts = text.lower().split()
    if len(parts) != len(FIELDS):
        names = ", ".join(name for name, *_ in FIELDS)
        raise ValueError(f"expected five fields ({names}), found {len(parts)}")
    values = [_field(part, *field) for part, field in zip(parts, FIELDS, strict=True)]
    if values[4] is not None:
        values[4] = sorted({one % 7 for one in values[4]})
    days, months = values[2] or [1], values[3] or [1]
    longest = max(29 if month == 2 else 30 if month in (4, 6, 9, 11) else 31 for month in months)
    if values[4] is None and min(days) > longest:
        raise ValueError(f"no month of {parts[3]} has a day {min(days)}")
    return values


def _field(part: str, name: str, low: int, high: int, words: Collection[str]) -> list[int] | None:
    if part == "*":
        return None
    found: set[int] = set()
    for piece in part.split(","):
        match = re.fullmatch(r"(?:\*|([a-z0-9]+)(?:-([a-z0-9]+))?)(?:/(\d{1,3}))?", piece)
        if match is None or match[3] == "0":
            raise ValueError(_expected(name, low, high, words, piece))
        first = low if match[1] is None else _value(match[1], name, low, high, words)
        last = high if match[1] is None or (match[3] and not match[2]) else first
        if match[2]:
            last = _value(match[2], name, low, high, words)
        if last < first:
            raise ValueError(f"{name}: found {piece!r}, which ends before it begins")
        found |= set(range(first, last + 1, int(match[3] or 1)))
    return sorted(found)


def _value(text: str, name: str, low: int, high: int, words: Collection[str]) -> int:
    if text in words:
        return list(words).index(text) + low
    if not text.isdecimal() or not low <= int(text) <= high:
        raise ValueError(_expected(name, low, high, words, text))
    return int(text)


def _expected(name: str, low: int, high: int, words: Collection[str], found: str) -> str:
    also = f" or {', '.join(words)}" if words else ""
    return (
        f"{name}: found {found!r}, expected {low} to {high}{also}, "
        "with , for lists, - for ranges, / for steps"
    )


def _of_cron(text: str, first: datetime, last: datetime) -> Iterator[datetime]:
    """Local moments of a cron line, from the day of one to that of another: where day and weekday
    are both given, either will do."""
    minutes, hours, days, months, weekdays = cron_fields(text)
    times = [
        timedelta(hours=hour, minutes=minute)
        for hour in (hours if hours is not None else range(24))
        for minute in (minutes if minutes is not None else range(60))
    ]
    day = first.replace(hour=0, minute=0, second=0, microsecond=0)
    while day <= last:
        by_day = days is None or day.day in days
        by_weekday = weekdays is None or day.isoweekday() % 7 in weekdays
        either = days is not None and weekdays is not None and (by_day or by_weekday)
        if (months is None or day.month in months) and (either or (by_day and by_weekday)):
            yield from (day + time for time in times)
        day += timedelta(days=1)


def _of_rule(text: str | None, first: datetime) -> Iterator[datetime]:
    """Local moments of a rule, from one on."""
    yield from _cut(_rule(text or ""), first).xafter(first, inc=True)


def _rule(text: str) -> Any:
    """An iCalendar rule in local time.

    Raises: ValueError when it is none, brings a time zone of its own, never happens, or more often
    than once a minute.
    """
    from dateutil.rrule import rrulestr

    for found in re.findall(r"(?i)\b(?:INTERVAL|COUNT)=([^;\s]*)", text):
        if not re.fullmatch(r"[0-9]{1,9}", found) or not 1 <= int(found) <= MOST_COUNTED:
            raise ValueError(
                f"found INTERVAL or COUNT {found[:20]!r}, expected 1 to {MOST_COUNTED}"
            )
    if zoned := re.search(r"(?i)\bUNTIL=(\d{8}T\d{6})Z", text):
        raise ValueError(
            f"found UNTIL {zoned[1]}Z, expected a local time, without Z: `timezone` says which it "
            "is in"
        )
    try:
        found = rrulestr(text, dtstart=ANCHOR)
    except (ValueError, TypeError, AttributeError, KeyError, OverflowError) as error:
        raise ValueError(f"not a rule of iCalendar (RFC 5545): {error}") from None
    if getattr(found, "_exrule", None):
        raise ValueError("found EXRULE, which RFC 5545 no longer has; EXDATE leaves dates out")
    for one in getattr(found, "_rrule", [found]):
        _check(one)
    try:
        first = next(iter(found), None)
    except TypeError:  # dates with a zone among others
        raise ValueError(ZONED) from None
    if first is None:
        raise ValueError(NEVER)
    if first.tzinfo is not None:
        raise ValueError(ZONED)
    return found


ZONED = "expected local times without a zone: `timezone` says which they are in"
NEVER = "a rule that never happens"


def _check(rule: Any) -> None:
    """Refuse one rule that nights cannot keep, or that takes long to count.

    Raises: ValueError.
    """
    from dateutil.rrule import HOURLY, MINUTELY

    start = rule._dtstart
    if start.tzinfo is not None:
        raise ValueError(ZONED)
    if not 2000 <= start.year < 2100:
        raise ValueError(f"found DTSTART in the year {start.year}, expected 2000 to 2099")
    if rule._freq > MINUTELY or len(rule._bysecond or ()) > 1:
        raise ValueError("found nights by the second, expected a minute or more between two")
    if rule._freq >= HOURLY and rule._bysetpos:
        raise ValueError("found BYSETPOS with HOURLY or MINUTELY, expected DAILY or longer")
    late = rule.replace(dtstart=_nearer(rule, LAST_YEARS), count=None, until=None)
    if next(iter(late), None) is None and rule._interval < 100:
        raise ValueError(NEVER)


def _cut(found: Any, first: datetime) -> Any:
    """The same rule, counted from near a moment: one of years ago is not counted through."""
    from dateutil.rrule import rruleset

    if not isinstance(found, rruleset):
        return _cut_rule(found, first)
    parts: Any = found
    cut = rruleset()
    for one in parts._rrule:
        cut.rrule(_cut_rule(one, first))
    for one in parts._rdate:
        cut.rdate(one)
    for one in parts._exdate:
        cut.exdate(one)
    return cut


def _cut_rule(rule: Any, first: datetime) -> Any:
    # With a number of times it is counted from its beginning, or the number is another.
    return rule if rule._count is not None else rule.replace(dtstart=_nearer(rule, first))


def _nearer(rule: Any, first: datetime) -> datetime:
    """A beginning before `first`, a whole number of intervals after the rule's own."""
    from dateutil.rrule import DAILY, HOURLY, MINUTELY, MONTHLY, WEEKLY, YEARLY

    start, steps = rule._dtstart, {WEEKLY: 10_080, DAILY: 1_440, HOURLY: 60, MINUTELY: 1}
    if first <= start:
        return start
    if rule._freq in steps:
        step = timedelta(minutes=steps[rule._freq]) * rule._interval
        return start + ((first - start) // step) * step
    months = (12 if rule._freq == YEARLY else 1) * rule._interval
    assert rule._freq in (YEARLY, MONTHLY)
    apart = (first.year - start.year) * 12 + first.month - start.month
    # The month before: days of `first`'s own month lie before it. A 31st is not in every month.
    for number in range((apart - 1) // months, 0, -1):
        month = start.month - 1 + number * months
        with suppress(ValueError):
            return start.replace(year=start.year + month // 12, month=month % 12 + 1)
    return start
