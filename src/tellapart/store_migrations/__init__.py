"""How the schema of a request store came to be, step by step; `alembic` goes through what a database lacks."""

# To be raised with each new step. A store that has this one is not looked at further, and one that Alembic has brought
# beyond it is refused as that of a newer version.
HEAD = "0003"
"""The last step."""
