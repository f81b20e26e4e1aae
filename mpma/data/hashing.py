"""Keyed hashes of the publisher's patient and study identifiers, and of pair ids that name a person.

Decisions: BLAKE2b with a secret key of 32 random bytes, so that nobody who has a dataset can confirm
a guess at an identifier (medical record numbers are few enough to try them all against a plain
hash); 128 bits as 32 hex letters, so that collisions do not happen in practice; patient, study and pair
are hashed apart, so that equal numbers do not give equal hashes. The source's name is left out on
purpose: a patient who is met in two archives ingested with one key keeps one hash, and so one split.
The key lives outside every dataset, in the user's home or where `--key-file` says; with another key
the same archive gives other hashes and other splits.
"""

from __future__ import annotations

import hashlib
import os
import secrets
from pathlib import Path
from typing import Final, Literal

from mpma.errors import UserError

DEFAULT_KEY_FILE: Final = "~/.config/mpma/patient_key"

PUBLIC_KEY: Final = hashlib.sha256(b"synthetic patients need no secret").digest()
"""Key of synthetic sets: no person stands behind an identifier, and the result is the same everywhere."""

_KEY_BYTES: Final = 32


def keyed_hash(key: bytes, kind: Literal["patient", "study", "pair"], identifier: str) -> str:
    """32 hex letters that name a patient, a study or a pair without telling who it is."""
    data = identifier.encode("utf-8", "surrogatepass")
    return hashlib.blake2b(data, digest_size=16, key=key, person=kind.encode()).hexdigest()


def key_name(key: bytes) -> str:
    """8 hex letters by which two datasets can be seen to share a key; tells nothing of the key itself."""
    return hashlib.blake2b(key, digest_size=4, person=b"key name").hexdigest()


def load_key(path: str | os.PathLike[str]) -> bytes:
    """The key in a file of 64 hex letters.

    Raises `UserError` where the file is missing, unreadable or something else.
    """
    file = Path(path).expanduser()
    try:
        key = bytes.fromhex(file.read_text(encoding="ascii").strip())
    except OSError as error:
        raise UserError(f"{path}: the patient key cannot be read ({error.strerror})") from error
    except ValueError:
        key = b""
    if len(key) != _KEY_BYTES:
        raise UserError(
            f"{path}: not a patient key",
            f"a patient key is {2 * _KEY_BYTES} hex letters; a file that does not exist yet is made with one",
        )
    return key


def load_or_create_key(path: str | os.PathLike[str] = DEFAULT_KEY_FILE) -> tuple[bytes, bool]:
    """The key, and whether it was made just now (mode 0600, its folder 0700)."""
    file = Path(path).expanduser()
    if file.exists():
        return load_key(path), False
    try:
        file.parent.mkdir(parents=True, exist_ok=True, mode=0o700)
        temporary = file.with_name(f"{file.name}.{secrets.token_hex(4)}")
        descriptor = os.open(temporary, os.O_CREAT | os.O_EXCL | os.O_WRONLY, 0o600)
        with os.fdopen(descriptor, "w", encoding="ascii") as stream:
            stream.write(secrets.token_hex(_KEY_BYTES) + "\n")
        try:
            # A link never replaces: of two first runs at once, both take the key that was there first.
            os.link(temporary, file)
            created = True
        except FileExistsError:
            created = False
        finally:
            temporary.unlink()
    except OSError as error:
        raise UserError(
            f"{path}: the patient key cannot be made ({error.strerror})", "name another place with --key-file"
        ) from error
    return load_key(path), created
