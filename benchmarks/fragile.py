"""What 4 bits do to a hybrid model's routers and gates: a small one is trained, stored, and compared with its floats.

    python -m benchmarks.fragile            # for an interpreter that has torch and NNCF; about six minutes of a core

Characters of a text are predicted by two blocks of a recurrence (Mamba-2's, in its quadratic form), each with a mixture
of eight experts of which two are chosen, and one of attention between them. Told is the mean KL divergence of its
predictions from the floats' on text that it was not trained on, with all that `fragile_layers` may be, and with NNCF's
defaults; the recurrences' last positions apart, for there errors of a decay have gathered. Training is not the same on
every machine, so numbers differ a little.
"""

from __future__ import annotations

import argparse
import sys
import warnings
from pathlib import Path
from typing import Any

import numpy as np
import openvino as ov

from benchmarks.places import ROOT, SHARED
from ov_weight_compression.ir_utils.saving import save_model
from ov_weight_compression.passes import apply_weight_compression

LENGTH, WIDTH, HEADS, STATE, EXPERTS, CHOSEN, TOKENS = 128, 128, 8, 16, 8, 2, 65
GROUP = 64
RESULT = ROOT / "benchmarks" / "results" / "fragile.md"
EXACT = {"INFERENCE_PRECISION_HINT": "f32", "DYNAMIC_QUANTIZATION_GROUP_SIZE": 0}


def network() -> Any:
    """The model, untrained."""
    import torch
    from torch import nn

    class Recurrence(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.norm = nn.LayerNorm(WIDTH)
            self.value, self.gate, self.out = (nn.Linear(WIDTH, WIDTH, bias=False) for _ in range(3))
            self.write, self.read = (nn.Linear(WIDTH, STATE, bias=False) for _ in range(2))
            self.step = nn.Linear(WIDTH, HEADS)
            self.rate = nn.Parameter(torch.linspace(-3.0, 1.0, HEADS))

        def forward(self, x: Any) -> Any:
            x = self.norm(x)
            step = nn.functional.softplus(self.step(x))  # [batch, time, heads]
            past = torch.cumsum(-torch.exp(self.rate) * step, dim=1).transpose(1, 2)
            decay = torch.exp((past[..., :, None] - past[..., None, :]).clamp(max=0))
            decay = decay * torch.tril(torch.ones(LENGTH, LENGTH))
            value = self.value(x).reshape(x.shape[0], LENGTH, HEADS, -1).transpose(1, 2)
            mixed = (self.read(x) @ self.write(x).transpose(1, 2))[:, None] * decay
            y = mixed @ (value * step.transpose(1, 2)[..., None])
            y = y.transpose(1, 2).reshape(x.shape[0], LENGTH, WIDTH)
            return self.out(y * nn.functional.silu(self.gate(x)))

    class Attention(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.norm = nn.LayerNorm(WIDTH)
            self.query, self.key, self.value, self.out = (nn.Linear(WIDTH, WIDTH, bias=False) for _ in range(4))

        def forward(self, x: Any) -> Any:
            x = self.norm(x)
            query, key, value = (
                one(x).reshape(x.shape[0], LENGTH, HEADS, -1).transpose(1, 2)
                for one in (self.query, self.key, self.value)
            )
            scores = query @ key.transpose(2, 3) * (HEADS / WIDTH) ** 0.5
            later = torch.triu(torch.full((LENGTH, LENGTH), -1e4), diagonal=1)
            mixed = torch.softmax(scores + later, dim=-1) @ value
            return self.out(mixed.transpose(1, 2).reshape(x.shape[0], LENGTH, WIDTH))

    class Mixture(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.norm, self.router = nn.LayerNorm(WIDTH), nn.Linear(WIDTH, EXPERTS, bias=False)
            self.up, self.act = (nn.Parameter(torch.randn(EXPERTS, WIDTH, WIDTH) / WIDTH**0.5) for _ in range(2))
            self.down = nn.Parameter(torch.randn(EXPERTS, WIDTH, WIDTH) / WIDTH**0.5)

        def forward(self, x: Any) -> Any:
            flat = self.norm(x).reshape(-1, WIDTH)
            scores = torch.softmax(self.router(flat), dim=-1)
            best, places = torch.topk(scores, CHOSEN)
            weights = torch.zeros_like(scores).scatter(1, places, best / best.sum(-1, keepdim=True))
            tiled = flat.repeat(EXPERTS, 1).reshape(EXPERTS, -1, WIDTH)
            hidden = nn.functional.silu(torch.bmm(tiled, self.act.transpose(1, 2)))
            found = torch.bmm(hidden * torch.bmm(tiled, self.up.transpose(1, 2)), self.down.transpose(1, 2))
            found = found.reshape(EXPERTS, x.shape[0], -1, WIDTH)
            return (found * weights.transpose(0, 1).reshape(EXPERTS, x.shape[0], -1)[..., None]).sum(0)

    class Network(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.table = nn.Embedding(TOKENS, WIDTH)
            parts = (Recurrence, Mixture, Attention, Recurrence, Mixture)
            self.blocks = nn.ModuleList(part() for part in parts)
            self.norm, self.head = nn.LayerNorm(WIDTH), nn.Linear(WIDTH, TOKENS, bias=False)

        def forward(self, ids: Any) -> Any:
            x = self.table(ids)
            for block in self.blocks:
                x = x + block(x)
            return self.head(self.norm(x))

    torch.manual_seed(0)
    return Network()


def train(model: Any, text: np.ndarray, steps: int) -> float:
    """Train it on pieces of a text; returns the last losses' mean, in nats a character."""
    import torch

    optimizer = torch.optim.AdamW(model.parameters(), lr=2e-3, weight_decay=0.01)
    schedule = torch.optim.lr_scheduler.OneCycleLR(optimizer, 3e-3, steps)
    random, losses = np.random.default_rng(0), []
    for _ in range(steps):
        starts = random.integers(0, len(text) - LENGTH - 1, 16)
        batch = torch.from_numpy(np.stack([text[one : one + LENGTH + 1] for one in starts]).astype(np.int64))
        loss = torch.nn.functional.cross_entropy(model(batch[:, :-1]).flatten(0, 1), batch[:, 1:].flatten())
        optimizer.zero_grad()
        loss.backward()
        torch.nn.utils.clip_grad_norm_(model.parameters(), 1.0)
        optimizer.step()
        schedule.step()
        losses.append(float(loss))
    return float(np.mean(losses[-50:]))


def predictions(model: ov.Model, windows: np.ndarray) -> np.ndarray:
    """Logarithms of the probabilities `[windows, time, tokens]`."""
    compiled = ov.Core().compile_model(model, "CPU", EXACT)
    logits = np.concatenate([np.array(compiled([window[None]])[0], np.float64) for window in windows])
    logits -= logits.max(-1, keepdims=True)
    return np.asarray(logits - np.log(np.exp(logits).sum(-1, keepdims=True)))


def stored_bytes(model: ov.Model, folder: Path) -> int:
    save_model(model, folder / "model.xml")
    return (folder / "model.bin").stat().st_size


def main() -> int:
    import tempfile

    import nncf
    import torch

    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("--steps", type=int, default=800, help="of training")
    arguments = parser.parse_args()
    warnings.simplefilter("ignore")
    torch.set_num_threads(1)
    text, unseen = (
        np.load(SHARED / "texts" / f"shakespeare_{part}.npy").reshape(-1) for part in ("calibration", "eval")
    )
    net = network()
    loss = train(net, text, arguments.steps)
    base = ov.convert_model(net.eval(), example_input=torch.zeros(1, LENGTH, dtype=torch.int64))
    places = np.linspace(0, len(unseen) - LENGTH, 48).astype(int)
    windows = np.stack([unseen[one : one + LENGTH] for one in places]).astype(np.int64)
    truth = predictions(base, windows)
    lines = ["| | bytes | mean KL, 10⁻³ nats | in the last 32 positions |", "|---|---|---|---|"]
    for mode in ("int4_sym", "int4_asym"):
        made = {f"fragile_layers={fragile}": {"fragile_layers": fragile} for fragile in ("mode", "backup", "float")}
        rows = {
            name: apply_weight_compression(base.clone(), mode=mode, group_size=GROUP, **own)
            for name, own in made.items()
        }
        kind = nncf.CompressWeightsMode[mode.upper()]
        rows["NNCF"] = nncf.compress_weights(base.clone(), mode=kind, group_size=GROUP)
        for name, model in rows.items():
            found = predictions(model, windows)
            divergence = 1e3 * (np.exp(truth) * (truth - found)).sum(-1)
            with tempfile.TemporaryDirectory() as folder:
                size = stored_bytes(model, Path(folder))
            lines.append(f"| {mode}, {name} | {size} | {divergence.mean():.2f} | {divergence[:, -32:].mean():.2f} |")
            print(lines[-1], flush=True)
    told = f"Trained for {arguments.steps} steps to {loss:.3f} nats a character; {len(windows)} windows of {LENGTH}.\n"
    RESULT.write_text("# Routers and gates in 4 bits\n\n" + told + "\n" + "\n".join(lines) + "\n")
    return 0


if __name__ == "__main__":
    sys.exit(main())
