"""Pools of nodes and what changes their size."""
