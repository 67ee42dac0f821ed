import sys
from collections.abc import Callable, Sequence

import pytest


@pytest.fixture
def refusal(tmp_path, monkeypatch, capsys) -> Callable[[Callable[[], None], Sequence[str]], str]:
    """`refusal(main, arguments)`: what a command in an empty folder says of wrong arguments, before it ends with status 1."""
    monkeypatch.chdir(tmp_path)

    def errors_of(main: Callable[[], None], arguments: Sequence[str]) -> str:
        monkeypatch.setattr(sys, "argv", ["command", *arguments])
        with pytest.raises(SystemExit) as end:
            main()
        assert end.value.code == 1
        errors = capsys.readouterr().err
        assert "Traceback" not in errors
        return errors

    return errors_of
