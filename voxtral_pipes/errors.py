"""Everything that can go wrong in a way a user can mend, as one exception a cause.

The message is one line: what is wrong, where, and what to do.  `code` travels in `error` frames
(formats.md section 8.2); `status` is the exit status of the command.
"""


class VoxError(Exception):
    """Base of all errors whose message is meant for the user."""

    code = "failed"
    status = 1


class UsageError(VoxError):
    """The command line asks for something that does not exist or does not fit together."""

    code = "usage"
    status = 2


class BadInputError(VoxError):
    """The input is malformed, of the wrong kind, or holds values that cannot be used."""

    code = "bad-input"


class TruncatedError(BadInputError):
    """The input ended in the middle of a frame, or without `end`: whoever wrote it died."""

    code = "truncated"


class BadModelError(VoxError):
    """A model file is malformed, incomplete, or does not fit its own hyperparameters."""

    code = "bad-model"


class NoModelError(BadModelError):
    """No model was named and none was found, or the named one does not exist."""

    code = "no-model"


class UnsupportedError(VoxError):
    """A path that is not built, or a device or package that is not there."""

    code = "unsupported"


class FeedbackError(VoxError):
    """The way back from vx-flow to vx-backbone cannot be had, or is not what it should be (design.md section 5)."""

    code = "feedback"


class OutputError(VoxError):
    """The output cannot be written (disk full, no permission)."""

    code = "output"
