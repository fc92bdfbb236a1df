"""TLS: whether certificate and key can be used, found out before the first caller comes."""

from __future__ import annotations

import ssl
from pathlib import Path


def check_certificate(certificate: Path, key: Path, password: str | None) -> None:
    """Load a certificate and its key as the server will.

    Args:
        certificate: PEM file, the server's certificate first and then those between it and its authority.
        key: PEM file of the private key.
        password: Of the key; None when it is not encrypted. It is never shown.

    Raises:
        ValueError: They cannot be used.
    """
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    asked = False

    def answer() -> str:
        nonlocal asked
        asked = True
        # Without a function OpenSSL would ask the terminal, and a service would wait for ever. An empty one is wrong.
        return password or ""

    try:
        for path in (certificate, key):
            path.read_bytes()  # OpenSSL does not say which it cannot read
        context.load_cert_chain(certificate, key, answer)
    except ssl.SSLError as error:
        raise ValueError(f"certificate {certificate} with key {key}: {_reason(error, asked, password)}") from None
    except OSError as error:
        raise ValueError(f"{error.filename} cannot be read for TLS ({error.strerror}); give PEM files") from None


def reload_certificate(context: ssl.SSLContext | None, certificate: Path, key: Path, password: str | None) -> None:
    """Have a server's context use the files as they are now, for connections from now on.

    Args:
        context: The server's; None: it does not serve yet, and will read the files itself.
        certificate: As for :func:`check_certificate`, as are the others.
        key: Of the private key.
        password: Of the key.

    Raises:
        ValueError: They cannot be used; the context keeps the pair that it has.
    """
    check_certificate(certificate, key, password)
    if context is not None:
        context.load_cert_chain(certificate, key, lambda: password or "")


def _reason(error: ssl.SSLError, encrypted: bool, password: str | None) -> str:
    variable = "YOLO_ASSIGNER_SSL_KEYFILE_PASSWORD"
    if encrypted and password is None:
        return f"the key is encrypted; give its password as {variable}"
    if encrypted:
        return f"the key cannot be decrypted; correct its password in {variable}"
    if error.reason == "KEY_VALUES_MISMATCH":
        return "they do not belong together; give the key for which the certificate was made"
    return f"they cannot be used for TLS ({error.reason or error}); give PEM files"
