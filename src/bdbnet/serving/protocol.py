"""HTTP connections that are closed when the head of a request does not arrive in time, or one address opens too many."""

import asyncio
from typing import Any

from uvicorn.protocols.http.h11_impl import H11Protocol

from bdbnet.serving.address import PEER_CONNECTIONS

HEAD_SECONDS = 5.0


class TimedProtocol(H11Protocol):
    """uvicorn's connection with a limit on the time of a request's head; that of its body is `Guard`'s.

    One address keeps at most `PEER_CONNECTIONS` of them, so that heads that never end do not shut out the others. Before the
    head is there nothing else tells clients apart.
    """

    _timer: asyncio.TimerHandle | None = None

    def connection_made(self, transport: Any) -> None:
        super().connection_made(transport)
        if self._of_peer() > PEER_CONNECTIONS:
            transport.close()
            return
        self._timer = self.loop.call_later(HEAD_SECONDS, self._close)

    def data_received(self, data: bytes) -> None:
        super().data_received(data)
        if self.cycle is not None and not self.cycle.response_complete:
            self._stop_timer()
        elif self._timer is None:
            self._timer = self.loop.call_later(HEAD_SECONDS, self._close)

    def on_response_complete(self) -> None:
        """Leave the timer alone while the next request waits."""
        super().on_response_complete()
        if self.cycle is not None and not self.cycle.response_complete:  # the next request was waiting
            self._stop_timer()

    def connection_lost(self, exc: Exception | None) -> None:
        self._stop_timer()
        super().connection_lost(exc)

    def _of_peer(self) -> int:
        """Connections of this address, this one among them."""
        peer = (self.client or ("",))[0]
        return sum((getattr(each, "client", None) or ("",))[0] == peer for each in self.connections)

    def _stop_timer(self) -> None:
        if self._timer is not None:
            self._timer.cancel()
            self._timer = None

    def _close(self) -> None:
        self._timer = None
        if self.cycle is None or self.cycle.response_complete:
            self.transport.close()
