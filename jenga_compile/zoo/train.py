"""Train the shipped text-to-video model on composed sprite clips, on a wall-clock budget.

python -m jenga_compile.zoo.train --out out/sprites --minutes 8.5 --total-minutes 15
python -m jenga_compile.zoo.train --out out/sprites --minutes 8.5 --total-minutes 15 --resume out/sprites

The schedules run over the whole budget (--total-minutes, summed over resumed calls; compilation counts), so that
the learning rate reaches zero when the budget ends. A call stops after --minutes, writes a checkpoint and exports
the averaged weights (fp16), the scheduler, training.json and a contact sheet of eight fixed prompts.

Loss: |v - (eps - x_0)|^2 at x_s = (1 - s) x_0 + s eps; s logit-normal, then shifted as in the sampler.
Shapes: B clips, x [B, 3, T, H, W] in [-1, 1].
"""

from __future__ import annotations

import argparse
import dataclasses
import json
import math
import os
import platform
import time
from pathlib import Path
from typing import Any

import torch
from torch import Tensor
from torch.nn.attention import SDPBackend, sdpa_kernel

from jenga_compile.media import contact_sheet, write_image
from jenga_compile.zoo.model import FLOW_SHIFT, TextEncoder, build_scheduler, build_transformer
from jenga_compile.zoo.pipeline import ToyVideoPipeline
from jenga_compile.zoo.recipe import PROMPTS, SMOKE, TrainConfig
from jenga_compile.zoo.sprites import Sprites, captions_of
from jenga_compile.zoo.trainable import Ema, attention_order, build_optimizers, make_trainable


class Trainer:
    """The state of a run: model, average, optimizers, generators and counters."""

    def __init__(self, config: TrainConfig, device: torch.device, text_model: Path | None, compiled: bool) -> None:
        self.config, self.device, self.attention = config, device, "auto"
        cuda = device.type == "cuda"
        torch.manual_seed(config.seed)
        self.transformer = make_trainable(build_transformer(config.model)).to(device).train()
        if compiled:
            torch._dynamo.config.recompile_limit = 64  # a graph per block class, size and input layout
            self.transformer.compile_repeated_blocks(dynamic=False)
        self.text = TextEncoder.load(text_model, device, torch.float16 if cuda else torch.float32)
        self.sprites = Sprites(device, config.frames)
        self.optimizers = build_optimizers(
            self.transformer,
            muon_lr=config.muon_lr,
            adamw_lr=config.adamw_lr,
            weight_decay=config.weight_decay,
            fused=cuda,
        )
        self.ema = Ema(self.transformer.parameters())
        self.draws = torch.Generator().manual_seed(config.seed)
        self.noise = torch.Generator(device).manual_seed(config.seed)
        self.step, self.samples, self.flops, self.minutes = 0, 0, 0.0, 0.0
        self.losses: list[tuple[float, int, float]] = []
        """(minutes, step, mean loss since the last entry)"""

    def progress(self) -> float:
        if self.config.total_steps is not None:
            return min(1.0, self.step / self.config.total_steps)
        return min(1.0, self.minutes / self.config.total_minutes)

    def train_step(self) -> Tensor:
        """One optimizer step; returns the loss, still on the device."""
        config, progress = self.config, self.progress()
        shares = config.sizes_early if progress < config.early else config.sizes
        pick = torch.multinomial(torch.tensor([share for _, share in shares]), 1, generator=self.draws)
        size = shares[int(pick)][0]
        tokens = config.model.video_tokens(config.frames, config.base_size)
        batch = max(1, config.micro_batch * tokens // config.model.video_tokens(config.frames, size) // 8 * 8)
        passes = 1 if progress < config.early else config.accumulate
        total = torch.zeros((), device=self.device)
        for _ in range(passes):
            loss = self._loss(batch, size) / passes
            loss.backward()  # type: ignore[no-untyped-call]
            total += loss.detach()
        torch.nn.utils.clip_grad_norm_(self.transformer.parameters(), 1.0)
        rate = min(1.0, (self.step + 1) / config.warmup_steps)
        rate *= min(1.0, (1 - progress) / (1 - config.decay_from))
        for optimizer in self.optimizers:
            for group in optimizer.param_groups:
                group["lr"] = group["peak_lr"] * rate
            optimizer.step()
            optimizer.zero_grad(set_to_none=True)
        self.step += 1
        self.ema.update(self.step)
        self.samples += batch * passes
        self.flops += batch * passes * config.model.training_flops(config.frames, size)
        return total

    def _loss(self, batch: int, size: int) -> Tensor:
        scene = self.sprites.draw(batch, self.draws, partial=self.config.partial_caption, split="seen")
        dropped = torch.rand(batch, generator=self.draws) < self.config.drop_caption
        captions = ["" if drop else text for drop, text in zip(dropped.tolist(), captions_of(scene), strict=True)]
        clip, _ = self.sprites.render(scene, size)
        with sdpa_kernel([SDPBackend.EFFICIENT_ATTENTION, SDPBackend.MATH]):
            hidden, mask, pooled = self.text.encode(captions)
        s = self._times(batch)[:, None, None, None, None]
        eps = torch.randn(clip.shape, device=self.device, generator=self.noise)
        with torch.autocast(self.device.type, torch.bfloat16, enabled=self.device.type == "cuda"):
            velocity = self.transformer(
                hidden_states=torch.lerp(clip, eps, s),
                timestep=1000 * s.flatten(),
                encoder_hidden_states=hidden,
                encoder_attention_mask=mask,
                pooled_projections=pooled,
                return_dict=False,
            )[0]
        return torch.nn.functional.mse_loss(velocity.float(), eps - clip)

    def _times(self, batch: int) -> Tensor:
        """Noise levels s [B] in (0, 1), stratified over the batch to cut the loss's variance."""
        strata = (torch.arange(batch) + torch.rand(batch, generator=self.draws)) / batch
        normal = math.sqrt(2) * torch.erfinv((2 * strata - 1).clamp(-0.9999, 0.9999))
        uniform = torch.rand(batch, generator=self.draws)
        flat = torch.rand(batch, generator=self.draws) < self.config.uniform_times
        u = torch.where(flat, uniform, torch.sigmoid(normal))
        s = FLOW_SHIFT * u / (1 + (FLOW_SHIFT - 1) * u)
        return s.pin_memory().to(self.device, non_blocking=True) if self.device.type == "cuda" else s

    def save(self, folder: Path) -> None:
        """Write folder/checkpoint.pt, by rename: a killed run never leaves half a file."""
        state = {
            "model": self.transformer.state_dict(),
            "ema": self.ema.average,
            "optimizers": [optimizer.state_dict() for optimizer in self.optimizers],
            "generators": [self.draws.get_state(), self.noise.get_state()],
            "counters": [self.step, self.samples, self.flops, self.minutes],
            "losses": self.losses,
        }
        torch.save(state, folder / "checkpoint.tmp")
        os.replace(folder / "checkpoint.tmp", folder / "checkpoint.pt")

    def load(self, folder: Path) -> None:
        state = torch.load(folder / "checkpoint.pt", map_location="cpu", weights_only=True)
        self.transformer.load_state_dict(state["model"])
        self.ema.load(state["ema"])
        for optimizer, values in zip(self.optimizers, state["optimizers"], strict=True):
            optimizer.load_state_dict(values)
        for generator, values in zip((self.draws, self.noise), state["generators"], strict=True):
            generator.set_state(values)
        self.step, self.samples, self.flops, self.minutes = state["counters"]
        self.losses = [tuple(entry) for entry in state["losses"]]

    def run(self, minutes: float, folder: Path, max_steps: int | None = None, start: float | None = None) -> None:
        """Step until the call's minutes, its steps or the whole budget are used up; log and save on the way."""
        start = time.monotonic() if start is None else start
        before, first, saved = self.minutes, self.step, time.monotonic()
        logged, mark = time.monotonic(), (self.step, self.samples, self.flops)
        total = torch.zeros((), device=self.device)
        config = self.config.model
        tokens = config.video_tokens(self.config.frames, self.config.base_size) + 32
        heads, width = config.num_attention_heads, config.attention_head_dim
        order = attention_order(self.attention, self.device, (16, tokens, heads, width))
        with sdpa_kernel(order, set_priority=True):
            while True:
                spent = (time.monotonic() - start) / 60
                self.minutes = before + spent
                done = self.progress() >= 1 or spent >= minutes
                done = done or (max_steps is not None and self.step - first >= max_steps)
                now = time.monotonic()
                if self.step > mark[0] and (done or now - logged >= 10):
                    loss = total.item() / (self.step - mark[0])  # the only wait for the device
                    seconds = time.monotonic() - logged
                    self.losses.append((round(self.minutes, 3), self.step, loss))
                    print(
                        f"{self.minutes:6.2f} min  step {self.step:5d}  loss {loss:.4f}  "
                        f"{(self.samples - mark[1]) / seconds:6.0f} clips/s  "
                        f"{(self.flops - mark[2]) / seconds / 1e12:5.1f} TFLOP/s  {self.samples} clips",
                        flush=True,
                    )
                    total.zero_()
                    logged, mark = time.monotonic(), (self.step, self.samples, self.flops)
                if done or now - saved >= 120:
                    self.save(folder)
                    saved = time.monotonic()
                if done:
                    return
                total += self.train_step()

    def export(self, folder: Path) -> Any:
        """Write folder/transformer (averaged weights, fp16) and folder/scheduler; returns the averaged model."""
        transformer = build_transformer(self.config.model)
        self.ema.copy_to(transformer.parameters())
        transformer.half().save_pretrained(folder / "transformer")
        build_scheduler().save_pretrained(folder / "scheduler")
        return make_trainable(transformer.float()).to(self.device).eval()

    def record(self, folder: Path) -> None:
        cuda = self.device.type == "cuda"
        facts = {
            "config": dataclasses.asdict(self.config),
            "steps": self.step,
            "clips": self.samples,
            "minutes": round(self.minutes, 2),
            "finished": self.progress() >= 1,
            "parameters": sum(p.numel() for p in self.transformer.parameters()),
            "device": torch.cuda.get_device_name() if cuda else platform.machine(),
            "versions": {"torch": torch.__version__, "python": platform.python_version()},
            "losses": self.losses,
        }
        (folder / "training.json").write_text(json.dumps(facts, indent=1))


def main(arguments: list[str] | None = None) -> Trainer:
    start = time.monotonic()
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--out", type=Path, required=True)
    parser.add_argument("--resume", type=Path, help="folder with a checkpoint.pt to go on from")
    parser.add_argument("--minutes", type=float, default=9.0, help="wall clock of this call, compilation included")
    parser.add_argument("--total-minutes", type=float, default=15.0, help="wall clock over all resumed calls")
    parser.add_argument("--text-model", type=Path, help="folder of all-MiniLM-L6-v2 (default: the PyPI package)")
    parser.add_argument("--device", default="cuda" if torch.cuda.is_available() else "cpu")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--micro-batch", type=int, default=128)
    parser.add_argument("--accumulate", type=int, default=2)
    parser.add_argument("--muon-lr", type=float, default=3e-3)
    parser.add_argument("--adamw-lr", type=float, default=1.5e-3)
    parser.add_argument("--no-compile", action="store_true")
    parser.add_argument("--attention", choices=("auto", "cudnn", "flash"), default="auto")
    parser.add_argument("--max-steps", type=int, help="stop this call after so many steps")
    parser.add_argument("--smoke", action="store_true", help="a tiny model for a few steps, under a minute on a CPU")
    args = parser.parse_args(arguments)
    config = SMOKE if args.smoke else TrainConfig()
    config = dataclasses.replace(config, seed=args.seed, total_minutes=args.total_minutes)
    if not args.smoke:
        names = ("micro_batch", "accumulate", "muon_lr", "adamw_lr")
        config = dataclasses.replace(config, **{name: getattr(args, name) for name in names})
    device = torch.device(args.device)
    torch.set_float32_matmul_precision("high")
    compiled = device.type == "cuda" and not args.no_compile
    trainer = Trainer(config, device, args.text_model, compiled)
    trainer.attention = args.attention
    if args.resume is not None:
        trainer.load(args.resume)
    args.out.mkdir(parents=True, exist_ok=True)
    trainer.run(args.minutes, args.out, args.max_steps, start)
    averaged = trainer.export(args.out)
    trainer.record(args.out)
    pipe = ToyVideoPipeline(averaged, build_scheduler(), trainer.text.model, trainer.text.tokenizer)
    size = config.base_size
    with torch.autocast(device.type, torch.bfloat16, enabled=device.type == "cuda"):
        videos = pipe(
            PROMPTS,
            height=size,
            width=size,
            num_frames=config.frames,
            num_inference_steps=2 if args.smoke else 30,
            generator=torch.Generator().manual_seed(config.seed),
        ).frames
    write_image(args.out / "samples.png", contact_sheet(list(videos.numpy()), captions=PROMPTS))
    return trainer


if __name__ == "__main__":
    main()
