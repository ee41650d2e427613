"""Tenants: the owners that API keys name."""

from typing import Final

__all__ = ["TENANT"]

TENANT: Final = r"^[a-z0-9](?:[a-z0-9._-]{0,61}[a-z0-9])?$"
"""What a tenant's name looks like. No colon: it is a part of Redis keys."""
