"""Style WebDataset shards offline on a Ray cluster; labels and masks in them stay as they are.

    uv run --extra ray examples/ray_apply.py

The cluster is started on this machine. For one that is running, give its address: engine="ray",
address="auto". The same from a terminal: `styleaug apply SHARDS -o STYLED --engine ray`. Folders of
images and of Parquet files are styled alike.
"""

import io
import tarfile
import tempfile
from pathlib import Path

import numpy as np
from PIL import Image

from styleaug import apply_folder


def write_shards(folder: Path, shards: int = 4, images: int = 8) -> None:
    """Write what a data set of your own holds: images, each with its class."""
    folder.mkdir()
    rng = np.random.default_rng(0)
    for shard in range(shards):
        with tarfile.open(folder / f"train-{shard:03}.tar", "w") as tar:
            for index in range(images):
                content = io.BytesIO()
                pixels = rng.integers(0, 255, (3, 4, 3), dtype=np.uint8)
                Image.fromarray(pixels).resize((128, 96)).save(content, "JPEG")
                for name, value in (("jpg", content.getvalue()), ("cls", str(index % 2).encode())):
                    member = tarfile.TarInfo(f"{shard:03}-{index:04}.{name}")
                    member.size = len(value)
                    tar.addfile(member, io.BytesIO(value))


def main() -> None:
    with tempfile.TemporaryDirectory() as folder:
        source, styled = Path(folder, "shards"), Path(folder, "styled")
        write_shards(source)
        done = apply_folder(source, styled, bank="art", copies=2, engine="ray")
        print(f"{done.written} images written, {len(done.failed)} could not be read")
        for path in sorted(styled.iterdir()):
            print(f"  {path.name}  {path.stat().st_size:,} bytes")
        with tarfile.open(styled / "train-000.tar") as tar:
            print("the first members:", *tar.getnames()[:4])
        again = apply_folder(source, styled, bank="art", copies=2, engine="ray")
        print(f"called again: {again.written} written, {again.skipped} were there")


if __name__ == "__main__":
    main()
