"""What can go wrong in the store, beside `NoSpace`, `DiskFailed` and `Corrupt`, which it shares with the transfer.

| error           | retryable | whose turn it is                                           |
|-----------------|-----------|------------------------------------------------------------|
| `NotHere`       | no        | whoever asked: this node has no copy of the model          |
| `ReadOnlyRoot`  | no        | whoever set the root's mode                                |
| `BadModelFile`  | no        | the source: whole, and not what an engine can load         |
| `BadPlace`      | no        | whoever named a local path                                 |
| `Unclear`       | yes       | the node: another program changed the store meanwhile      |
| `RootGone`      | yes       | the node: its models' folder is not there any more         |
| `NeverFits`     | no        | whoever wants the model here: no device could ever hold it |
| `TooLate`       | no        | whoever set the limit: it took longer than that            |
| `Superseded`    | no        | nobody: somebody asked for other files of the same model   |
| `Removed`       | no        | nobody: the model was deleted while it came                |
"""

from __future__ import annotations

import errno

from worker.sources.errors import DiskFailed, NoSpace, SourceError


class NotHere(SourceError):
    """This node has no copy of the model."""

    code = "copy_not_found"


class ReadOnlyRoot(SourceError):
    """The models' folder may not be changed by this node."""

    code = "store_read_only"
    of_node = True


class BadModelFile(SourceError):
    """The file is whole and still none that an engine can be given; the message says why."""

    code = "model_file_invalid"


class BadPlace(SourceError):
    """A local path that is not there, or not a regular file."""

    code = "local_path_invalid"
    of_node = True


class Unclear(SourceError):
    """The store is not as it was a moment ago; the same again will see what is there now."""

    code, retryable = "store_changed", True


class RootGone(DiskFailed):
    """The models' folder was there and is not: unmounted, moved or deleted. Nothing is made in its place."""

    code = "models_root_gone"


class NeverFits(SourceError):
    """No device of this node could ever hold the model, so its files are not fetched."""

    code = "vram_insufficient"
    of_node = True


class TooLate(SourceError):
    """All tries together took longer than the settings allow; what has come of the files stays."""

    code = "download_timeout"


class Superseded(SourceError):
    """Other files of the same model were asked for; those come instead."""

    code = "superseded"


class Removed(SourceError):
    """The model was deleted while it was on its way."""

    code = "removed"


_FULL = (errno.ENOSPC, errno.EDQUOT, errno.EFBIG)


def translated(error: OSError) -> SourceError:
    """The disk's own error as one of ours. Paths are not told: they may be a person's."""
    kind = NoSpace if error.errno in _FULL else DiskFailed
    return kind(f"the disk of the models refused: {error.strerror or type(error).__name__}")
