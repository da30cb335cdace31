"""`python -m erase_sd` is `erase-sd`."""

from .cli import main

if __name__ == "__main__":
    main()
