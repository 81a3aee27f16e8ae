"""Look at sources, to tell whether a backup would find its disks now."""

from collections.abc import Iterator

from backy.config.settings import Config
from backy.errors import ConfigError, SourceError
from backy.model.answers import LookedSource
from backy.sources import open_source


def look_at_sources(config: Config) -> Iterator[LookedSource]:
    """Ask the source of each job for its disks, one after the other. Changes nothing."""
    for job, settings in config.jobs.items():
        try:
            disks = sorted(open_source(settings.source).look())
            yield LookedSource(job=job, disks=disks, error="")
        except (ConfigError, SourceError) as error:
            yield LookedSource(job=job, disks=[], error=error.message)
