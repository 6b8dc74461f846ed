"""ElaLoRA in float64, written straight from docs/methods.md: lists of lone directions, loops, no cleverness.

Shares nothing with the package but the network under it.
"""

from __future__ import annotations

import numpy as np
import torch
from nets import batch
from torch import nn


class Direction:
    e_rate = 1.0  # factor on the learning rate of e

    def __init__(self, a, b, e):
        self.parts = [nn.Parameter(t.clone()) for t in (a, b, e)]
        self.smooth = [torch.zeros_like(p) for p in self.parts]
        self.uncertain = [torch.zeros_like(p) for p in self.parts]
        self.fresh_optimizer()

    def fresh_optimizer(self):
        vectors, value = {"params": self.parts[:2]}, {"params": self.parts[2:]}
        self.optimizer = torch.optim.AdamW([vectors, value], lr=1.0, weight_decay=0.0)

    def step(self, rate):
        for group, factor in zip(self.optimizer.param_groups, (1.0, self.e_rate), strict=True):
            group["lr"] = rate * factor
        self.optimizer.step()

    def remember(self):
        self.before = [p.detach().clone() for p in self.parts]

    def importance(self, weights, beta1=0.85, beta2=0.85):
        for i, (w, p) in enumerate(zip(weights, self.parts, strict=True)):
            now = (w * p.grad).abs()
            self.smooth[i] = beta1 * self.smooth[i] + (1 - beta1) * now
            self.uncertain[i] = beta2 * self.uncertain[i] + (1 - beta2) * (now - self.smooth[i]).abs()

    def score(self):
        return sum(float((s * u).mean()) for s, u in zip(self.smooth, self.uncertain, strict=True))


class ReferenceLinear(nn.Module):
    def __init__(self, base, directions, scale):
        super().__init__()
        self.base, self.directions, self.scale = base, directions, scale

    def forward(self, x):
        out = self.base(x)
        for d in self.directions:
            a, b, e = d.parts
            out = out + self.scale * e * (x @ a)[..., None] * b
        return out

    def delta(self):
        return sum(self.scale * d.parts[2] * torch.outer(d.parts[1], d.parts[0]) for d in self.directions).detach()


def regulariser(matrices):
    total = 0.0
    for m in matrices:
        a = torch.stack([d.parts[0] for d in m.directions])
        b = torch.stack([d.parts[1] for d in m.directions])
        eye = torch.eye(len(a), dtype=a.dtype)
        total = total + torch.sqrt(((a @ a.T - eye) ** 2).sum()) + torch.sqrt(((b @ b.T - eye) ** 2).sum())
    return total / (2 * len(matrices))


def moves(t, total, t_i, t_f, b0):
    p = min(1.0, max(0.0, (t - t_i) / (total - t_f - t_i)))
    return round(b0 * (1 - p**3))


def by_sensitivity(net, matrices):
    return {d: d.score() for m in matrices.values() for d in m.directions}


def by_gate(net, matrices):
    return {d: abs(float(d.parts[2].detach())) for m in matrices.values() for d in m.directions}


def by_entropy(net, matrices):
    """Spectral entropy of the matrix, and then |e|."""
    keys = {}
    for m in matrices.values():
        e = np.array([float(d.parts[2].detach()) for d in m.directions])
        p = e**2 / (e**2).sum()
        entropy = -(p * np.log(p + 1e-8)).sum() / np.log(len(p)) if len(p) > 1 else 0.0
        keys |= {d: (entropy, abs(value)) for d, value in zip(m.directions, e, strict=True)}
    return keys


def by_ablation(net, matrices):
    """Eq. 6 of ALoRA on one batch, by taking directions out of their lists."""
    whole = {name: list(m.directions) for name, m in matrices.items()}

    def quality(alive):
        for name, m in matrices.items():
            m.directions = [d for d in whole[name] if d in alive]
        x, y = batch(900)
        with torch.no_grad():
            return -float(nn.functional.cross_entropy(net(x), y))

    everything = {d for directions in whole.values() for d in directions}
    keys = {d: quality(everything) - quality(everything - {d}) + quality({d}) for d in everything}
    quality(everything)
    return keys


def reference_run(
    net, factors, generator, total, t_i, t_f, interval, b0, k, lr, clip, warmup, scale, switches,
    score=by_sensitivity, l1=0.0,
):  # fmt: skip
    """Trains `net` in place; factors: name -> (A, B, E) at the start. Returns matrices and the log of rounds."""
    net.requires_grad_(False)
    matrices = {}
    for name, (a, b, e) in factors.items():
        lone = [Direction(a[i], b[i], e[i]) for i in range(len(a))]
        matrices[name] = ReferenceLinear(net.get_submodule(name), lone, scale)
        parent, _, child = name.rpartition(".")
        setattr(net.get_submodule(parent), child, matrices[name])
    net.head.requires_grad_(True)
    head = torch.optim.AdamW(net.head.parameters(), lr=1.0, weight_decay=0.0)
    held, log = False, []
    for t in range(total):
        rate = t / warmup if t < warmup else (total - t) / (total - warmup)
        rate = lr * (1.0 if held else rate)
        x, y = batch(t)
        loss = nn.functional.cross_entropy(net(x), y) + 0.1 * regulariser(list(matrices.values()))
        loss.backward()
        lone = [d for m in matrices.values() for d in m.directions]
        own = [p for d in lone for p in d.parts] + list(net.head.parameters())
        nn.utils.clip_grad_norm_(own, clip)
        for d in lone:
            d.remember()
        head.param_groups[0]["lr"] = rate
        head.step()
        for d in lone:
            d.step(rate)
            e = d.parts[2].data
            e.copy_(e.sign() * max(abs(float(e)) - l1 * rate * d.e_rate, 0.0))
        if t < total - t_f:
            for d in lone:
                d.importance([p.detach() for p in d.parts] if switches["D15"] else d.before)
        b = moves(t, total, t_i, t_f, b0)
        if t > t_i and (t - t_i) % interval == 0 and b > 0 and t < total - t_f:
            log.append((t, *one_round(matrices, b, k, generator, switches, score(net, matrices))))
            if switches["D1"]:
                head = torch.optim.AdamW(net.head.parameters(), lr=1.0, weight_decay=0.0)
                for m in matrices.values():
                    for d in m.directions:
                        d.fresh_optimizer()
            held = held or switches["D2"]
        net.zero_grad()
        for m in matrices.values():
            for d in m.directions:
                for p in d.parts:
                    p.grad = None
    return matrices, log


def one_round(matrices, b, k, generator, switches, scores):
    pool = []
    for name, m in matrices.items():
        ranked = sorted(((scores[d], d) for d in m.directions), key=lambda pair: pair[0])
        pool += [(s, name, d) for s, d in ranked[: min(k, len(m.directions) - 1)]]
    pool.sort(key=lambda entry: entry[0])
    lowest, highest = pool[:b], pool[::-1][:b]
    for _, name, d in lowest:
        matrices[name].directions.remove(d)
    for _, name, _ in highest:
        m = matrices[name]
        a_rows = torch.stack([d.parts[0].detach() for d in m.directions])
        b_rows = torch.stack([d.parts[1].detach() for d in m.directions])
        z = torch.randn(a_rows.shape[1], generator=generator).double()
        a = z - a_rows.T @ (a_rows @ z)
        z = torch.randn(b_rows.shape[1], generator=generator).double()
        c = z - b_rows.T @ (b_rows @ z)
        least = min(abs(float(d.parts[2].detach())) for d in m.directions)
        e = torch.tensor(min(least, 1e-13) if switches["D8"] else 0.0, dtype=torch.float64)
        m.directions.append(Direction(a / (a.norm() + 1e-6), c / (c.norm() + 1e-6), e))
    return [name for _, name, _ in lowest], [name for _, name, _ in highest]
