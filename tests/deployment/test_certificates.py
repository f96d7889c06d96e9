"""Certificates and keys are what Flower takes, and for their owner's eyes only."""

from __future__ import annotations

import os
import socket
import ssl
import threading
from contextlib import suppress
from pathlib import Path

import pytest
from cryptography.hazmat.primitives.asymmetric import ec
from cryptography.hazmat.primitives.serialization import load_ssh_public_key

from fedfuse.deployment.certificates import make_node_files, make_superlink_files
from fedfuse.deployment.superlink_client import Credentials
from fedfuse.errors import FedfuseError


def shake_hands(folder: Path, authority: Path, name: str) -> None:
    """Connect to a server that shows the certificate in a folder."""
    server = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    server.load_cert_chain(folder / "superlink.crt", folder / "superlink.key")
    client = ssl.create_default_context(cafile=authority)
    # What Python 3.13 is by default.
    client.verify_flags |= ssl.VERIFY_X509_STRICT
    here, there = socket.socketpair()

    def serve() -> None:
        with there, suppress(ssl.SSLError):  # The client may turn away.
            server.wrap_socket(there, server_side=True).close()

    thread = threading.Thread(target=serve)
    thread.start()
    try:
        with here, client.wrap_socket(here, server_hostname=name):
            pass
    finally:
        thread.join()


def test_the_certificate_holds_for_its_names_only(tmp_path: Path) -> None:
    authority, *_ = make_superlink_files(tmp_path, ["localhost", "127.0.0.1", "::1"])
    for name in ("localhost", "127.0.0.1", "::1"):
        shake_hands(tmp_path, authority, name)
    for name in ("127.0.0.2", "example.org"):
        with pytest.raises(ssl.SSLCertVerificationError, match="mismatch"):
            shake_hands(tmp_path, authority, name)


def test_a_new_certificate_is_from_the_same_authority(tmp_path: Path) -> None:
    authority, *_ = make_superlink_files(tmp_path / "one", ["localhost"])
    before = authority.read_bytes(), (tmp_path / "one" / "superlink.crt").read_bytes()
    make_superlink_files(tmp_path / "one", ["localhost"])
    assert authority.read_bytes() == before[0]
    assert (tmp_path / "one" / "superlink.crt").read_bytes() != before[1]
    shake_hands(tmp_path / "one", authority, "localhost")
    make_superlink_files(tmp_path / "two", ["localhost"])
    with pytest.raises(ssl.SSLCertVerificationError, match="verify failed"):
        shake_hands(tmp_path / "two", authority, "localhost")


def test_half_an_authority_is_refused(tmp_path: Path) -> None:
    make_superlink_files(tmp_path, ["localhost"])
    (tmp_path / "ca.key").unlink()
    with pytest.raises(FedfuseError, match=r"ca.crt and .*ca.key: expected both or neither"):
        make_superlink_files(tmp_path, ["localhost"])
    (tmp_path / "ca.key").write_text("none")
    with pytest.raises(FedfuseError, match="expected the files of an authority"):
        make_superlink_files(tmp_path, ["localhost"])
    with pytest.raises(FedfuseError, match="expected at least one, got none"):
        make_superlink_files(tmp_path, [])


def test_private_keys_are_for_their_owner(tmp_path: Path) -> None:
    before = os.umask(0)
    try:
        files = [*make_superlink_files(tmp_path, ["a"]), *make_node_files(tmp_path, "node")]
    finally:
        os.umask(before)
    modes = {file.name: file.stat().st_mode & 0o777 for file in files}
    assert {name for name, mode in modes.items() if mode & 0o077 == 0} == {
        "ca.key",
        "superlink.key",
        "node.key",
    }


def test_a_key_is_never_overwritten(tmp_path: Path) -> None:
    private, public = make_node_files(tmp_path, "node")
    before = private.read_bytes()
    with pytest.raises(FedfuseError, match=r"node.key: expected a new file, got one that exists"):
        make_node_files(tmp_path, "node")
    assert private.read_bytes() == before
    loaded = load_ssh_public_key(public.read_bytes())
    assert isinstance(loaded, ec.EllipticCurvePublicKey)
    assert (
        loaded.public_numbers()
        == Credentials("", Path(), private).key().public_key().public_numbers()
    )


def test_files_that_are_no_credentials_are_refused(tmp_path: Path) -> None:
    authority, *_ = make_superlink_files(tmp_path, ["localhost"])
    private, public = make_node_files(tmp_path, "node")
    assert Credentials("", authority, private).authority()
    for file, message in ((private, "certificate in PEM"), (tmp_path / "none", "No such file")):
        with pytest.raises(FedfuseError, match=message):
            Credentials("", file, private).authority()
    for file in (public, authority, tmp_path / "none"):
        with pytest.raises(FedfuseError, match="expected a private key of OpenSSH"):
            Credentials("", authority, file).key()
    private.chmod(0o640)
    with pytest.raises(FedfuseError, match=r"expected mode 600, got 640: others can read it"):
        Credentials("", authority, private).key()


def test_an_authority_that_has_ended_is_refused(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("fedfuse.deployment.certificates.AUTHORITY_DAYS", -0.5)
    authority, *_ = make_superlink_files(tmp_path, ["localhost"])
    with pytest.raises(FedfuseError, match="expected a certificate that is valid today"):
        Credentials("", authority, tmp_path).authority()
