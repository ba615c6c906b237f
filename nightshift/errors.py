"""What can go wrong, drawn once.

NightshiftError            says where, what was found, what was expected, what to do next
├── InputError             the person's turn: exit code 2, never retried
│   ├── ConfigError        pipelines.yaml, an option, a name that does not exist
│   ├── SourceError        a file that cannot be opened or lacks the declared columns
│   └── ReplayError        a past night of which something is gone that it was worked with
└── NightError             the night failed: exit code 1, yesterday stays published
    ├── BusyError          another night of this pipeline is running
    ├── AccountError       documents in is not kept + duplicates + rejects
    ├── TrainingError      the loss left the numbers, or the device ran out of memory
    ├── BundleError        a model's files are incomplete or do not belong together
    └── PassingError       a store or server did not answer: the only one worth a retry
"""

from .showing import masked


class NightshiftError(Exception):
    """Base of every error a person is meant to read; `str()` is the whole message.

    Whoever writes one need not think of the password in an address: it is masked here.
    """

    exit_code = 1

    def __init__(self, message: str = "", *more: object):
        super().__init__(masked(message), *more)


class InputError(NightshiftError):
    """Something the person gave is wrong; repeating the command cannot help."""

    exit_code = 2


class ConfigError(InputError):
    """pipelines.yaml, a command line option or a name is wrong."""


class SourceError(InputError):
    """A source file cannot be opened, or has no column of the declared name."""


class ReplayError(InputError):
    """A past night cannot be worked again: something that it was worked with is not there."""


class NightError(NightshiftError):
    """The night failed; what was published before it still is."""


class BusyError(NightError):
    """Another process is running a night of the same pipeline."""


class AccountError(NightError):
    """Documents went missing: in is not kept + duplicates + rejects."""


class TrainingError(NightError):
    """Training cannot go on: a loss that is not finite, or memory that does not suffice."""


class BundleError(NightError):
    """The files of a model are incomplete, or do not belong to one another."""


class PassingError(NightError):
    """A store or a server did not answer; the same call may succeed later."""
