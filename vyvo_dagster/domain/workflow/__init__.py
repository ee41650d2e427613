"""Workflows: graphs of steps, from their definition to the end of a run. Pure."""
