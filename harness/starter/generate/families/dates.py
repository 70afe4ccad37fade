"""Calendars, clocks and slots of time."""

from harness.starter.generate.draw import Draw
from harness.starter.generate.family import Family, Module, write_module

_CALENDAR = '''
DAYS = [31, 28, 31, 30, 31, 30, 31, 31, 30, 31, 30, 31]


def $leap(year: int) -> bool:
    """Whether the year has a 29th of February."""
    return year % 4 == 0 and (year % 100 != 0 or year % 400 == 0)


def $days(year: int, month: int) -> int:
    """$doc"""
    if month < 1 or month > 12:
        raise ValueError(f"no month {month}")
    if month == 2 and $leap(year):
        return 29
    return DAYS[month - 1]


def $day(year: int, month: int, day: int) -> int:
    """The number of a day in its year, counted from 1."""
    return sum($days(year, each) for each in range(1, month)) + day


def $following(year: int, month: int) -> tuple[int, int]:
    """The month after this one, with its year."""
    if month == 12:
        return year + 1, 1
    return year, month + 1
'''


def leap_calendar(draw: Draw) -> Module:
    """Months and leap years."""
    thing = draw.thing()
    slots = {
        "leap": draw.glue((thing.one,), ("leap_year", "leap", "long_year")),
        "days": draw.glue((thing.one,), ("days", "month_days", "month_length")),
        "day": draw.glue((thing.one,), ("day_number", "year_day", "day_of_year")),
        "following": draw.glue(("next", "following"), (thing.one,), ("month",)),
        "doc": draw.pick(
            "How many days the month has in that year; raises ValueError for a wrong month.",
            f"The length of a month in days, for the calendar of {thing.many}.",
        ),
    }
    year, leap = draw.pick(1999, 2001, 2015, 2023), draw.pick(1996, 2004, 2012, 2024)
    months = draw.sample(range(3, 12), 2)
    probes = [f"$leap({each})" for each in (year, leap, 1900, 2000, 2100)]
    probes += [f"$days({year}, 2)", f"$days({leap}, 2)", f"$days({year}, {months[0]})", f"$days({year}, 12)"]
    probes += [f"$days({year}, 0)", f"$days({year}, 13)", f"$day({year}, 1, {months[1]})", f"$day({leap}, 3, 1)"]
    probes += [f"$day({year}, 12, 31)", f"$following({year}, 12)", f"$following({year}, {months[1]})"]
    probes += [f"$following({year}, 11)", f"$days({leap}, 1)"]
    name = draw.pick("calendar", "months", "years")
    return write_module(draw, name, f"The calendar of {thing.many}.", _CALENDAR, slots, probes)


_CLOCK = '''
DAY = 24 * 60


def $minutes(clock: str) -> int:
    """The minutes since midnight of a time such as 9:05."""
    hours, minutes = clock.split(":")
    if int(hours) >= 24 or int(minutes) >= 60:
        raise ValueError(f"no time: {clock}")
    return int(hours) * 60 + int(minutes)


def $clock(minutes: int) -> str:
    """The time of day of so many minutes since midnight; days do not count."""
    hours, rest = divmod(minutes % DAY, 60)
    return f"{hours}:{rest:02d}"


def $later(clock: str, minutes: int = $default) -> str:
    """$doc"""
    return $clock($minutes(clock) + minutes)


def $between(start: str, end: str) -> int:
    """The minutes from start to end; an end before the start is on the next day."""
    return ($minutes(end) - $minutes(start)) % DAY
'''


def clock_minutes(draw: Draw) -> Module:
    """Times of day."""
    thing = draw.thing()
    default = draw.pick(5, 15, 20, 30)
    slots = {
        "minutes": draw.glue((thing.one,), ("minutes", "minute_of_day", "since_midnight")),
        "clock": draw.glue((thing.one,), ("clock", "time_of_day", "hour_text")),
        "later": draw.glue((thing.one,), ("later", "after", "end_time")),
        "between": draw.glue((thing.one,), ("between", "lasts", "distance")),
        "default": default,
        "doc": draw.pick(
            f"The time when a {thing.one} ends that takes so many minutes, {default} by default.",
            "A time of day so many minutes later.",
        ),
    }
    h, m = draw.number(1, 22), draw.number(10, 58)
    probes = [f"$minutes('{h}:{m}')", "$minutes('0:00')", "$minutes('24:00')", "$minutes('9:60')", "$minutes('23:59')"]
    probes += [f"$clock({h * 60 + m})", "$clock(0)", f"$clock({1440 + m})", "$clock(1439)", f"$clock({h * 60 + 5})"]
    probes += [f"$later('{h}:{m}')", f"$later('{h}:{m}', 60)", "$later('23:50', 20)", f"$later('{h}:00', minutes=7)"]
    probes += [
        f"$between('{h}:00', '{h + 1}:{m}')",
        f"$between('{h}:{m}', '{h}:00')",
        f"$between('{h}:{m}', '{h}:{m}')",
    ]
    name = draw.pick("clock", "daytime", "minutes")
    return write_module(draw, name, f"Times of {thing.many}.", _CLOCK, slots, probes)


_SLOTS = '''
def $overlap(first: tuple[int, int], second: tuple[int, int]) -> bool:
    """$doc"""
    return first[0] < second[1] and second[0] < first[1]


def $merge(slots: list[tuple[int, int]]) -> list[tuple[int, int]]:
    """The slots in order, with those that overlap or touch made one."""
    result: list[tuple[int, int]] = []
    for start, end in sorted(slots):
        if result and start <= result[-1][1]:
            result[-1] = (result[-1][0], max(result[-1][1], end))
        else:
            result.append((start, end))
    return result


def $free(slots: list[tuple[int, int]], start: int, end: int) -> list[tuple[int, int]]:
    """What the slots leave free between start and end."""
    gaps = []
    for first, last in $merge(slots):
        if first > start:
            gaps.append((start, min(first, end)))
        start = max(start, last)
    if start < end:
        gaps.append((start, end))
    return gaps
'''


def slot_overlap(draw: Draw) -> Module:
    """Slots of time."""
    thing = draw.thing()
    slots = {
        "overlap": draw.glue((thing.one,), ("overlap", "clash", "collide", "conflict")),
        "merge": draw.glue(("merge", "join", "unite"), (thing.one,), ("slots", "times")),
        "free": draw.glue(("free", "open", "idle"), (thing.one,), ("slots", "times")),
        "doc": draw.pick(
            f"Whether two {thing.many} are at the same time; the end of a slot does not belong to it.",
            "Whether the two slots have some time in common; slots that only touch have none.",
        ),
    }
    a = draw.number(1, 9)
    b, c, d = a + draw.number(2, 4), a + draw.number(6, 8), a + draw.number(9, 12)
    pairs = [((a, b), (b, c)), ((a, c), (b, d)), ((b, d), (a, c)), ((a, d), (b, c)), ((c, d), (a, b)), ((b, c), (a, b))]
    probes = [f"$overlap({first}, {second})" for first, second in pairs]
    lists: tuple[list[tuple[int, int]], ...] = (
        [(b, c), (a, b)],
        [(c, d), (a, b)],
        [(a, d), (b, c)],
        [(b, d), (a, c)],
        [],
    )
    probes += [f"$merge({each})" for each in lists]
    probes += [f"$free({[(b, c)]}, {a}, {d})", f"$free([], {a}, {b})", f"$free({[(a, c)]}, {a}, {c})"]
    probes += [f"$free({[(a, b), (c, d)]}, {a}, {d + 2})"]
    name = draw.pick("slots", "bookings", "timetable")
    return write_module(draw, name, f"Times of {thing.many}.", _SLOTS, slots, probes)


_QUARTERS = '''
def $quarter(month: int, $first: int = 1) -> int:
    """$doc"""
    if not 1 <= month <= 12:
        raise ValueError(f"no month {month}")
    return (month - $first) % 12 // 3 + 1


def $year(year: int, month: int, $first: int = $default) -> int:
    """The business year, named after the year in which it starts."""
    if month < $first:
        return year - 1
    return year


def $age(born: tuple[int, int, int], today: tuple[int, int, int]) -> int:
    """Full years between two dates given as year, month, day."""
    years = today[0] - born[0]
    if today[1:] < born[1:]:
        years -= 1
    return years
'''


def fiscal_quarter(draw: Draw) -> Module:
    """Quarters, business years and ages."""
    thing = draw.thing()
    default = draw.pick(4, 7, 10)
    slots = {
        "quarter": draw.glue((thing.one,), ("quarter", "quarter_of", "season")),
        "year": draw.glue((thing.one,), ("year", "business_year", "fiscal_year")),
        "age": draw.glue((thing.one,), ("age", "full_years", "years_old")),
        "first": draw.pick("first", "first_month", "opening"),
        "default": default,
        "doc": draw.pick(
            "The quarter, 1 to 4, of a month; the business year may start with another month than January.",
            f"In which quarter of the year the {thing.one} lies, counted from the first month.",
        ),
    }
    y = draw.number(1960, 2010)
    m, d = draw.number(2, 11), draw.number(2, 27)
    probes = [f"$quarter({month})" for month in (1, 3, 4, 12, 13, 0)]
    probes += [f"$quarter({m}, {default})", f"$quarter({default}, $first={default})", f"$quarter(3, {default})"]
    probes += [f"$year({y}, {month})" for month in (default, default - 1, 12)] + [f"$year({y}, {m}, {m + 1})"]
    today = y + draw.number(5, 40)
    dates = ((today, m, d), (today, m, d - 1), (today, m - 1, d + 1), (today, m + 1, 1))
    probes += [f"$age({(y, m, d)}, {date})" for date in dates]
    name = draw.pick("quarters", "business_years", "ages")
    return write_module(draw, name, f"Years of {thing.many}.", _QUARTERS, slots, probes)


FAMILIES: dict[str, Family] = {
    "leap_calendar": leap_calendar,
    "clock_minutes": clock_minutes,
    "slot_overlap": slot_overlap,
    "fiscal_quarter": fiscal_quarter,
}
