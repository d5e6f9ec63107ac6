"""One file per task: a frozen dataclass that implements `types.Task`."""
