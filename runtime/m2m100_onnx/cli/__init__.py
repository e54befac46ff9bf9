"""The `m2m100` command, a file a subcommand."""
