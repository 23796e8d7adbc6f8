"""The errors of the Hub's library, in ours. What they say themselves may hold URLs with secrets, and is left out."""

from __future__ import annotations

from typing import Final

from worker.sources import BadListing, Denied, Gated, NotThere, SourceError, Unreachable, Unsupported
from worker.sources.hubguard import Look

OFFLINE: Final = "this node is told not to ask the Hub; unset HF_HUB_OFFLINE, or use file:// or local://"


def translated(look: Look, error: Exception) -> SourceError:
    """What it means, and what to do."""
    from huggingface_hub import errors as hub

    name = look.repository
    if isinstance(error, hub.GatedRepoError):
        return _gated(look)
    if isinstance(error, hub.RevisionNotFoundError):
        return NotThere(f"{name} has no revision {look.revision or 'main'!r}")
    if isinstance(error, hub.RepositoryNotFoundError):
        hidden = "the token may not read it" if look.token else "it is private: name a token with token_ref or HF_TOKEN"
        return NotThere(f"the Hub has no {name}, or {hidden}", of_node=look.token is None)
    if isinstance(error, hub.OfflineModeIsEnabled):
        return Unsupported(f"{name}: {OFFLINE}", of_node=True)
    if isinstance(error, hub.HfHubHTTPError):
        return _of_status(look, error.response.status_code)
    if isinstance(error, (KeyError, TypeError, AttributeError)):
        return BadListing(f"{name}: the Hub's answer lacks what it should have ({type(error).__name__})")
    return Unreachable(f"the Hub cannot be asked for {name} ({type(error).__name__})")


def _gated(look: Look) -> Gated:
    page = f"{look.endpoint}/{look.repository}"
    who = "the account of the token" if look.token else "an account, and name its token with token_ref or HF_TOKEN"
    return Gated(f"{look.repository} is gated: accept its terms at {page} with {who}")


def _of_status(look: Look, status: int) -> SourceError:
    name = look.repository
    if status == 401:
        return Denied(f"the Hub does not know the token for {name}: is it complete, and still valid?")
    if status == 403:
        return Denied(f"the token may not read {name}: give it the permission to read it")
    if status == 404:
        return NotThere(f"the Hub has no {name}, or not this file of it")
    return Unreachable(f"the Hub answers {name} with status {status}")
