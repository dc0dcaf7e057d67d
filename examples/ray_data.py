"""Style images inside a Ray Data pipeline, before they are normalised.

uv run --extra ray examples/ray_data.py
"""

import os

os.environ["RAY_ENABLE_UV_RUN_RUNTIME_ENV"] = "0"  # on one machine workers need no environment of their own

import numpy as np
import ray

from styleaug.transforms.ray import StyleBatch

MEAN, STD = np.float32([0.485, 0.456, 0.406]), np.float32([0.229, 0.224, 0.225])


def read(row: dict) -> dict:
    """Stand in for `ray.data.read_images(folder, size=(96, 128))`."""
    rng = np.random.default_rng(row["id"])
    image = rng.integers(0, 255, (6, 8, 3), dtype=np.uint8).repeat(16, axis=0).repeat(16, axis=1)
    return {"id": row["id"], "label": row["id"] % 2, "image": image}


def normalise(batch: dict) -> dict:
    return {**batch, "image": (batch["image"].astype(np.float32) / 255 - MEAN) / STD}


def main() -> None:
    ray.init(include_dashboard=False, log_to_driver=False, logging_level="ERROR")
    ray.data.DataContext.get_current().enable_progress_bars = False
    images = ray.data.range(64).map(read)
    styled = images.map_batches(
        StyleBatch,
        # Without a seed each epoch has other styles.
        fn_constructor_kwargs={"bank": "art", "p": 0.5, "seed": 1, "ids": "id"},
        batch_size=16,
        num_cpus=1,
        num_gpus=0,  # of each actor
        compute=ray.data.ActorPoolStrategy(min_size=1, max_size=8),  # reading needs a core, too
    )
    changed, labels = 0, 0
    for batch in styled.iter_batches(batch_size=16):
        for row, image, label in zip(batch["id"], batch["image"], batch["label"], strict=True):
            before = read({"id": int(row)})
            changed += not np.array_equal(image, before["image"])
            labels += int(label == before["label"])
    print(f"{changed} of 64 images have a style, {labels} their label")
    batch = styled.map_batches(normalise).take_batch(16)
    print(f"ready to train on: {batch['image'].shape}, mean {batch['image'].mean():.2f}")
    ray.shutdown()


if __name__ == "__main__":
    main()
