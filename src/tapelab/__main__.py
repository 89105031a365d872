"""`python -m tapelab` is `tapelab`."""

from tapelab.faces.cli import main

if __name__ == "__main__":
    raise SystemExit(main())
