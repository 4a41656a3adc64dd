"""Tokens of the API: made here, shown once, and from then on known by their hash only."""

from __future__ import annotations

import hashlib
import hmac
from datetime import timedelta

from standby.clock import Clock, new_token
from standby.server.masking import SECRETS
from standby.server.store import Store
from standby.server.store.tables import ApiToken
from standby.server.store.tokens import ROLES

PREFIX = "standby-"
"""What every token begins with, so that scanners for leaked secrets can find one."""
SECRET_BYTES = 32


def token_hash(text: str) -> str:
    """What is stored of a token. A plain SHA-256 does: the token is 256 random bits."""
    return hashlib.sha256(text.encode("utf-8", "surrogatepass")).hexdigest()


def new_api_token(
    store: Store, clock: Clock, name: str, role: str, *, valid: timedelta | None = None, by: str
) -> tuple[ApiToken, str]:
    """A token under a name of its own: (what is stored, the token itself, to be shown once)."""
    text = SECRETS.add(PREFIX + new_token(SECRET_BYTES))
    expires_at = clock.now() + valid if valid is not None else None
    return store.tokens.add(name, role, token_hash(text), expires_at=expires_at, by=by), text


def found_token(store: Store, text: str) -> ApiToken | None:
    """The token that `text` is, if it may be used now. The database looks for the hash, of which
    time tells nothing useful; the last word has a comparison that takes the same time always."""
    wanted = token_hash(text)
    token = store.tokens.find(wanted)
    return token if token is not None and hmac.compare_digest(token.hash, wanted) else None


def may(role: str, needed: str) -> bool:
    """Whether the role includes what `needed` may: viewer, operator, admin, in this order."""
    return ROLES.index(role) >= ROLES.index(needed)
