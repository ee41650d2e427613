"""Alembic's entry: runs over the connection that `store.migrate` hands it."""

from alembic import context

from vyvo_dagster.store.tables import metadata

connection = context.config.attributes["connection"]
context.configure(connection=connection, target_metadata=metadata, compare_type=True)
with context.begin_transaction():
    context.run_migrations()
