"""``python -m partopt``, and the command ``partopt``."""

import sys


def main() -> None:
    """Run the command line; a Ctrl-C while it is still being imported ends it quietly too."""
    try:
        from .cli import run

        code = run()
    except KeyboardInterrupt:
        code = 130
    sys.exit(code)


if __name__ == "__main__":
    main()
