"""Where a bucket is: endpoint, region, and whether it stands in the host name or in the path."""

from __future__ import annotations

import re
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Final
from urllib.parse import quote

from schemas.source import SourceRef
from worker.sources import Secrets, Unsupported
from worker.sources.s3keys import Keys

_NAME: Final = re.compile(r"[A-Za-z0-9_-]{1,64}")
_ADDRESS: Final = re.compile(r"[A-Za-z0-9.:\[\]/_-]+")


@dataclass(frozen=True, slots=True)
class Place:
    """A bucket and where it is. `base`: the URL below which its keys are."""

    endpoint: str | None
    region: str
    bucket: str
    base: str
    virtual: bool

    def url(self, key: str) -> str:
        """Of an object, unsigned."""
        return f"{self.base}/{quote(key, safe='/-_.~')}"


def place_of(ref: SourceRef, parameters: Mapping[str, str], keys: Keys, secrets: Secrets) -> Place:
    """Where the bucket is. Raises `Unsupported` for what cannot be an address."""
    region = parameters.get("region") or keys.region or secrets.variable("AWS_REGION", "AWS_DEFAULT_REGION")
    endpoint = parameters.get("endpoint") or (
        _oracle(ref, region) if ref.scheme == "oci" else secrets.variable("AWS_ENDPOINT_URL_S3", "AWS_ENDPOINT_URL")
    )
    region = region or "us-east-1"
    if not _NAME.fullmatch(region):
        raise Unsupported(f"region: {region[:40]!r} is no region")
    virtual = _virtual(parameters, endpoint, ref.place)
    if endpoint is None:
        home = f"{ref.place}.s3.{region}.amazonaws.com" if virtual else f"s3.{region}.amazonaws.com/{ref.place}"
        return Place(None, region, ref.place, f"https://{home}", virtual)
    scheme, mark, rest = endpoint.rstrip("/").partition("://")
    if not mark or scheme not in ("https", "http") or not _ADDRESS.fullmatch(rest):
        raise Unsupported("endpoint: write one like https://minio.example:9000")
    base = f"{scheme}://{ref.place}.{rest}" if virtual else f"{scheme}://{rest}/{ref.place}"
    return Place(base if virtual else f"{scheme}://{rest}", region, ref.place, base, virtual)


def _oracle(ref: SourceRef, region: str | None) -> str:
    if region is None:
        raise Unsupported("oci:// needs parameters.region, for example eu-frankfurt-1")
    return f"https://{ref.namespace}.compat.objectstorage.{region}.oraclecloud.com"


def _virtual(parameters: Mapping[str, str], endpoint: str | None, bucket: str) -> bool:
    """Whether the bucket stands in the host name. One with dots has no certificate there."""
    told = parameters.get("path_style")
    if told not in (None, "true", "false"):
        raise Unsupported("path_style: write true or false")
    return told == "false" if told is not None else endpoint is None and "." not in bucket


def shown(ref: SourceRef) -> str:
    """For people."""
    return f"{ref.scheme}://{ref.place}/{ref.inner or ''}"[:200]


def folder_of(ref: SourceRef) -> tuple[str, str | None]:
    """The folder of the source with its slash, and the one file of it if that is meant."""
    folder, mark, file = (ref.inner or "").rpartition("/")
    return folder + mark, file or None
