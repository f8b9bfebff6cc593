"""`python -m d1c`: the command line."""

from d1c.cli import main

if __name__ == "__main__":
    main()
