"""One Dagster executor that routes each step of a run: to the run's process, or to a Docker engine.

Dagster has one step handler to a run; mixing several is asked for in dagster-io/dagster#13266.
Knows nothing of this system: which engine a step goes to is a `HostResolver`'s to say.
"""
