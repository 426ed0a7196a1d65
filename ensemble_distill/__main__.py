"""`python -m ensemble_distill` is `edistill`."""

import sys

from ensemble_distill.cli import interrupts


def main() -> None:
    """The command line, whose first second is spent on imports: Ctrl-C is one line there too."""
    interrupts.install()
    try:
        from ensemble_distill.cli import app

        app.main()
    except KeyboardInterrupt:
        interrupts.tell()
        sys.exit(interrupts.status())


if __name__ == "__main__":
    main()
