"""Does a sampled clip show what its prompt says? A classifier trained on the generator's own clips answers.

python -m jenga_compile.zoo.judge --train --out judge.safetensors
python -m jenga_compile.zoo.judge --weights judge.safetensors --model out/sprites --samples 512 --json judge.json

One small 3D convolutional network names a clip's object, colour, motion and texture. Its accuracy on fresh real
clips is the ceiling, guessing is the floor, and a model's clips lie between. Without --weights it trains first.
The model is asked for random combinations of labels twice: ones it may have met in training ("seen") and ones that
were held out ("unseen").

Shapes: B clips [B, 3, T, H, W] in [-1, 1], H = W = 64; logits [B, classes] per label.
"""

from __future__ import annotations

import argparse
import dataclasses
import json
import platform
import time
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import load_file, save_file
from torch import Tensor, nn
from torch.nn import functional as F

from jenga_compile.zoo.sprites import Split, Sprites, captions_of
from jenga_compile.zoo.vocabulary import LABEL_NAMES, classes

Generate = Callable[[Sequence[str]], Tensor]
"""Prompts -> uint8 videos [B, T, H, W, 3]."""


class Mix(nn.Module):
    """Convolution over space or over time, batch norm, ReLU (if `active`), on clips [B, T, H, W, C].

    Channels last, a frame batch [B T, H, W, C] and a pixel batch [B, T, H W, C] are views of the same memory, so
    both are 2D convolutions.
    """

    def __init__(self, inputs: int, width: int, kind: str, stride: int = 1, active: bool = True) -> None:
        super().__init__()
        self.over_time, self.active = kind == "time", active
        kernel, pad, step = ((3, 1), (1, 0), (stride, 1)) if self.over_time else ((3, 3), (1, 1), (stride, stride))
        self.conv = nn.Conv2d(inputs, width, kernel, step, pad, bias=False)
        self.norm = nn.BatchNorm2d(width)

    def forward(self, x: Tensor) -> Tensor:
        b, t, h, w, _ = x.shape
        x = x.flatten(2, 3) if self.over_time else x.flatten(0, 1)
        x = self.norm(self.conv(x.permute(0, 3, 1, 2))).permute(0, 2, 3, 1)
        x = F.relu(x) if self.active else x
        return x.reshape(b, -1, h, w, x.shape[-1]) if self.over_time else x.reshape(b, t, *x.shape[1:])


class Stage(nn.Module):
    """Halve the frame, then time if `time_stride` is 2, then one residual pair of mixes."""

    def __init__(self, inputs: int, width: int, time_stride: int) -> None:
        super().__init__()
        self.down = Mix(inputs, width, "space", 2)
        self.slow = Mix(width, width, "time", time_stride)
        self.space = Mix(width, width, "space")
        self.time = Mix(width, width, "time", active=False)

    def forward(self, x: Tensor) -> Tensor:
        x = self.slow(self.down(x))
        return F.relu(x + self.time(self.space(x)))


class Judge(nn.Module):
    """Four stages and a linear head per label. The heads see the mean over space of each remaining time slot."""

    def __init__(self, widths: Sequence[int] = (32, 64, 128, 256), frames: int = 16) -> None:
        super().__init__()
        specs = zip((3, *widths[:-1]), widths, (1, 2, 2, 2), strict=True)
        self.stages = nn.Sequential(*(Stage(*spec) for spec in specs))
        slots = -(-frames // 8)
        self.heads = nn.ModuleDict({name: nn.Linear(widths[-1] * slots, len(classes(name))) for name in LABEL_NAMES})

    def forward(self, clip: Tensor) -> dict[str, Tensor]:
        x = clip.permute(0, 2, 3, 4, 1).contiguous()  # [B, T, H, W, C]
        feature = self.stages(x).mean((2, 3)).flatten(1)
        return {name: head(feature) for name, head in self.heads.items()}


def train_judge(device: torch.device, *, seconds: float = 80.0, batch: int = 256, seed: int = 1) -> Judge:
    """Train on fresh clips for a stretch of wall clock; noise and blur make it tolerant of a sampler's flaws."""
    torch.manual_seed(seed)
    cuda = device.type == "cuda"
    judge = Judge().to(device)
    sprites = Sprites(device)
    draws = torch.Generator().manual_seed(seed)
    optimizer = torch.optim.AdamW(judge.parameters(), lr=2e-3, weight_decay=0.02)
    start, step, shown = time.monotonic(), 0, time.monotonic()
    while (spent := (time.monotonic() - start) / seconds) < 1:
        for group in optimizer.param_groups:
            group["lr"] = 2e-3 * min(1.0, (step + 1) / 100) * (1 - spent)
        clip, _, labels = sprites(batch, 64, draws)
        targets = {name: value.to(device) for name, value in labels.items()}
        with torch.autocast(device.type, torch.bfloat16, enabled=cuda):
            logits = judge(_spoil(clip, draws))
        losses = [F.cross_entropy(logits[name].float(), targets[name], label_smoothing=0.05) for name in logits]
        loss = torch.stack(losses).sum()
        optimizer.zero_grad(set_to_none=True)
        loss.backward()  # type: ignore[no-untyped-call]
        optimizer.step()
        step += 1
        if step % 20 == 0 and cuda:
            torch.cuda.synchronize()  # the clock that ends the loop must not run ahead of the device
        if time.monotonic() - shown > 10:
            shown = time.monotonic()
            print(f"judge: step {step}, {step * batch} clips, loss {loss.item():.3f}", flush=True)
    judge.eval()
    return judge


def _spoil(clip: Tensor, generator: torch.Generator) -> Tensor:
    """Blur a third of the clips by two pixels and add noise of random strength to all."""
    blurred = F.avg_pool3d(F.pad(clip, (0, 1, 0, 1, 0, 0), mode="replicate"), (1, 2, 2), (1, 1, 1))
    device = clip.device
    pick = (torch.rand(len(clip), generator=generator) < 1 / 3).to(device)[:, None, None, None, None]
    strength = (0.1 * torch.rand(len(clip), generator=generator)).to(device)[:, None, None, None, None]
    return torch.where(pick, blurred, clip) + strength * torch.randn_like(clip)


@torch.no_grad()
def accuracy(judge: Judge, clips: Tensor, labels: Mapping[str, Tensor]) -> dict[str, dict[str, float]]:
    """Top-1 and top-5 accuracy, hits and chance per label, for clips [B, 3, T, 64, 64] in [-1, 1]."""
    device = next(judge.parameters()).device
    parts = [judge(part.to(device).float()) for part in torch.split(clips, 64)]
    result = {}
    for name in LABEL_NAMES:
        logits = torch.cat([part[name] for part in parts]).cpu()
        hits = logits.topk(5 if logits.shape[1] > 5 else 1).indices == labels[name][:, None]  # [B, 5]
        row = {"top1": hits[:, 0].float().mean().item(), "hits": int(hits[:, 0].sum())}
        if hits.shape[1] > 1:
            row["top5"] = hits.any(1).float().mean().item()
        result[name] = row | {"clips": len(clips), "chance": 1 / logits.shape[1]}
    return result


def evaluate(
    judge: Judge, generate: Generate, n: int, seed: int = 0, split: Split = "any", batch: int = 64
) -> dict[str, dict[str, float]]:
    """Judge `n` clips that `generate` makes of random full captions; labels are drawn independently."""
    device = next(judge.parameters()).device
    scene = Sprites(device).draw(n, torch.Generator().manual_seed(seed), split=split)
    scene = dataclasses.replace(scene, wording=torch.zeros_like(scene.wording))
    captions = captions_of(scene)
    made = [generate(captions[i : i + batch]) for i in range(0, n, batch)]
    clips = torch.cat(made).permute(0, 4, 1, 2, 3).float() / 127.5 - 1
    return accuracy(judge, clips, scene.labels)


def ceiling(judge: Judge, n: int, seed: int, batch: int = 64) -> dict[str, dict[str, float]]:
    """The judge's accuracy on `n` fresh real clips."""
    sprites = Sprites(next(judge.parameters()).device)
    draws = torch.Generator().manual_seed(seed)
    clips, labels = [], []
    for first in range(0, n, batch):
        clip, _, label = sprites(min(batch, n - first), 64, draws)
        clips.append(clip.cpu())
        labels.append(label)
    return accuracy(judge, torch.cat(clips), {k: torch.cat([row[k] for row in labels]) for k in LABEL_NAMES})


def save_judge(judge: Judge, file: Path) -> None:
    save_file({k: v.half().contiguous() for k, v in judge.state_dict().items() if v.is_floating_point()}, file)


def load_judge(file: Path, device: torch.device | str = "cpu") -> Judge:
    judge = Judge()
    judge.load_state_dict({k: v.float() for k, v in load_file(file).items()}, strict=False)
    judge.to(device).eval()
    return judge


def model_generator(folder: Path, text_model: Path | None, device: torch.device, seed: int, **options: Any) -> Generate:
    """Samples of the model in `folder`; options as `ToyVideoPipeline` takes them."""
    from jenga_compile.zoo.pipeline import ToyVideoPipeline
    from jenga_compile.zoo.trainable import make_trainable

    dtype = torch.bfloat16 if device.type == "cuda" else torch.float32
    pipe = ToyVideoPipeline.from_folder(folder, device, dtype, text_model)
    pipe.set_progress_bar_config(disable=True)
    make_trainable(pipe.transformer)  # the same function, faster
    noise = torch.Generator().manual_seed(seed)

    def generate(prompts: Sequence[str]) -> Tensor:
        frames: Tensor = pipe(prompts, generator=noise, **options).frames
        return frames

    return generate


def main(arguments: list[str] | None = None) -> dict[str, Any]:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--train", action="store_true", help="train a judge even if nothing is to be judged")
    parser.add_argument("--out", type=Path, help="write the trained judge here (safetensors, fp16)")
    parser.add_argument("--weights", type=Path, help="use this judge instead of training one")
    parser.add_argument("--seconds", type=float, default=80.0, help="training time of the judge")
    parser.add_argument("--model", type=Path, help="folder written by zoo.train, to be judged")
    parser.add_argument("--samples", type=int, default=512)
    parser.add_argument("--steps", type=int, default=24)
    parser.add_argument("--guidance", type=float, nargs="+", default=[4.0], help="one evaluation per value")
    parser.add_argument("--text-model", type=Path)
    parser.add_argument("--device", default="cuda" if torch.cuda.is_available() else "cpu")
    parser.add_argument("--seed", type=int, default=1234)
    parser.add_argument("--json", type=Path)
    args = parser.parse_args(arguments)
    if args.weights is None and not args.train and args.model is None:
        parser.error("nothing to do: give --train, --model or both")
    device = torch.device(args.device)
    torch.set_float32_matmul_precision("high")
    fresh = args.weights is None
    judge = train_judge(device, seconds=args.seconds) if fresh else load_judge(args.weights, device)
    if args.out is not None:
        save_judge(judge, args.out)
    facts: dict[str, Any] = {
        "device": torch.cuda.get_device_name() if device.type == "cuda" else platform.machine(),
        "versions": {"torch": torch.__version__, "python": platform.python_version()},
        "judge": {"parameters": sum(p.numel() for p in judge.parameters()), "real": ceiling(judge, 2048, args.seed)},
    }
    if args.model is not None:
        facts["sampler"] = {"steps": args.steps, "size": 64, "frames": 16}
        facts["model"] = {}
        for guidance in args.guidance:
            start = time.monotonic()
            options = {"num_inference_steps": args.steps, "guidance_scale": guidance}
            generate = model_generator(args.model, args.text_model, device, args.seed, **options)
            scores: dict[str, Any] = {
                split: evaluate(judge, generate, args.samples, args.seed, split) for split in ("seen", "unseen")
            }
            facts["model"][f"guidance {guidance:g}"] = scores | {"seconds": round(time.monotonic() - start, 1)}
    print(json.dumps(facts, indent=1))
    if args.json is not None:
        args.json.write_text(json.dumps(facts, indent=1))
    return facts


if __name__ == "__main__":
    main()
