"""Run by alembic: all steps go into the transaction of the connection that it was given, so an
upgrade is whole or absent."""

from __future__ import annotations

from alembic import context

context.configure(connection=context.config.attributes["connection"], transactional_ddl=True)
context.run_migrations()
