"""Render the EmojiCanvas atlas: 142 objects x 8 human-drawn styles, as one WebP and one JSON.

Set-up: `npm install @iconify-json/{noto,noto-v1,fluent-emoji,fluent-emoji-flat,
fluent-emoji-high-contrast,twemoji,openmoji,emojione} emojibase-data` and `pip install resvg-py`.
Run: `python scripts/render_emoji.py --node-modules node_modules`.
"""

import argparse
import io
import json
import re
from pathlib import Path

import resvg_py
from PIL import Image

HERE = Path(__file__).parent
STYLES = {
    "noto": "noto",
    "blob": "noto-v1",
    "glossy": "fluent-emoji",
    "flat": "fluent-emoji-flat",
    "ink": "fluent-emoji-high-contrast",
    "tweet": "twemoji",
    "outline": "openmoji",
    "emojione": "emojione",
}
CELL = 80
MAX_SYNONYMS = 3


def rasterise(icon_set: dict, slug: str) -> Image.Image:
    """Draw one Iconify icon as a CELL x CELL RGBA picture; set defaults fill its missing box."""
    slug = icon_set.get("aliases", {}).get(slug, {}).get("parent", slug)
    icon = icon_set["icons"][slug]
    width = icon.get("width", icon_set.get("width", 16))
    height = icon.get("height", icon_set.get("height", 16))
    box = f"{icon.get('left', 0)} {icon.get('top', 0)} {width} {height}"
    body = icon["body"].replace("currentColor", "#000")
    svg = f'<svg xmlns="http://www.w3.org/2000/svg" viewBox="{box}">{body}</svg>'
    svg = svg.replace("<svg ", '<svg xmlns:xlink="http://www.w3.org/1999/xlink" ', 1)
    scale = 4 * CELL / max(width, height)
    size = {"width": round(width * scale), "height": round(height * scale)}
    drawn = Image.open(io.BytesIO(bytes(resvg_py.svg_to_bytes(svg_string=svg, **size))))
    square = Image.new("RGBA", (4 * CELL, 4 * CELL))
    square.paste(drawn, ((4 * CELL - drawn.width) // 2, (4 * CELL - drawn.height) // 2))
    return square.resize((CELL, CELL), Image.Resampling.BOX)


def unique_synonyms(slugs: list[str], keywords: list[dict]) -> dict[str, list[str]]:
    """CLDR keywords that name exactly one of the objects, the first few of each."""
    by_slug = {slugify(entry["label"]): entry.get("tags", []) for entry in keywords}
    owners: dict[str, set[str]] = {}
    for slug in slugs:
        for tag in by_slug[slug]:
            owners.setdefault(tag, set()).add(slug)
    names = {slug.replace("-", " ") for slug in slugs}
    words_of_names = {word for slug in slugs for word in slug.split("-")}
    return {
        slug: [
            tag
            for tag in by_slug[slug]
            if len(owners[tag]) == 1
            and tag not in names
            and (tag not in words_of_names or tag in slug.split("-"))
        ][:MAX_SYNONYMS]
        for slug in slugs
    }


def slugify(label: str) -> str:
    """`Red apple!` -> `red-apple`."""
    return "-".join(re.findall("[a-z0-9]+", label.lower()))


def main() -> None:
    """Write emoji_atlas.webp (rows are objects, columns styles) and emoji_atlas.json."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--node-modules", type=Path, default=Path("node_modules"))
    parser.add_argument("--out", type=Path, default=HERE.parent / "erase" / "bundled" / "data")
    args = parser.parse_args()
    slugs = (HERE / "emoji_objects.txt").read_text(encoding="utf-8").split()
    core = set((HERE / "emoji_objects_core.txt").read_text(encoding="utf-8").split())
    keywords = json.loads(
        (args.node_modules / "emojibase-data/en/data.json").read_text(encoding="utf-8")
    )
    synonyms = unique_synonyms(slugs, keywords)
    atlas = Image.new("RGBA", (CELL * len(STYLES), CELL * len(slugs)))
    for column, iconify_name in enumerate(STYLES.values()):
        path = args.node_modules / "@iconify-json" / iconify_name / "icons.json"
        icon_set = json.loads(path.read_text(encoding="utf-8"))
        for row, slug in enumerate(slugs):
            atlas.paste(rasterise(icon_set, slug), (CELL * column, CELL * row))
    args.out.mkdir(parents=True, exist_ok=True)
    atlas.save(args.out / "emoji_atlas.webp", lossless=True, quality=100, method=6)
    objects = [
        {"name": slug.replace("-", " "), "synonyms": synonyms[slug], "core": slug in core}
        for slug in slugs
    ]
    record = {"cell": CELL, "styles": STYLES, "objects": objects}
    (args.out / "emoji_atlas.json").write_text(
        json.dumps(record, indent=1) + "\n", encoding="utf-8"
    )


if __name__ == "__main__":
    main()
