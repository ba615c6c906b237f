"""When a pipeline's nights are due: cron, an interval or an iCalendar rule, in a time zone.

A schedule is a list of moments that never changes, its slots. Each slot is a night with a name of
its own, so which nights were missed is told from the table `nights`, whoever kept the clock.
"""

from __future__ import annotations

import re
from collections.abc import Collection, Iterator
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
    """An interval, as 30m, 6h, 1d, 2w, counted from the start of 2020 in the time zone."""
    rrule: str | None = None
    """A rule of iCalendar, as `FREQ=WEEKLY;BYDAY=MO,TH;BYHOUR=2;BYMINUTE=0;BYSECOND=0`."""
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
    rule = _cron_rule(config.cron, first - timedelta(days=2)) if config.cron else None
    found = rule or _rule(config.rrule or "")
    day, seen = timedelta(days=1), set[datetime]()
    for local in found.between(first - day, last + day, inc=True):
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


def name_of(config: ScheduleConfig, at: datetime) -> str:
    """A slot's night: its local date; with the time, too, unless it is the first of its date."""
    local = at.astimezone(config.zone)
    midnight = local.replace(hour=0, minute=0, second=0, microsecond=0, fold=0)
    before = slots(config, midnight - timedelta(seconds=1), at - timedelta(seconds=1))
    name = local.date().isoformat()
    return name if next(before, None) is None else f"{name}T{local:%H-%M}"


def newest(config: ScheduleConfig, now: datetime) -> datetime | None:
    """The last slot there was up to now; None before the first."""
    for days in (2, 40, 400, 4000):
        found = list(slots(config, now - timedelta(days=days), now))
        if found:
            return found[-1]
    return None


def between(config: ScheduleConfig, first: date, last: date) -> list[Slot]:
    """The nights of some dates, in order; without a schedule one a day, at its end."""
    start = datetime.combine(first, datetime.min.time(), config.zone)
    end = datetime.combine(last + timedelta(days=1), datetime.min.time(), config.zone)
    second = timedelta(seconds=1)
    if config.is_set:
        found = slots(config, start - second, end - second)
        return [Slot(name_of(config, at), at) for at in found]
    days = [first + timedelta(days=count) for count in range((last - first).days + 1)]
    ends = (datetime.combine(day + timedelta(days=1), datetime.min.time(), config.zone)
            for day in days)  # fmt: skip
    pairs = zip(days, ends, strict=True)
    return [Slot(day.isoformat(), at.astimezone(UTC)) for day, at in pairs]


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
    earlier = list(slots(config, since, last - timedelta(seconds=1)))[-MOST_MISSED:]
    for at in reversed(earlier):
        one = Slot(name_of(config, at), at)
        if one.name in worked:
            break
        found.append(one)
    return found[::-1]


# --- notations ------------------------------------------------------------------------------


def interval_of(text: str) -> timedelta:
    """`6h` as a duration.

    Raises: ValueError for other text, and for less than a minute.
    """
    match = EVERY.fullmatch(text.strip())
    if match is None or not int(match[1]):
        raise ValueError("expected a number and m, h, d or w, such as 30m, 6h, 1d")
    return timedelta(**{UNITS[match[2]]: int(match[1])})


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


def _cron_rule(text: str, start: datetime) -> Any:
    """A cron line as a set of rules: where day and weekday are both given, either will do."""
    from dateutil.rrule import DAILY, rrule, rruleset

    minutes, hours, days, months, weekdays = cron_fields(text)
    # Cron counts from Sunday, iCalendar from Monday.
    weekday = None if weekdays is None else [(one - 1) % 7 for one in weekdays]
    times = {
        "byminute": minutes if minutes is not None else range(60),
        "byhour": hours if hours is not None else range(24),
        "bysecond": 0,
        "bymonth": months,
        "dtstart": start.replace(hour=0, minute=0, second=0, microsecond=0),
    }
    found = rruleset()
    if days is not None and weekday is not None:
        found.rrule(rrule(DAILY, bymonthday=days, **times))
        found.rrule(rrule(DAILY, byweekday=weekday, **times))
    else:
        found.rrule(rrule(DAILY, bymonthday=days, byweekday=weekday, **times))
    return found


def _rule(text: str) -> Any:
    """An iCalendar rule in local time.

    Raises: ValueError when it is none, or brings a time zone of its own.
    """
    from dateutil.rrule import rrulestr

    try:
        found = rrulestr(text, dtstart=ANCHOR)
        first = next(iter(found), None)
    except (ValueError, TypeError, AttributeError, KeyError) as error:
        raise ValueError(f"not a rule of iCalendar (RFC 5545): {error}") from None
    if first is None:
        raise ValueError("a rule that never happens")
    if first.tzinfo is not None:
        raise ValueError("expected local times without a zone: `timezone` says which they are in")
    return found
