"""Errors that a user can mend. The command line prints their text and exits with code 2; anything else is a bug."""


class RayddError(Exception):
    """Base of every error whose text tells the user what to change: the setting, its value, what is allowed, what to do."""


class ConfigError(RayddError):
    """One or more settings are out of range or contradict each other. `problems` holds one sentence for each."""

    def __init__(self, problems: list[str]):
        self.problems = list(problems)
        super().__init__("\n".join(self.problems))

    def __reduce__(self) -> tuple[type["ConfigError"], tuple[list[str]]]:
        # Errors travel between processes; by default the joined text would be taken for the list.
        return type(self), (self.problems,)


class DataError(RayddError):
    """The data source is unknown, missing, unreadable or does not fit the settings."""


class StoreError(RayddError):
    """The expert store is damaged, too short, or was made by another recipe."""


class CheckpointError(RayddError):
    """No usable checkpoint or result file: absent, truncated, altered, or of another run."""


class ResourceError(RayddError):
    """The machine or the cluster cannot meet the request: memory, GPUs, CPUs, disk space."""


class WorkerError(RayddError):
    """Workers kept dying or stopped answering; the run stands at its last checkpoint."""


class DivergenceError(RayddError):
    """Losses or gradients stayed non-finite; the run stands at its last good state."""
