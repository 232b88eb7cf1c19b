"""``python -m stagelens``: the command line."""

from stagelens.cli import main

if __name__ == "__main__":
    main()
