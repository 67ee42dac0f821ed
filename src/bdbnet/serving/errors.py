"""Errors that a client of the server reads."""

from starlette.exceptions import HTTPException


class RequestError(HTTPException):
    """A request that can't be answered: the HTTP status and a message that says what to do.

    Attributes:
        retry_after: seconds after which the same request may succeed; None: never as it is.
    """

    def __init__(self, status: int, message: str, *, retry_after: int | None = None) -> None:
        super().__init__(status, message)
        self.retry_after = retry_after

    def __str__(self) -> str:
        return self.detail


class UnavailableError(RequestError):
    """The gallery can't be searched now: deleted, damaged, or embedded anew by another network."""

    def __init__(self, message: str) -> None:
        super().__init__(503, message, retry_after=5)
