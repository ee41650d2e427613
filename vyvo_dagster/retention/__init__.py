"""Artifacts whose end has come, objects without a row, rows without an object."""
