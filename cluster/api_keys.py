"""API keys: what clients show, and what is kept of it.

A key is ``tk-ID-SECRET``. The id finds the record; of the secret only a keyed hash is kept, under a
random key of its own. A secret has 256 random bits, so that a slow hash would add nothing.
"""

import hmac
import re
import secrets
import time
from hashlib import blake2b
from typing import NamedTuple

from pydantic import BaseModel, ConfigDict

_FORM = re.compile(r"tk-([0-9a-f]{16})-([0-9a-f]{64})")


class ApiKey(NamedTuple):
    """A key as a client shows it."""

    id: str
    secret: str

    def __str__(self) -> str:
        return f"tk-{self.id}-{self.secret}"

    def __repr__(self) -> str:
        return f"ApiKey(tk-{self.id}-…)"


class ApiKeyRecord(BaseModel):
    """What is kept of a key."""

    model_config = ConfigDict(frozen=True)

    id: str
    tenant: str
    """Name of the tenant that it stands for."""
    tenant_uid: str
    """Which tenant of that name: another one that takes the name later does not take its keys."""
    salt: str
    """Key of the hash, hexadecimal."""
    digest: str
    """Keyed hash of the secret, hexadecimal."""
    created_at: float
    """Seconds since 1970."""

    def matches(self, key: ApiKey) -> bool:
        """Whether `key` is the one that this was made of; takes the same time for all secrets."""
        return hmac.compare_digest(self.digest, _digest(key.secret, self.salt))


def new_api_key(tenant: str, tenant_uid: str) -> tuple[ApiKey, ApiKeyRecord]:
    """A key that nobody has yet, to be shown once and not kept; and its record."""
    key = ApiKey(secrets.token_hex(8), secrets.token_hex(32))
    salt = secrets.token_hex(32)
    record = ApiKeyRecord(
        id=key.id,
        tenant=tenant,
        tenant_uid=tenant_uid,
        salt=salt,
        digest=_digest(key.secret, salt),
        created_at=time.time(),
    )
    return key, record


def parse_api_key(text: str) -> ApiKey | None:
    """The key that `text` is, or None if it has not the form of one."""
    found = _FORM.fullmatch(text)
    return ApiKey(*found.groups()) if found else None


def _digest(secret: str, salt: str) -> str:
    return blake2b(secret.encode(), key=bytes.fromhex(salt), digest_size=32).hexdigest()
