"""The stream of all events."""
