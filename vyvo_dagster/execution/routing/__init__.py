"""One Dagster executor that routes each step of a run: to the run's process, or to a Docker engine.

Knows nothing of this system: which engine a step goes to is a `HostResolver`'s to say.
"""
