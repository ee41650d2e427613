"""Backup and restore of what cannot be made again: both databases and all objects."""
