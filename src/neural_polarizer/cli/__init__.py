"""The command line: parse and print."""

import sys


def start() -> None:
    """The command ``polarizer``: the command line, or what is missing for it."""
    try:
        from neural_polarizer.cli.main import main
    except ModuleNotFoundError as error:
        sys.exit(f"error: the command line needs {error.name}: pip install 'neural-polarizer[cli]'")
    main()
