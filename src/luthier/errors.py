"""Every error a user can cause. Each message says what is wrong and, in `hint`, what to do next."""


class LuthierError(Exception):
    """Base of all errors shown without a traceback.

    Args:
        message: what is wrong, naming the file, line, key or record.
        hint: the next thing to do; printed on its own line.
    """

    exit_code = 2

    def __init__(self, message: str, hint: str | None = None):
        super().__init__(message)
        self.message = message
        self.hint = hint

    def __str__(self) -> str:
        return self.message if self.hint is None else f"{self.message}\n  {self.hint}"


class RecipeError(LuthierError):
    """A recipe, an option, a method patch or a part's name is wrong."""


class DataError(LuthierError):
    """The user's records cannot be used as they are. `origin` is the line ("data.jsonl:12") if the error is of one."""

    origin = ""


class ModelError(LuthierError):
    """A model, tokenizer or chat template cannot be loaded or used."""


class RunError(LuthierError):
    """A run could not start, go on or be resumed; what it computed so far is kept."""

    exit_code = 1


def nearest(name: str, known: "list[str] | tuple[str, ...] | set[str]") -> str | None:
    """The known name closest to a mistyped one, or None."""
    import difflib  # 10 ms, which only a mistake has to pay

    matches = difflib.get_close_matches(name, sorted(known), n=1, cutoff=0.5)
    return matches[0] if matches else None
