"""What the command `evoworld` does: one module a subcommand, with `HELP`, `add_arguments(parser)` and `run(args)`."""
