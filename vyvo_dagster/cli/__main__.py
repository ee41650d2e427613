"""`python -m vyvo_dagster.cli` is `vyvo`."""

from vyvo_dagster.cli import main

if __name__ == "__main__":
    main(prog_name="vyvo")
