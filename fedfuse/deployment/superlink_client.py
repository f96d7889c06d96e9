"""Credentials of a machine for a SuperLink, and a probe of the connection before it joins."""

from __future__ import annotations

import socket
import ssl
from dataclasses import dataclass
from datetime import UTC, datetime
from pathlib import Path

import httpx
from cryptography import x509
from cryptography.exceptions import UnsupportedAlgorithm
from cryptography.hazmat.primitives.asymmetric import ec
from cryptography.hazmat.primitives.serialization import load_ssh_private_key
from flwr.common.constant import HEARTBEAT_DEFAULT_INTERVAL
from flwr.proto.fleet_pb2 import ActivateNodeRequest, DeactivateNodeRequest
from flwr.supercore.interceptors import RuntimeVersionHttpInterceptor
from flwr.supercore.primitives.asymmetric import public_key_to_bytes
from flwr.supernode.fleet_http_client import FleetHttpClient
from flwr.supernode.node_auth_http_interceptor import NodeAuthHttpInterceptor

from fedfuse.errors import FedfuseError, check

SECONDS = 10.0


@dataclass(frozen=True, slots=True)
class Credentials:
    """Address of a SuperLink, and the files that both sides authenticate with.

    Attributes:
        superlink: address, ``HOST:PORT``.
        root_certificates: PEM file of the certificate of the authority that signed the SuperLink's.
        private_key: OpenSSH file of this machine's private key.
    """

    superlink: str
    root_certificates: Path
    private_key: Path

    def authority(self) -> x509.Certificate:
        """The authority's certificate.

        Raises:
            FedfuseError: for a file without a certificate, or one that is not valid today.
        """
        file = self.root_certificates
        try:
            found = x509.load_pem_x509_certificate(file.read_bytes())
        except (OSError, ValueError) as error:
            raise FedfuseError(f"{file}: expected a certificate in PEM: {error}") from error
        first, last = found.not_valid_before_utc, found.not_valid_after_utc
        dates, valid = f"{first:%Y-%m-%d} to {last:%Y-%m-%d}", first <= datetime.now(UTC) <= last
        check(str(file), f"one for {dates}", "a certificate that is valid today", valid)
        return found

    def key(self) -> ec.EllipticCurvePrivateKey:
        """This machine's key.

        Raises:
            FedfuseError: for a file without a key, or one that others can read.
        """
        file = self.private_key
        try:
            found = load_ssh_private_key(file.read_bytes(), None)
            mode = file.stat().st_mode
        except (OSError, ValueError, TypeError, UnsupportedAlgorithm) as error:
            raise FedfuseError(f"{file}: expected a private key of OpenSSH: {error}") from error
        if not isinstance(found, ec.EllipticCurvePrivateKey):
            raise FedfuseError(f"{file}: expected an ECDSA key such as P-384, got another kind")
        check(str(file), f"{mode & 0o777:o}: others can read it", "mode 600", not mode & 0o077)
        return found


def probe_superlink(credentials: Credentials) -> None:
    """Connect as the SuperNode would, and leave again.

    Raises:
        ssl.SSLCertVerificationError: when the SuperLink's certificate cannot be trusted.
        PermissionError: when the SuperLink refuses this machine's key.
        OSError: when it cannot be reached or answers with anything else.
        FedfuseError: for unreadable files, and an address that is not HOST:PORT.
    """
    key = credentials.key()
    credentials.authority()
    _tls_handshake(credentials)
    with FleetHttpClient.from_server_address(
        credentials.superlink,
        insecure=False,
        root_certificates=credentials.root_certificates.read_bytes(),
        interceptors=[
            RuntimeVersionHttpInterceptor(component_name="SuperNode"),
            NodeAuthHttpInterceptor(key, key.public_key()),
        ],
    ) as client:
        try:
            node = client.ActivateNode(
                ActivateNodeRequest(
                    public_key=public_key_to_bytes(key.public_key()),
                    heartbeat_interval=HEARTBEAT_DEFAULT_INTERVAL,
                )
            )
            client.DeactivateNode(DeactivateNodeRequest(node_id=node.node_id))
        except httpx.HTTPStatusError as error:
            raise PermissionError(error.response.text) from error
        except httpx.HTTPError as error:
            raise ConnectionError(str(error)) from error


def _tls_handshake(credentials: Credentials) -> None:
    """Do the TLS handshake alone, whose errors Flower's client hides."""
    host, _, port = credentials.superlink.rpartition(":")
    check("SuperLink", repr(credentials.superlink), "HOST:PORT", host and port.isdigit())
    context = ssl.create_default_context(cafile=credentials.root_certificates)
    with (
        socket.create_connection((host.strip("[]"), int(port)), SECONDS) as plain,
        context.wrap_socket(plain, server_hostname=host.strip("[]")),
    ):
        pass
