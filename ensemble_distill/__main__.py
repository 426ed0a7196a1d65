"""`python -m ensemble_distill` is `edistill`."""

import sys

from ensemble_distill.cli import interrupts


def main() -> None:
    """Run the command line; Ctrl-C prints one line, even in the first second, which goes to imports."""
    interrupts.install()
    try:
        from ensemble_distill.cli import app

        app.main()
    except KeyboardInterrupt:
        interrupts.tell()
        sys.exit(interrupts.status())


if __name__ == "__main__":
    main()
