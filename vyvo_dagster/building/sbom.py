"""The software bill of materials of a runner, in CycloneDX 1.6 (ECMA-424) as JSON.

What is known for sure: every wheel by the hash that the lock holds for it, the base image by its
digest, the repository by its commit. The same inputs give the same document, its time apart.
"""

import uuid
from dataclasses import dataclass
from datetime import datetime
from pathlib import Path
from typing import Any, Final
from zipfile import BadZipFile, ZipFile

from cyclonedx import model
from cyclonedx.contrib.license.factories import LicenseFactory
from cyclonedx.model import bom as bom_model
from cyclonedx.model import component as component_model
from cyclonedx.output import make_outputter
from cyclonedx.schema import OutputFormat, SchemaVersion
from packageurl import PackageURL
from packaging.metadata import parse_email
from packaging.utils import InvalidWheelFilename, parse_wheel_filename

from vyvo_dagster.building.caches import sha256_of

__all__ = ["Contents", "make_sbom"]

# The library's decorators hide its classes' own signatures from the type checker.
_ComponentType = component_model.ComponentType
_Component: Any = component_model.Component
_Bom: Any = bom_model.Bom
_BomMetaData: Any = bom_model.BomMetaData
_Property: Any = model.Property
_HashType: Any = model.HashType
_XsUri: Any = model.XsUri
_Reference: Any = model.ExternalReference

# A document of equal contents has an equal serial number.
_NAMESPACE: Final = uuid.UUID("b1e9f3a2-6a6c-5c35-9f0e-5d1d5bb9f0a4")
_METADATA_BYTES: Final = 1 << 20


@dataclass(frozen=True, slots=True)
class Contents:
    """What a runner was made of. Digests are `sha256:<hex>`; what was not used is None."""

    model_id: str
    version: str
    image: str
    digest: str
    wheels: Path | None
    base_image: str | None
    base_digest: str | None
    repo: str | None
    commit: str | None
    template: str
    template_hash: str


def make_sbom(contents: Contents, made_at: datetime) -> bytes:
    """The document as UTF-8 JSON.

    Args:
        contents: what the runner was made of.
        made_at: time of the build, aware.
    """
    runner = _Component(
        name=contents.model_id, version=contents.version, type=_ComponentType.CONTAINER,
        bom_ref="runner", hashes=_hashes(contents.digest),
        properties=[
            _Property(name="vyvo:image", value=contents.image),
            _Property(name="vyvo:template", value=contents.template),
            _Property(name="vyvo:template_hash", value=contents.template_hash),
        ],
    )  # fmt: skip
    bom = _Bom(
        serial_number=uuid.uuid5(_NAMESPACE, f"{contents.model_id}@{contents.digest}"),
        metadata=_BomMetaData(component=runner, timestamp=made_at),
    )
    parts = [*_wheels(contents.wheels), *_base(contents), *_source(contents)]
    for part in parts:
        bom.components.add(part)
    bom.register_dependency(runner, parts)
    text = make_outputter(bom, OutputFormat.JSON, SchemaVersion.V1_6).output_as_string(indent=1)
    return text.encode()


def _wheels(folder: Path | None) -> list[Any]:
    found: list[Any] = []
    for wheel in sorted(folder.glob("*.whl")) if folder else []:
        try:
            name, version, _, _ = parse_wheel_filename(wheel.name)
        except InvalidWheelFilename:
            continue
        purl = PackageURL("pypi", name=name, version=str(version))
        found.append(
            _Component(
                name=name, version=str(version), type=_ComponentType.LIBRARY, bom_ref=str(purl),
                purl=purl, hashes=_hashes(f"sha256:{sha256_of(wheel)}"),
                licenses=[LicenseFactory().make_from_string(text) for text in _license(wheel)],
            )
        )  # fmt: skip
    return found


def _license(wheel: Path) -> list[str]:
    """The licence that a wheel names for itself, in a short form."""
    try:
        with ZipFile(wheel) as archive:
            name = next(n for n in archive.namelist() if n.endswith(".dist-info/METADATA"))
            with archive.open(name) as file:
                metadata, _ = parse_email(file.read(_METADATA_BYTES))
    except (BadZipFile, StopIteration, OSError):
        return []
    text = metadata.get("license_expression") or metadata.get("license") or ""
    return [text] if 0 < len(text) <= 100 and "\n" not in text else []


def _base(contents: Contents) -> list[Any]:
    if contents.base_image is None or contents.base_digest is None:
        return []
    return [
        _Component(
            name=contents.base_image, version=contents.base_digest, type=_ComponentType.CONTAINER,
            bom_ref="base", hashes=_hashes(contents.base_digest),
        )
    ]  # fmt: skip


def _source(contents: Contents) -> list[Any]:
    if contents.repo is None or contents.commit is None:
        return []
    reference = _Reference(type=model.ExternalReferenceType.VCS, url=_XsUri(contents.repo))
    return [
        _Component(
            name=contents.repo.removeprefix("https://"), version=contents.commit,
            type=_ComponentType.APPLICATION, bom_ref="source", external_references=[reference],
        )
    ]  # fmt: skip


def _hashes(digest: str) -> list[Any]:
    content = digest.removeprefix("sha256:")
    return [_HashType(alg=model.HashAlgorithm.SHA_256, content=content)]
