"""The address that the server listens at, and the token that other machines need."""

import errno
import ipaddress
import secrets
import socket

from omegaconf import DictConfig

from bdbnet.config import ConfigError

CONNECTIONS = 512  # open at once
PEER_CONNECTIONS = 96  # of one address
PEER_REQUESTS = 64  # of one address, unfinished: fewer, so that there is an answer that says so
_SHORTEST_TOKEN = 8


def is_loopback(host: str) -> bool:
    """Whether an address is reached from this machine alone.

    >>> [is_loopback(host) for host in ("127.0.0.1", "localhost", "::1", "0.0.0.0", "example.org")]
    [True, True, True, False, False]
    """
    if host.lower() == "localhost":
        return True
    try:
        return ipaddress.ip_address(host.strip("[]")).is_loopback
    except ValueError:
        return False


def token_of(config: DictConfig) -> str | None:
    """The token that requests have to show; None where none is needed.

    Raises:
        ConfigError: none is given for an address that other machines reach, or one that is too short to be a secret.
    """
    token = None if config.token is None else str(config.token)
    if token == "auto":
        return secrets.token_urlsafe(18)
    if token is None and not is_loopback(str(config.host)):
        raise ConfigError(
            f"host={config.host} can be reached by other machines, and whoever reaches it sees the gallery: give a token too, "
            "token=auto for one that is made up and printed, or in the environment variable BDBNET_TOKEN"
        )
    if token is not None and (len(token) < _SHORTEST_TOKEN or not token.isascii() or not token.isprintable()):
        raise ConfigError(
            f"token=: give at least {_SHORTEST_TOKEN} characters of ASCII, or token=auto for one that is made up and printed"
        )
    return token


def listening(host: str, port: int) -> socket.socket:
    """A socket that listens at an address.

    Raises:
        ConfigError: the port is taken or may not be used, names a free one; or the address is none of this machine.
    """
    try:
        found = socket.getaddrinfo(host, port, type=socket.SOCK_STREAM, flags=socket.AI_PASSIVE)
    except (OSError, UnicodeError) as error:
        raise ConfigError(f"host={host}: no such address ({error}); this machine alone: host=127.0.0.1") from error
    family, _, _, _, address = found[0]
    try:
        sock = socket.create_server(address[:2], family=family, backlog=CONNECTIONS)
    except OSError as error:
        if error.errno == errno.EADDRINUSE:
            raise ConfigError(
                f"port={port} is taken by another program: try port={_free_port(host, port, family)}"
            ) from error
        if error.errno == errno.EACCES:
            raise ConfigError(f"port={port} may not be used by you: give one above 1023, such as port=8765") from error
        raise ConfigError(
            f"host={host}: can't listen there ({error.strerror or error}); this machine alone: host=127.0.0.1, all of its "
            "addresses: host=0.0.0.0"
        ) from error
    # Connections inherit it. asyncio sets it only on sockets that were made with an explicit protocol, and without it the body of
    # an answer waits 40 ms for the client to acknowledge the head.
    sock.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
    return sock


def _free_port(host: str, port: int, family: int) -> int:
    for other in range(port + 1, min(port + 100, 65_536)):
        try:
            with socket.create_server((host, other), family=family):
                return other
        except OSError:
            continue
    return 0  # the system chooses one


def shown_host(host: str) -> str:
    """A host as it stands in an address.

    >>> shown_host("::1"), shown_host("localhost")
    ('[::1]', 'localhost')
    """
    try:
        address = ipaddress.ip_address(host)
    except ValueError:
        return host
    if address.is_unspecified:
        return socket.gethostname()
    return f"[{host}]" if address.version == 6 else host
