"""`python -m erase_sd` runs the `erase-sd` program."""

from .cli import main

if __name__ == "__main__":
    main()
