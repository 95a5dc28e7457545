"""``python -m fxfuse`` is ``fxfuse``."""

from fxfuse.cli import main

if __name__ == "__main__":
    main()
