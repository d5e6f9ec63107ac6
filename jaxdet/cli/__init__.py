"""The command line: one file per command, built on `jaxdet.api`."""
