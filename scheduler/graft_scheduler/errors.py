"""Every error that a caller may catch, named for what the catcher does.

GraftError
├── InvalidInput      mend the input: names the field, the value and the remedy
├── NotFound          there is no such job, host, file
├── NotAllowed        the caller may not do this
├── Conflict          the thing is not in a state that allows this
├── Unreachable       Redis or the store is not there; try again
├── DoesNotFit        no host has the room now: try again later
    │   └── NeverFits     and no registered host ever will
├── Fenced            the assignment was lost: stop, write nothing
├── NoTokenizer       the model's tokenizer cannot be had here: do without its counts
├── StoreError        an artifact is missing or is not what its digest says
└── JobFailed         the job being waited for did not complete
"""

from __future__ import annotations


class GraftError(Exception):
    """Base of all errors that Graft raises on purpose; `str()` is one line for a person."""


class InvalidInput(GraftError):
    """A value that can never work."""


class NotFound(GraftError):
    """Nothing has that name."""


class NotAllowed(GraftError):
    """Refused by a rule, not by circumstance."""


class Conflict(GraftError):
    """The state it is in excludes the request."""


class Unreachable(GraftError):
    """Redis or the store does not answer."""


class DoesNotFit(GraftError):
    """No host can run the job now."""


class NeverFits(DoesNotFit):
    """No registered host can ever run the job."""


class Fenced(GraftError):
    """A newer assignment exists; the holder of this token must stop and write nothing."""


class NoTokenizer(GraftError):
    """This machine cannot turn rows into tokens as the model does; a host can."""


class StoreError(GraftError):
    """The store does not hold, or does not truly hold, what a digest names."""


class JobFailed(GraftError):
    """A job that was waited for ended in another state than completed."""
