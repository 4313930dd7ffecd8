"""``python -m tellapart``: the command line."""

from tellapart.cli.main import main

if __name__ == "__main__":
    main()
