"""Checkpoints of the TokenReduction benchmark's layout, and its forward pass written out from their keys."""

import argparse

import torch
from torch.nn import functional as F

from tokred.testing import tiny_vit

WIDTH, HEADS, CLASSES, PATCHES = 48, 3, 10, 36


LAYERS = [1, 2]  # as the files count, from 0


RATE = 0.7


COUNTS = [int(PATCHES * RATE), int(PATCHES * RATE**2)]  # 25 and 17


LEARNED = ("patchmerger", "sinkhorn", "sit", "dpcknn", "dynamicvit")


def draw(*shape, seed):
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed))


def reducer(method, stage):
    """Keys and shapes of one stage as they are published, with random values."""
    k, c = COUNTS[stage], WIDTH
    shapes = {
        "patchmerger": {"queries": (k, c), "norm.weight": (c,), "norm.bias": (c,)},
        "sinkhorn": {"v": (k, c)},
        "sit": {
            "scale": (1, 1, 1), "weight.0.weight": (c,), "weight.0.bias": (c,),
            "weight.1.weight": (c // 2, c),
            "weight.1.bias": (c // 2,), "weight.3.weight": (k, c // 2), "weight.3.bias": (k,),
        },
        "dpcknn": {"score.weight": (1, c), "score.bias": (1,)},
        "dynamicvit": {
            "in_conv.0.weight": (c,), "in_conv.0.bias": (c,),
            "in_conv.1.weight": (c, c), "in_conv.1.bias": (c,),
            "out_conv.0.weight": (c // 2, c), "out_conv.0.bias": (c // 2,),
            "out_conv.2.weight": (c // 4, c // 2),
            "out_conv.2.bias": (c // 4,), "out_conv.4.weight": (2, c // 4), "out_conv.4.bias": (2,),
        },
    }.get(method, {})  # fmt: skip
    prefix = "score_predictor" if method == "dynamicvit" else "cluster_layers"
    return {
        f"{prefix}.{stage}.{key}": 0.5 * draw(*shape, seed=10 * i + stage)
        for i, (key, shape) in enumerate(shapes.items())
    }


def state(method, shift=0.0):
    """A whole model's state dict; its backbone is not the one that is compared."""
    model = {
        key: value + 0.02 * draw(*value.shape, seed=7) + shift
        for key, value in tiny_vit().state_dict().items()
    }
    return model | {key: value for stage in (0, 1) for key, value in reducer(method, stage).items()}


def settings(method, **changes):
    named = {"dynamicvit": "dyvit"}.get(method, method)
    given = {
        "model": f"{named}_tiny_patch16_224",
        "reduction_loc": LAYERS,
        "keep_rate": [RATE],
        "epochs": 30,
        "dataset": "imagenet",
    }
    given |= {
        "sinkhorn_eps": 1.0,
        "cluster_iters": 3,
        "k_neighbors": 5,
        "equal_weight": False,
        "output_dir": "somewhere",
    }
    return argparse.Namespace(**{**given, **changes})


def written(path, method, ema_best=False, args=None, **changes):
    averaged = state(method) if ema_best else state(method, shift=0.5)
    model = state(method, shift=0.5) if ema_best else state(method)
    optimizer = {"state": {0: {"exp_avg": torch.zeros(3)}}, "param_groups": [{"lr": 0.1}]}
    content = {
        "model": model,
        "model_ema": averaged,
        "ema_best": ema_best,
        "epoch": 28,
        "optimizer": optimizer,
        "lr_scheduler": {},
    }
    content |= {"scaler": None, "args": args or settings(method)}
    torch.save({**content, **changes}, path)
    return path


def linear(model, name, x):
    return x @ model[f"{name}.weight"].T + model[f"{name}.bias"]


def layer_norm(model, name, x, eps):
    centered = x - x.mean(-1, keepdim=True)
    return (
        centered / (centered.square().mean(-1, keepdim=True) + eps).sqrt() * model[f"{name}.weight"]
        + model[f"{name}.bias"]
    )


def gelu(x):
    return x * 0.5 * (1 + torch.erf(x / 2**0.5))


def patchmerger(model, s, x):
    y = layer_norm(model, f"cluster_layers.{s}.norm", x, 1e-5)
    return (model[f"cluster_layers.{s}.queries"] @ y.mT).softmax(-1) @ y


def sinkhorn(model, s, x, eps=1.0, iterations=3):
    """In the linear domain: both kinds of mass are 1 / (K + n), and tokens are scaled last."""
    x = x / x.norm(dim=-1, keepdim=True)
    centers = model[f"cluster_layers.{s}.v"]
    kernel = torch.exp(centers / centers.norm(dim=-1, keepdim=True) @ x.mT / eps).double()
    mass = 1 / sum(kernel.shape[1:])
    right = torch.ones(len(x), 1, kernel.shape[2], dtype=torch.float64)
    for _ in range(iterations):
        left = mass / (kernel * right).sum(2, keepdim=True)
        right = mass / (kernel * left).sum(1, keepdim=True)
    return (left * kernel * right / mass).float() @ x


def sit(model, s, x):
    name = f"cluster_layers.{s}.weight"
    hidden = gelu(linear(model, f"{name}.1", layer_norm(model, f"{name}.0", x, 1e-5)))
    scores = linear(model, f"{name}.3", hidden) * model[f"cluster_layers.{s}.scale"]  # [B, n, K]
    return scores.softmax(1).mT @ x


def dynamicvit(model, s, x):
    name = f"score_predictor.{s}"
    y = gelu(linear(model, f"{name}.in_conv.1", layer_norm(model, f"{name}.in_conv.0", x, 1e-5)))
    half = WIDTH // 2
    everything = (y[..., half:].mean(1, keepdim=True) + 1e-6).expand(-1, x.shape[1], -1)
    y = torch.cat([y[..., :half], everything], dim=-1)
    y = linear(model, f"{name}.out_conv.2", gelu(linear(model, f"{name}.out_conv.0", y)))
    keep = linear(model, f"{name}.out_conv.4", gelu(y)).log_softmax(-1)[..., 0]
    order = keep.sort(dim=1, descending=True).indices[:, : COUNTS[s]]
    return torch.stack([tokens[rows] for tokens, rows in zip(x, order, strict=True)])


def dpcknn(model, s, x, neighbors=5):
    weight = linear(model, f"cluster_layers.{s}.score", x).exp()[..., 0]
    merged = []
    for tokens, mass in zip(x, weight, strict=True):
        distance = torch.stack([(tokens - token).norm(dim=1) for token in tokens]) / WIDTH**0.5
        density = torch.exp(-distance.sort(dim=1).values[:, :neighbors].square().mean(1))
        far = [
            min((d for d, other in zip(row, density, strict=True) if other > own), default=distance.max())
            for row, own in zip(distance, density, strict=True)
        ]
        centers = (density * torch.stack(far)).sort(descending=True).indices[: COUNTS[s]].tolist()
        label = [
            centers.index(i) if i in centers else int(distance[i, centers].argmin())
            for i in range(len(tokens))
        ]
        groups = [[i for i, slot in enumerate(label) if slot == k] for k in range(len(centers))]
        merged.append(torch.stack([(mass[g, None] * tokens[g]).sum(0) / mass[g].sum() for g in groups]))
    return torch.stack(merged)


def attend(model, i, x):
    """The attention of a block, what CLS attends to among the patches, and that weighted by their values.

    The former is the mean over heads, the latter the sum.
    """
    b, n, _ = x.shape
    q, k, v = linear(model, f"blocks.{i}.attn.qkv", x).reshape(b, n, 3, HEADS, -1).permute(2, 0, 3, 1, 4)
    weights = (q @ k.mT / q.shape[-1] ** 0.5).softmax(-1)
    cls, norms = weights[:, :, 0, 1:], v[:, :, 1:].norm(dim=-1)
    y = linear(model, f"blocks.{i}.attn.proj", (weights @ v).transpose(1, 2).reshape(b, n, -1))
    return y, cls.mean(1), (cls * norms).sum(1)


def forward(model, images, before=None, between=None, scored=None):
    """Logits of a reduced DeiT: `before` a block or `between` its attention and its MLP the tokens change.

    `scored` is as `between`, by attention that is weighted by the values.
    """
    x = (
        F.conv2d(images, model["patch_embed.proj.weight"], model["patch_embed.proj.bias"], stride=8)
        .flatten(2)
        .mT
    )
    x = torch.cat([model["cls_token"].expand(len(x), -1, -1), x], dim=1) + model["pos_embed"]
    for i in range(4):
        s = LAYERS.index(i) if i in LAYERS else None
        if before and s is not None:
            x = torch.cat([x[:, :1], before(model, s, x[:, 1:])], dim=1)
        y, cls, weighted = attend(model, i, layer_norm(model, f"blocks.{i}.norm1", x, 1e-6))
        x = x + y
        if between and s is not None:
            x = torch.cat([x[:, :1], between(s, x[:, 1:], cls)], dim=1)
        if scored and s is not None:
            x = torch.cat([x[:, :1], scored(s, x[:, 1:], weighted)], dim=1)
        y = gelu(linear(model, f"blocks.{i}.mlp.fc1", layer_norm(model, f"blocks.{i}.norm2", x, 1e-6)))
        x = x + linear(model, f"blocks.{i}.mlp.fc2", y)
    return linear(model, "head", layer_norm(model, "norm", x, 1e-6)[:, 0])
