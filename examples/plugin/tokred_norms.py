"""Norms: keep the tokens with the largest norm."""

from tokred import Keep, Reducer, View, register


@register("norms", paper="an example of tokred")
class Norms(Reducer):
    """Keep the patches whose features have the largest norm.

    Args:
        power: the norm is the sum of the magnitudes to this power.
    """

    stages = (4, 7, 10)
    groups = ("core", "pruning", "training-free")

    def __init__(self, n: int, keep: int, dim: int, heads: int, *, power: float = 2.0) -> None:
        super().__init__(n, keep, dim, heads)
        self.power = power

    def forward(self, view: View) -> Keep:
        score = view.x.float().abs().pow(self.power).sum(-1)  # [B, N]
        order = score.argsort(dim=1, descending=True, stable=True)
        return Keep(order[:, : self.keep], self.n)
