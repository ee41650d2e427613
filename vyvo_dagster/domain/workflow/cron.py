"""Cron expressions: five fields, in a time zone."""

import zoneinfo
from datetime import datetime

from cronsim import CronSim, CronSimError

from vyvo_dagster.errors import InvalidInput

__all__ = ["next_time", "parse_zone"]


def parse_zone(name: str) -> zoneinfo.ZoneInfo:
    """The time zone of an IANA name.

    Raises:
        InvalidInput: there is none.
    """
    try:
        return zoneinfo.ZoneInfo(name)
    except (zoneinfo.ZoneInfoNotFoundError, ValueError, OSError) as error:
        raise InvalidInput(f"there is no time zone {name!r}") from error


def next_time(cron: str, zone: str, after: datetime) -> datetime:
    """When a cron expression comes next after `after`, in the zone's time; what it skips is not made up for.

    Raises:
        InvalidInput: it is none, or never comes.
    """
    local = after.astimezone(parse_zone(zone))
    try:
        if len(cron.split()) != 5:
            raise CronSimError("it has five fields: minute hour day month weekday")
        return next(CronSim(cron, local))
    except (CronSimError, StopIteration) as error:
        detail = str(error) or "it never comes"
        raise InvalidInput(f"{cron!r} is no cron expression: {detail}") from error
