"""Ways to an engine that other machines have: TCP with TLS on both sides, and ssh; real protocols
before the real engine of this machine.
"""

import contextlib
import socket
import ssl
import subprocess
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from datetime import UTC, datetime, timedelta
from ipaddress import ip_address
from pathlib import Path

import paramiko
from cryptography import x509
from cryptography.hazmat.primitives import hashes, serialization
from cryptography.hazmat.primitives.asymmetric import ec, ed25519
from cryptography.x509.oid import NameOID

SOCKET = "/var/run/docker.sock"
_PEM = serialization.Encoding.PEM


class Authority:
    """A certificate authority of its own."""

    def __init__(self) -> None:
        self.key = ec.generate_private_key(ec.SECP256R1())
        self.certificate = self._signed(self.key, "authority", ca=True)

    def issue(self, folder: Path, name: str) -> Path:
        """A folder of ca.pem, cert.pem and key.pem, for 127.0.0.1."""
        folder.mkdir(parents=True)
        key = ec.generate_private_key(ec.SECP256R1())
        private = key.private_bytes(
            _PEM, serialization.PrivateFormat.PKCS8, serialization.NoEncryption()
        )
        (folder / "key.pem").write_bytes(private)
        (folder / "cert.pem").write_bytes(self._signed(key, name).public_bytes(_PEM))
        (folder / "ca.pem").write_bytes(self.certificate.public_bytes(_PEM))
        return folder

    def _signed(
        self, key: ec.EllipticCurvePrivateKey, name: str, *, ca: bool = False
    ) -> x509.Certificate:
        subject = x509.Name([x509.NameAttribute(NameOID.COMMON_NAME, name)])
        issuer = subject if ca else self.certificate.subject
        now = datetime.now(UTC)
        builder = (
            x509.CertificateBuilder()
            .subject_name(subject)
            .issuer_name(issuer)
            .public_key(key.public_key())
            .serial_number(x509.random_serial_number())
            .not_valid_before(now - timedelta(hours=1))
            .not_valid_after(now + timedelta(hours=1))
            .add_extension(x509.BasicConstraints(ca=ca, path_length=None), critical=True)
            .add_extension(
                x509.SubjectAlternativeName([x509.IPAddress(ip_address("127.0.0.1"))]),
                critical=False,
            )
        )
        return builder.sign(self.key, hashes.SHA256())


def _pump(source: socket.socket, target: socket.socket) -> None:
    with contextlib.suppress(OSError):
        while data := source.recv(65536):
            target.sendall(data)
    with contextlib.suppress(OSError):
        target.shutdown(socket.SHUT_WR)


@contextmanager
def listening() -> Iterator[tuple[socket.socket, int]]:
    with socket.create_server(("127.0.0.1", 0)) as server:
        yield server, server.getsockname()[1]


@contextmanager
def tls(folder: Path) -> Iterator[int]:
    """Port on which the engine is reached by those whose certificate is of the authority."""
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    context.load_cert_chain(folder / "cert.pem", folder / "key.pem")
    context.load_verify_locations(folder / "ca.pem")
    context.verify_mode = ssl.CERT_REQUIRED

    def serve(plain: socket.socket) -> None:
        with (
            contextlib.suppress(OSError),
            plain,
            context.wrap_socket(plain, server_side=True) as one,
            socket.socket(socket.AF_UNIX) as engine,
        ):
            engine.connect(SOCKET)
            threading.Thread(target=_pump, args=(engine, one), daemon=True).start()
            _pump(one, engine)

    with listening() as (server, port):
        _accept(server, serve)
        yield port


def _accept(server: socket.socket, serve) -> None:
    def loop() -> None:
        with contextlib.suppress(OSError):
            while True:
                one, _ = server.accept()
                threading.Thread(target=serve, args=(one,), daemon=True).start()

    threading.Thread(target=loop, daemon=True).start()


class _Ssh(paramiko.ServerInterface):
    """Lets one key in, and runs the one command that Docker's clients ask for."""

    def __init__(self, allowed: paramiko.PKey) -> None:
        self.allowed = allowed

    def check_auth_publickey(self, username: str, key: paramiko.PKey) -> int:
        same = key == self.allowed and username == "vyvo"
        return paramiko.AUTH_SUCCESSFUL if same else paramiko.AUTH_FAILED

    def get_allowed_auths(self, username: str) -> str:
        return "publickey"

    def check_channel_request(self, kind: str, chanid: int) -> int:
        return paramiko.OPEN_SUCCEEDED

    def check_channel_exec_request(self, channel: paramiko.Channel, command: bytes) -> bool:
        if command != b"docker system dial-stdio":
            return False
        threading.Thread(target=_dial, args=(channel,), daemon=True).start()
        return True


def _dial(channel: paramiko.Channel) -> None:
    argv = ["docker", "-H", f"unix://{SOCKET}", "system", "dial-stdio"]
    with subprocess.Popen(
        argv, stdin=subprocess.PIPE, stdout=subprocess.PIPE, stderr=subprocess.DEVNULL, bufsize=0
    ) as dialer:
        assert dialer.stdin
        assert dialer.stdout

        def back() -> None:
            with contextlib.suppress(OSError):
                while data := dialer.stdout.read(65536):
                    channel.sendall(data)
            channel.close()

        threading.Thread(target=back, daemon=True).start()
        with contextlib.suppress(OSError):
            while data := channel.recv(65536):
                dialer.stdin.write(data)
        dialer.kill()


def ssh_key(path: Path) -> paramiko.PKey:
    """A new key, in OpenSSH's form."""
    key = ed25519.Ed25519PrivateKey.generate()
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_bytes(
        key.private_bytes(_PEM, serialization.PrivateFormat.OpenSSH, serialization.NoEncryption())
    )
    path.chmod(0o600)
    return paramiko.Ed25519Key.from_private_key_file(str(path))


@contextmanager
def ssh(host_key: paramiko.PKey, allowed: paramiko.PKey) -> Iterator[int]:
    """Port of an ssh server for the user vyvo."""
    transports: list[paramiko.Transport] = []

    def serve(one: socket.socket) -> None:
        transport = paramiko.Transport(one)
        transports.append(transport)
        transport.add_server_key(host_key)
        with contextlib.suppress(paramiko.SSHException, EOFError, OSError):
            transport.start_server(server=_Ssh(allowed))

    with listening() as (server, port):
        _accept(server, serve)
        try:
            yield port
        finally:
            for transport in transports:
                transport.close()
