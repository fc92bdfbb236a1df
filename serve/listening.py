"""Opening the server's socket, at an address and port or as a Unix socket, and checking its TLS files."""

from __future__ import annotations

import errno
import fcntl
import ipaddress
import os
import socket
import ssl
import stat
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path

from yolo_assigner.serve.settings import UNIX, Settings

# Connections accepted in one turn of the event loop. uvloop accepts one for each socket, so that the last of many
# simultaneous callers would wait for as many turns.
ACCEPTED = 16
BACKLOG = 2048
SOCKET_MODE = 0o666  # the folder's mode decides who may connect: not all systems check the socket's own


class Listener:
    """An open socket to accept connections from.

    Args:
        opened: The socket, bound and listening.
        path: The file of a Unix socket, which is removed at the end.

    Attributes:
        sockets: The socket and duplicates of it.
    """

    def __init__(self, opened: socket.socket, path: Path | None = None) -> None:
        self.sockets = [opened, *(opened.dup() for _ in range(ACCEPTED - 1))]
        self._path = path
        self._file = _identity(path) if path else None

    def shown(self, scheme: str) -> str:
        """The URL that is printed at the start."""
        if self._path is not None:
            return f"unix:{self._path}"
        host, port = self.sockets[0].getsockname()[:2]
        return f"{scheme}://[{host}]:{port}" if ":" in host else f"{scheme}://{host}:{port}"

    def remove_file(self) -> None:
        """Remove the file of a Unix socket, unless another server has replaced it.

        Call it before the sockets are closed: until then no other server replaces the file, and no other file can have
        its identity.
        """
        if self._path is not None and self._file is not None:
            with suppress(OSError):
                if _identity(self._path) == self._file:
                    self._path.unlink()
        self._file = None

    def close(self) -> None:
        """Close the sockets. May be called again."""
        self.remove_file()
        for one in self.sockets:
            one.close()


def listen(settings: Settings) -> Listener:
    """Open the socket of the settings.

    Args:
        settings: ``unix_socket`` is read, or ``host`` and ``port``. The host ``::`` is all addresses of IPv6 and IPv4.

    Raises:
        OSError: It cannot be opened; the text names it and the remedy.
    """
    if settings.unix_socket is not None:
        return _listen_unix(settings.unix_socket)
    host, port = settings.host, settings.port
    family = socket.AF_INET6 if ":" in host else socket.AF_INET
    both = family == socket.AF_INET6 and socket.has_dualstack_ipv6()
    try:
        return Listener(socket.create_server((host, port), family=family, backlog=BACKLOG, dualstack_ipv6=both))
    except (OSError, OverflowError) as error:
        raise OSError(f"cannot listen on {host} port {port} ({error}); choose another --host or --port") from error


def caller_of(address: tuple[str, int] | None, own: tuple[str, int | None] | None) -> tuple[str, int] | None:
    """Address and port of a caller, as settings and proxies write them.

    Args:
        address: Of the caller; a socket for both families shows IPv4 as ``::ffff:192.0.2.1``. None: there is none.
        own: Of the server; a Unix socket has no port.
    """
    if own is not None and own[1] is None:
        return UNIX, 0
    if address is None:
        return None
    host, port = address
    with suppress(ValueError):
        host = str(getattr(ipaddress.ip_address(host), "ipv4_mapped", None) or host)
    return host, port


def _listen_unix(path: Path) -> Listener:
    opened = socket.socket(socket.AF_UNIX)
    try:
        with _locked(path.parent):
            _remove_stale(path)
            opened.bind(str(path))
            path.chmod(SOCKET_MODE)
            opened.listen(BACKLOG)
            return Listener(opened, path)
    except OSError as error:
        opened.close()
        raise OSError(f"cannot listen on the Unix socket {path} ({error}); choose another --unix-socket") from error


@contextmanager
def _locked(folder: Path) -> Iterator[None]:
    """Lock a folder, so that no other server replaces a socket in it at the same time."""
    descriptor = os.open(folder, os.O_RDONLY | os.O_DIRECTORY)
    try:
        fcntl.flock(descriptor, fcntl.LOCK_EX)
        yield
    finally:
        os.close(descriptor)


def _remove_stale(path: Path) -> None:
    """Remove the socket of a server that was killed.

    Raises:
        OSError: There is another file, or a server that is running.
    """
    try:
        if not stat.S_ISSOCK(path.lstat().st_mode):
            raise OSError("there is a file that is no socket")
    except FileNotFoundError:
        return
    with socket.socket(socket.AF_UNIX) as caller:
        caller.setblocking(False)  # a busy server may not accept at once
        result = caller.connect_ex(str(path))
    if result in (0, errno.EAGAIN):
        raise OSError("a server is listening there")
    if result != errno.ECONNREFUSED:
        raise OSError(result, os.strerror(result))
    path.unlink()


def _identity(path: Path) -> tuple[int, int]:
    found = path.lstat()
    return found.st_dev, found.st_ino


def check_certificate(certificate: Path, key: Path, password: str | None) -> ssl.SSLContext:
    """Check a certificate and its key. uvicorn loads them later, with errors that name no file and no remedy.

    Args:
        certificate: PEM file, the server's certificate first and then those between it and its authority.
        key: PEM file of the private key.
        password: Password of the key; None when it is not encrypted. It is never shown.

    Returns:
        A server's context that has loaded them.

    Raises:
        ValueError: They cannot be used.
    """
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    asked = False

    def answer() -> str:
        nonlocal asked
        asked = True
        # Without this function OpenSSL would ask the terminal, and a service would wait. An empty password is wrong.
        return password or ""

    try:
        for path in (certificate, key):
            path.read_bytes()  # OpenSSL does not say which file it cannot read
        context.load_cert_chain(certificate, key, answer)
    except ssl.SSLError as error:
        raise ValueError(f"certificate {certificate} with key {key}: {_reason(error, asked, password)}") from None
    except OSError as error:
        raise ValueError(f"{error.filename} cannot be read for TLS ({error.strerror}); give PEM files") from None
    return context


def reload_certificate(context: ssl.SSLContext | None, certificate: Path, key: Path, password: str | None) -> None:
    """Load a certificate and its key again, for new connections.

    Args:
        context: The server's TLS context; None: it does not serve yet, and will read the files itself.
        certificate: As for :func:`check_certificate`.
        key: Likewise.
        password: Likewise.

    Raises:
        ValueError: They cannot be used; the context keeps its pair.
    """
    loaded = check_certificate(certificate, key, password)

    def take(connection: ssl.SSLObject | ssl.SSLSocket, _host: str | None, _context: ssl.SSLContext) -> None:
        connection.context = loaded

    if context is not None:
        # Loading them into `context` is not safe: OpenSSL drops its key as soon as the new certificate is there, and
        # handshakes fail until the new key is read. The callback is called without a host name (SNI), too.
        context.sni_callback = take


def _reason(error: ssl.SSLError, encrypted: bool, password: str | None) -> str:
    variable = "YOLO_ASSIGNER_SSL_KEYFILE_PASSWORD"
    if encrypted and password is None:
        return f"the key is encrypted; give its password as {variable}"
    if encrypted:
        return f"the key cannot be decrypted; correct its password in {variable}"
    if error.reason == "KEY_VALUES_MISMATCH":
        return "they do not belong together; give the key for which the certificate was made"
    return f"they cannot be used for TLS ({error.reason or error}); give PEM files"
