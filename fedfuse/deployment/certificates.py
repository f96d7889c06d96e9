"""Certificates and keys that a SuperLink and its SuperNodes authenticate with.

A SuperLink shows a TLS certificate, signed by the federation's own authority; clients trust that
authority and no other. A SuperNode signs every request with a key (ECDSA, P-384) of which the
SuperLink knows the public half. Only their owner can read private keys, and no file is overwritten
but the SuperLink's certificate and key, when they are made anew.
"""

from __future__ import annotations

import os
from collections.abc import Sequence
from datetime import UTC, datetime, timedelta
from ipaddress import ip_address
from pathlib import Path

from cryptography import x509
from cryptography.hazmat.primitives import hashes
from cryptography.hazmat.primitives.asymmetric import ec
from cryptography.hazmat.primitives.serialization import (
    Encoding,
    NoEncryption,
    PrivateFormat,
    PublicFormat,
    load_pem_private_key,
)
from cryptography.x509.oid import ExtendedKeyUsageOID, NameOID

from fedfuse.errors import FedfuseError, check

AUTHORITY_DAYS = 3650
CERTIFICATE_DAYS = 825  # the most that browsers and macOS accept


def make_superlink_files(folder: Path, names: Sequence[str]) -> list[Path]:
    """Make a SuperLink's certificate and key, and the authority that signs it where there is none.

    Args:
        folder: gets ``ca.crt``, ``ca.key``, ``superlink.crt`` and ``superlink.key``, all PEM. Of
            these only ``ca.crt`` is for others; ``ca.key`` is needed to make a certificate anew.
        names: every host name and IP address that the SuperLink is connected to by.

    Raises:
        FedfuseError: for no names, or an authority of which one file is missing or unreadable.
    """
    check("names of the SuperLink", "none", "at least one", names)
    folder.mkdir(parents=True, exist_ok=True)
    authority, authority_key = _authority(folder / "ca.crt", folder / "ca.key")
    key = ec.generate_private_key(ec.SECP384R1())
    issued_by = x509.AuthorityKeyIdentifier.from_issuer_public_key(authority_key.public_key())
    certificate = (
        _certificate(names[0], key, CERTIFICATE_DAYS, issuer=authority.subject)
        .add_extension(x509.BasicConstraints(ca=False, path_length=None), critical=True)
        .add_extension(x509.SubjectAlternativeName([_name(name) for name in names]), critical=False)
        .add_extension(x509.ExtendedKeyUsage([ExtendedKeyUsageOID.SERVER_AUTH]), critical=False)
        .add_extension(issued_by, critical=False)
        .sign(authority_key, hashes.SHA384())
    )
    files = [folder / "superlink.crt", folder / "superlink.key"]
    files[0].write_bytes(certificate.public_bytes(Encoding.PEM))
    files[1].unlink(missing_ok=True)
    _write_secret(files[1], _pem(key))
    return [folder / "ca.crt", folder / "ca.key", *files]


def make_node_files(folder: Path, name: str) -> list[Path]:
    """Make a SuperNode's key: ``NAME.key``, which stays on its machine, and ``NAME.pub``.

    Both are in OpenSSH's formats, as Flower reads them.

    Raises:
        FedfuseError: when there is a key of that name already.
    """
    folder.mkdir(parents=True, exist_ok=True)
    private, public = folder / f"{name}.key", folder / f"{name}.pub"
    key = ec.generate_private_key(ec.SECP384R1())
    _write_secret(private, key.private_bytes(Encoding.PEM, PrivateFormat.OpenSSH, NoEncryption()))
    text = key.public_key().public_bytes(Encoding.OpenSSH, PublicFormat.OpenSSH)
    public.write_bytes(text + f" {name}\n".encode())
    return [private, public]


def _authority(file: Path, key_file: Path) -> tuple[x509.Certificate, ec.EllipticCurvePrivateKey]:
    """The authority in two files, which are made when neither is there."""
    if file.exists() != key_file.exists():
        there, missing = (file, key_file) if file.exists() else (key_file, file)
        raise FedfuseError(f"{there} and {missing}: expected both or neither, got the first alone")
    if not file.exists():
        key = ec.generate_private_key(ec.SECP384R1())
        certificate = (
            _certificate("fedfuse authority", key, AUTHORITY_DAYS)
            .add_extension(x509.BasicConstraints(ca=True, path_length=0), critical=True)
            .add_extension(_may_sign(), critical=True)
            .sign(key, hashes.SHA384())
        )
        _write_secret(key_file, _pem(key))
        file.write_bytes(certificate.public_bytes(Encoding.PEM))
    try:
        loaded = load_pem_private_key(key_file.read_bytes(), None)
        authority = x509.load_pem_x509_certificate(file.read_bytes())
    except (OSError, ValueError, TypeError) as error:
        message = f"{file} and {key_file}: expected the files of an authority: {error}"
        raise FedfuseError(message) from error
    if not isinstance(loaded, ec.EllipticCurvePrivateKey):
        raise FedfuseError(f"{key_file}: expected a key of the elliptic curve P-384, got another")
    return authority, loaded


def _certificate(
    name: str, key: ec.EllipticCurvePrivateKey, days: int, issuer: x509.Name | None = None
) -> x509.CertificateBuilder:
    """A certificate for a key before further extensions; by itself if no issuer is given."""
    subject = x509.Name([x509.NameAttribute(NameOID.COMMON_NAME, name)])
    now = datetime.now(UTC)
    return (
        x509.CertificateBuilder(subject_name=subject, issuer_name=issuer or subject)
        .public_key(key.public_key())
        .serial_number(x509.random_serial_number())
        # Clocks differ: a certificate that is valid from now on is not yet, elsewhere.
        .not_valid_before(now - timedelta(days=1))
        .not_valid_after(now + timedelta(days=days))
        .add_extension(x509.SubjectKeyIdentifier.from_public_key(key.public_key()), critical=False)
    )


def _may_sign() -> x509.KeyUsage:
    return x509.KeyUsage(
        digital_signature=False,
        content_commitment=False,
        key_encipherment=False,
        data_encipherment=False,
        key_agreement=False,
        key_cert_sign=True,
        crl_sign=True,
        encipher_only=False,
        decipher_only=False,
    )


def _name(name: str) -> x509.GeneralName:
    try:
        return x509.IPAddress(ip_address(name))
    except ValueError:
        return x509.DNSName(name)


def _pem(key: ec.EllipticCurvePrivateKey) -> bytes:
    return key.private_bytes(Encoding.PEM, PrivateFormat.PKCS8, NoEncryption())


def _write_secret(file: Path, content: bytes) -> None:
    """Write a new file that only its owner can read, at no moment anybody else."""
    try:
        descriptor = os.open(file, os.O_WRONLY | os.O_CREAT | os.O_EXCL, 0o600)
    except FileExistsError as error:
        raise FedfuseError(f"{file}: expected a new file, got one that exists") from error
    with os.fdopen(descriptor, "wb") as opened:
        opened.write(content)
