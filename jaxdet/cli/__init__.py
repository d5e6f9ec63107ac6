"""The command line: one file per command, a client of `jaxdet.api`."""
