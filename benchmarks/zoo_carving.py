"""The packaged model carved and dense at the same seed: how close are the videos, and what did every site do?

    python -m benchmarks.zoo_carving [--json benchmarks/results/zoo_carving.json] [--sheet sheet.png]

Eight prompts, 64 x 64, 24 steps, guidance 3, seed 0, `keep` 0.5 and 0.3 (cutoff 0.3, adjacency joined). PSNR is over
all pixels of a clip, peak 255. The floor to read it against is the dense model at the next seed: another video of the
same prompt.
"""

from __future__ import annotations

import argparse
import json
import statistics
from pathlib import Path
from typing import Any

import torch

from jenga_compile.backend import jenga
from jenga_compile.bench.environment import environment
from jenga_compile.media import Frames, contact_sheet, psnr, write_image
from jenga_compile.sites import Report
from jenga_compile.zoo.pipeline import ToyVideoPipeline
from jenga_compile.zoo.recipe import PROMPTS

KEEPS = (0.5, 0.3)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--json", type=Path, help="write the result here as well")
    parser.add_argument("--sheet", type=Path, help="write the carved clips (keep 0.3) here, a row a prompt")
    parser.add_argument("--text-model", type=Path, help="folder of all-MiniLM-L6-v2 (default: the installed package)")
    parser.add_argument("--weights", type=Path, help="folder of a trained model (default: the packaged one)")
    args = parser.parse_args()
    device = "cuda" if torch.cuda.is_available() else "cpu"
    folder = args.weights or Path(__file__).parent.parent / "jenga_compile" / "zoo" / "weights"
    pipe = ToyVideoPipeline.from_folder(folder, device, torch.float32, args.text_model)

    dense, another = (sample(pipe, seed) for seed in (0, 1))
    reports: list[Report] = []
    carved = {keep: sample(carve(pipe, keep, reports), 0) for keep in KEEPS}
    rows = {f"keep {keep}": closeness(carved[keep], dense) for keep in KEEPS}
    result = {
        "environment": environment() | {"device": device, "dtype": "float32"},
        "prompts": list(PROMPTS),
        "sampler": {"size": 64, "frames": 16, "steps": 24, "guidance": 3.0, "seed": 0},
        "psnr_db": rows | {"dense, another seed": closeness(another, dense)},
        "report": json.loads(reports[-1].to_json()),
    }
    print(json.dumps(result["psnr_db"], indent=1))
    print(reports[-1])
    if args.json:
        args.json.write_text(json.dumps(result, indent=1) + "\n")
    if args.sheet:
        write_image(args.sheet, contact_sheet(carved[0.3], captions=PROMPTS))


def carve(pipe: ToyVideoPipeline, keep: float, reports: list[Report]) -> ToyVideoPipeline:
    """The same pipeline around a carved transformer."""
    torch._dynamo.reset()
    options: dict[str, Any] = {"keep": keep, "inner": "eager", "on_report": reports.append, "strict": True}
    bare = getattr(pipe.transformer, "_orig_mod", pipe.transformer)
    transformer = torch.compile(bare, backend=jenga, options=options, dynamic=False)
    return ToyVideoPipeline(transformer, pipe.scheduler, pipe.text_encoder, pipe.tokenizer)


def sample(pipe: ToyVideoPipeline, seed: int) -> list[Frames]:
    """One clip a prompt, each from its own generator, so that a clip does not depend on its neighbours."""
    pipe.set_progress_bar_config(disable=True)
    return [
        pipe(prompt, guidance_scale=3.0, generator=torch.Generator().manual_seed(seed)).frames[0].numpy()
        for prompt in PROMPTS
    ]


def closeness(videos: list[Frames], references: list[Frames]) -> dict[str, object]:
    values = [round(psnr(video, reference), 2) for video, reference in zip(videos, references, strict=True)]
    return {"median": round(statistics.median(values), 2), "each": values}


if __name__ == "__main__":
    main()
