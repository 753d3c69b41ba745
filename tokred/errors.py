"""Errors that are the user's to solve. Their text is one sentence: what was given, what was expected, what to try."""


class TokredError(Exception):
    """Bad input. The command line prints the sentence and exits with code 2."""


class UnknownName(TokredError):
    """A method, model, protocol or configuration that does not exist."""


class UnsupportedModel(TokredError):
    """A model whose blocks or pooling tokred does not know."""


class Unreachable(TokredError):
    """A budget that a method cannot meet at its stages."""


class UncountedOp(TokredError):
    """An operator without a FLOP count: better no number than one that is too small."""


class UnreadableImage(TokredError):
    """An image file that cannot be decoded.

    Attributes:
        label: of the image where the reader knows it, else -2.
    """

    def __init__(self, message: str, label: int = -2) -> None:
        super().__init__(message)
        self.label = label

    def __reduce__(self) -> tuple[object, ...]:
        return type(self), (str(self), self.label)


class Unfitted(TokredError):
    """A learned method without an adapter: random parameters are no result."""
