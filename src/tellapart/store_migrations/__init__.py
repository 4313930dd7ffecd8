"""How the schema of a request store came to be, step by step; `alembic` goes through what a database lacks."""

HEAD = "0003"
"""The last step."""
