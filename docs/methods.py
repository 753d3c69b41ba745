"""Write docs/methods.md from the methods themselves: python docs/methods.py."""

from __future__ import annotations

import inspect
import re
from collections.abc import Mapping
from pathlib import Path

from tokred.core import registry
from tokred.core.costs import CostTable
from tokred.core.entries import Entry
from tokred.core.options import default_options
from tokred.core.plan import Plan
from tokred.models import zoo
from tokred.testing import residual_invariant

ROOT = Path(__file__).parents[1]
PAGE = ROOT / "docs" / "methods.md"
MODEL, BEFORE, AFTER = "deit_t", 196, 137  # the stage whose cost is counted

HEADERS = ("Method", "What it does", "Groups", "Layers", "Knob", "Parameters", "MFLOPs", "Top-1", "Invariant")

INTRODUCTION = f"""\
# Methods

<!-- Written by `python docs/methods.py` from the docstrings and facts of the classes; edit those. -->

`--methods` takes names and groups. The default is the group `core`; `all` is every method. *Layers* are the
default ones. *Knob* is the parameter of the uniform schedule: the tokens *removed* at each layer, or the keep
*rate*; with a *threshold*, token counts depend on the image. *Parameters* and *MFLOPs* are those of one stage
of DeiT-T that reduces {BEFORE} tokens to {AFTER}, for deciding and for applying the decision; the whole model
has 1,258 MFLOPs. *Top-1* is from the README's table, for the methods in it: DeiT-S at 30 % fewer FLOPs on
PhotoDigits (dense: {{dense}} %).
"""

INVARIANCE = """\
*Invariant* says whether a method does the same at every scale of the residual stream. A pre-norm ViT computes
the same if its embeddings and the outputs of all attentions and MLPs are multiplied by one factor (except for
the epsilon of its LayerNorms). `tokred check METHOD` measures whether the same holds for a method. It does
not for these, which depend on how the weights were scaled:

- `dpcknn`: the density falls as exp(-d² / C). Where tokens are far apart it vanishes, and isolated tokens
  are never centres. `--set dpcknn.scale=relative` measures distances relative to those in the same image.
- `patchmerger`, `sinkhorn`: outputs are made of normalised tokens, so their scale in the residual stream is
  fixed. With `output=mean`, as on a frozen backbone, Sinkhorn's outputs are means of the tokens themselves.

In formulas, N tokens of C channels in H heads of d channels become M.
"""

NOT_OFFERED = """\
## Not offered

IA-RED² (Pan et al., NeurIPS 2021, arXiv:2106.12620) has no public code: its project page announces a
repository that does not exist. Its policy networks are trained by reinforcement learning with a curriculum
that the paper does not describe in enough detail to reproduce.

The fast tokens of Evo-ViT (Xu et al., AAAI 2022, arXiv:2108.01390) are set aside for some layers, change with
their representative, and come back. In tokred a decision maps N tokens to no more than N, and plans, FLOPs,
sizes and source maps rely on that: a stage that gives tokens back would need a second kind of state for one
method. The published models also classify by the mean of all patches and are trained that way from the start.
`evovit` is the selection alone; its fast tokens do not come back.
"""


def page(invariant: Mapping[str, bool]) -> str:
    """The text of the page; `invariant` says of each method whether `residual_invariant` holds."""
    entries = [entry for entry in registry.catalog().values() if entry.module.startswith("tokred.methods.")]
    top1, costs = measured(), CostTable(zoo.build(MODEL))
    rows = [HEADERS, ("---",) * len(HEADERS)]
    for entry in entries:
        facts = (*_facts(entry, costs), top1.get(entry.name, ""), "yes" if invariant[entry.name] else "no")
        rows.append((f"`{entry.name}`", entry.summary, *facts))
    table = "".join(f"| {' | '.join(row)} |\n" for row in rows)
    sections = [_section(entry) for entry in entries]
    introduction = INTRODUCTION.format(dense=top1["baseline"])
    return "\n".join([introduction, table, INVARIANCE, *sections, NOT_OFFERED])


def measured() -> dict[str, str]:
    """Top-1 by method in the README's table."""
    table = re.search(r"^Method +Top-1.*?^¹", (ROOT / "README.md").read_text("utf-8"), re.S | re.M)
    assert table
    return dict(re.findall(r"^(\w+)\b.*?  +(\d+\.\d\d) ", table[0], re.M))


def _facts(entry: Entry, costs: CostTable) -> tuple[str, ...]:
    cls = registry.get(entry.name)
    plan = Plan(entry.name, (4,), (AFTER,))
    model = costs.backbone
    reducer = cls(BEFORE, AFTER, model.embed_dim, model.blocks[0].attn.num_heads)
    layers = cls.stages if isinstance(cls.stages, str) else " ".join(map(str, cls.stages))
    parameters = sum(parameter.numel() for parameter in reducer.parameters())
    megaflops = costs.stage(plan, 4, BEFORE, AFTER) / 1e6
    return ", ".join(cls.groups), layers, cls.knob, f"{parameters:,}", f"{megaflops:.2f}"


def _section(entry: Entry) -> str:
    """A method's docstring: paragraphs on one line each, and options as a list with their defaults."""
    cls = registry.get(entry.name)
    body, _, arguments = inspect.cleandoc(cls.__doc__ or "").partition("\n\nArgs:\n")
    paragraphs = [" ".join(part.split()) for part in body.replace("\nCost: ", "\n\nCost: ").split("\n\n")]
    lines = [f"## `{entry.name}`", "", *([f"{entry.paper}.", ""] if entry.paper else [])]
    for paragraph in paragraphs:
        lines += [paragraph, ""]
    defaults = default_options(cls)
    texts = re.findall(r"^ {4}(\w+): (.*?)(?=^ {4}\w|\Z)", arguments, re.S | re.M)
    lines += [f"- `{name}`, by default `{defaults[name]}`: {' '.join(text.split())}" for name, text in texts]
    return "\n".join(lines).rstrip() + "\n"


if __name__ == "__main__":
    PAGE.write_text(
        page({name: residual_invariant(registry.get(name)) for name in registry.names()}), "utf-8"
    )
