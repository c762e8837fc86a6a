"""The container's health check: is the monitor alive? Exit code 0 when /livez answers 200, 1 when not."""

from __future__ import annotations

import os
import ssl
import sys
from http.client import HTTPConnection, HTTPException, HTTPSConnection

_VARIABLE = "FAIRNESS_MONITOR__SERVER__LISTEN"
_TIMEOUT_SECONDS = 2


def alive(host: str, port: int) -> bool:
    """Ask in plain HTTP, then in TLS: the certificate is for the outside, so nobody checks it here."""
    unchecked = ssl.create_default_context()
    unchecked.check_hostname = False
    unchecked.verify_mode = ssl.CERT_NONE
    for connection in (
        HTTPConnection(host, port, timeout=_TIMEOUT_SECONDS),
        HTTPSConnection(host, port, timeout=_TIMEOUT_SECONDS, context=unchecked),
    ):
        try:
            connection.request("GET", "/livez")
            return connection.getresponse().status == 200
        except (OSError, HTTPException) as error:
            print(f"{type(connection).__name__} to {host}:{port}: {error}", file=sys.stderr)
        finally:
            connection.close()
    return False


def main() -> int:
    """Exit code of the check of the address that the monitor listens on."""
    host, _, port = os.environ.get(_VARIABLE, "127.0.0.1:9464").rpartition(":")
    host = host.strip("[]")
    everywhere = {"": "127.0.0.1", "0.0.0.0": "127.0.0.1", "::": "::1"}
    return 0 if alive(everywhere.get(host, host), int(port)) else 1


if __name__ == "__main__":
    sys.exit(main())
