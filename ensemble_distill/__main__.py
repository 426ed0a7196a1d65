"""`python -m ensemble_distill` is `edistill`."""

from ensemble_distill.cli.app import main

main()
