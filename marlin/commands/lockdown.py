"""`metal-marlin lockdown`: what `serve --lock-down` would hold with these settings, and what is
missing."""

from marlin import config
from marlin.streams import say


def add_arguments(parser):
    """Declare the command's arguments, which are serve's, on a Parser."""
    config.add_arguments(parser)
    parser.add_argument("--check", action="store_true", help="what it does with and without this")


def run(arguments):
    """Print the table. Returns 0 if nothing is missing, else 1."""
    from marlin.server.process.requirements import REQUIREMENTS

    settings = config.serve_config(vars(arguments), arguments.environ)
    num_missing = 0
    for row in REQUIREMENTS:
        missing = row.missing(settings)
        num_missing += missing is not None
        say(
            f"{'MISSING' if missing else 'held':7}  {row.name}"
            + (f": {missing}" if missing else "")
        )
    say(f"{num_missing} of {len(REQUIREMENTS)} are missing" if num_missing else "all are held")
    return 1 if num_missing else 0
