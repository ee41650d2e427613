"""How long rows are kept that nothing needs any more."""

from datetime import timedelta

from dagster import ConfigurableResource
from pydantic import Field

from vyvo_dagster.settings import Settings

__all__ = ["RetentionResource"]


class RetentionResource(ConfigurableResource[None]):
    """Days, of which each kind of row has its own."""

    webhook_days: float = Field(default=30, gt=0, description="Of webhook deliveries that ended.")
    dead_entry_days: float = Field(default=30, gt=0, description="Of unreadable stream entries.")
    node_event_days: float = Field(default=90, gt=0, description="Of the history of nodes.")

    @classmethod
    def of(cls, settings: Settings) -> "RetentionResource":
        """As the settings say."""
        return cls(
            webhook_days=settings.keep_webhook_days,
            dead_entry_days=settings.keep_dead_entry_days,
            node_event_days=settings.keep_node_event_days,
        )

    @property
    def webhooks(self) -> timedelta:
        """Age at which a delivery that has ended is deleted."""
        return timedelta(days=self.webhook_days)

    @property
    def dead_entries(self) -> timedelta:
        """Age at which an unreadable entry is deleted."""
        return timedelta(days=self.dead_entry_days)

    @property
    def node_events(self) -> timedelta:
        """Age at which an event of a node is deleted."""
        return timedelta(days=self.node_event_days)
