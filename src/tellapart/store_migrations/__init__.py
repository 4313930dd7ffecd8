"""How the schema of a request store came to be, step by step; `alembic` goes through what a database lacks."""

HEAD = "0002"
"""The last step."""
