"""Who asks an object store: the ways of `parameters.auth`, and where each finds its keys.

| `auth`      | keys                                                                                                |
|-------------|-----------------------------------------------------------------------------------------------------|
| `keys`      | `token_ref`: `ACCESS:SECRET[:SESSION]`, a JSON object, or a profile as in AWS's credentials file     |
| `profile`   | `parameters.profile` in `AWS_SHARED_CREDENTIALS_FILE` (for oci:// `OCI_CONFIG_FILE`), else AWS's own |
| `env`       | `AWS_ACCESS_KEY_ID`, `AWS_SECRET_ACCESS_KEY`, `AWS_SESSION_TOKEN`                                    |
| `instance`  | what the machine is given by its cloud: instance metadata, container, web identity                  |
| `anonymous` | none: requests are not signed                                                                       |

Unset: `keys` with a token_ref, else `profile` if one is named, else `env` if it is there, else `anonymous`.
"""

from __future__ import annotations

import configparser
import json
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Final, cast

from worker.sources import Denied, Secrets, Unsupported, Want

_ALIASES: Final = {
    "keys": "keys",
    "static": "keys",
    "profile": "profile",
    "user_principal": "profile",
    "userprincipal": "profile",
    "env": "env",
    "instance": "instance",
    "instance_principal": "instance",
    "instanceprincipal": "instance",
    "anonymous": "anonymous",
    "none": "anonymous",
}
_ACCESS: Final = ("aws_access_key_id", "access_key_id", "access_key", "AccessKeyId")
_SECRET: Final = ("aws_secret_access_key", "secret_access_key", "secret_key", "SecretAccessKey")
_SESSION: Final = ("aws_session_token", "session_token", "SessionToken", "Token")
_PROFILE: Final = "default"


@dataclass(frozen=True, slots=True)
class Keys:
    """`kind`: `signed` with these keys, `instance` or `anonymous`."""

    kind: str
    access: str = field(default="", repr=False)
    secret: str = field(default="", repr=False)
    session: str | None = field(default=None, repr=False)
    region: str | None = None


async def find_keys(want: Want, secrets: Secrets) -> Keys:
    """The keys for a want. Raises `Denied`, which names where they were looked for, or `Unsupported`."""
    kind = _kind(want, secrets)
    if kind == "keys":
        if want.token_ref is None:
            raise Denied("auth: keys needs token_ref, which names where the node finds ACCESS:SECRET")
        text = await secrets.read(want.token_ref, key=want.parameters.get("secretKey"))
        return read_keys(text, want.parameters.get("profile", _PROFILE), want.token_ref)
    if kind == "profile":
        return await _of_profile(want, secrets)
    if kind == "env":
        return _of_environment(secrets)
    if kind == "instance" and want.ref.scheme == "oci":
        raise Unsupported(
            "oci:// is asked by its S3 interface, which knows no instance principals: make a customer secret key and "
            "name it with token_ref"
        )
    return Keys(kind)


def _kind(want: Want, secrets: Secrets) -> str:
    given = want.parameters.get("auth")
    if given is not None:
        kind = _ALIASES.get(given.lower().replace("-", "_"))
        if kind is None:
            raise Unsupported(f"auth: {given[:40]!r} is none of keys, profile, env, instance, anonymous")
        return kind
    if want.token_ref is not None:
        return "keys"
    if want.parameters.get("profile") or secrets.variable("AWS_PROFILE"):
        return "profile"
    return "env" if secrets.variable("AWS_ACCESS_KEY_ID") else "anonymous"


def _of_environment(secrets: Secrets) -> Keys:
    access, secret = secrets.variable("AWS_ACCESS_KEY_ID"), secrets.variable("AWS_SECRET_ACCESS_KEY")
    if not access or not secret:
        raise Denied("auth: env needs AWS_ACCESS_KEY_ID and AWS_SECRET_ACCESS_KEY in the worker's environment")
    region = secrets.variable("AWS_REGION", "AWS_DEFAULT_REGION")
    return Keys("signed", access, secret, secrets.variable("AWS_SESSION_TOKEN"), region)


def _profile_file(named: str | None) -> Path:
    return Path(named).expanduser().absolute() if named else Path.home() / ".aws" / "credentials"


async def _of_profile(want: Want, secrets: Secrets) -> Keys:
    names = ("OCI_CONFIG_FILE",) if want.ref.scheme == "oci" else ()
    named = secrets.variable(*names, "AWS_SHARED_CREDENTIALS_FILE")
    path = _profile_file(named)
    profile = want.parameters.get("profile") or secrets.variable("AWS_PROFILE") or _PROFILE
    return read_keys(await secrets.read(f"file:{path}"), profile, str(path))


def read_keys(text: str, profile: str, place: str) -> Keys:
    """Keys as people keep them. Raises `Denied`, which says what is missing and never what is there."""
    text = text.strip()
    if text.startswith("{"):
        return _of_pairs(_of_json(text, place), place)
    if text.startswith(("[", "#", ";")) or "=" in text.partition("\n")[0].partition(":")[0]:
        return _of_pairs(_of_ini(text, profile, place), place)
    parts = text.split(":")
    if len(parts) not in (2, 3) or not all(part and part.isprintable() and " " not in part for part in parts):
        raise Denied(f"{place} holds no keys: write ACCESS:SECRET, or a profile with aws_access_key_id")
    return Keys("signed", parts[0], parts[1], parts[2] if len(parts) == 3 else None)


def _of_json(text: str, place: str) -> Mapping[str, str]:
    try:
        found = cast(object, json.loads(text))
    except ValueError:
        raise Denied(f"{place} begins like JSON and is none") from None
    pairs = cast(dict[str, object], found) if isinstance(found, dict) else {}
    return {name: value for name, value in pairs.items() if isinstance(value, str)}


def _of_ini(text: str, profile: str, place: str) -> Mapping[str, str]:
    parser = configparser.RawConfigParser(strict=False, default_section="\0")
    try:
        parser.read_string(text if text.lstrip("#;\n ").startswith("[") or "\n[" in text else f"[{profile}]\n{text}")
    except configparser.Error:
        raise Denied(f"{place} is no profile file that can be read") from None
    section = next(
        (name for name in (profile, profile.upper(), f"profile {profile}") if parser.has_section(name)), None
    )
    if section is None:
        raise Denied(f"{place} has no profile {profile!r}")
    return dict(parser.items(section))


def _of_pairs(pairs: Mapping[str, str], place: str) -> Keys:
    def find(names: tuple[str, ...]) -> str | None:
        return next((pairs[name].strip() for name in names if pairs.get(name, "").strip()), None)

    access, secret = find(_ACCESS), find(_SECRET)
    if access is None or secret is None:
        hint = ": make a customer secret key, its signing key cannot be used here" if "fingerprint" in pairs else ""
        raise Denied(f"{place} lacks aws_access_key_id or aws_secret_access_key{hint}")
    return Keys("signed", access, secret, find(_SESSION), find(("region",)))
