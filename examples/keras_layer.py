"""Train a Keras model whose first layer gives each image the colours of another photograph.

uv run --extra keras examples/keras_layer.py
"""

import os
import tempfile

os.environ.setdefault("KERAS_BACKEND", "torch")  # or tensorflow, or jax: nothing below depends on it
import keras
import numpy as np

from styleaug import fit_style
from styleaug.transforms.keras import StyleLayer
from styleaug.weights import pretrained_folder

if __name__ == "__main__":
    labels = np.arange(256) % 2  # 1 where the left half is bright, 0 where the right one is
    bright = (np.arange(48) < 24)[:, None] == labels[:, None, None, None]
    images = (np.random.default_rng(0).integers(0, 120, (256, 48, 48, 3)) + 120 * bright).astype("uint8")
    with tempfile.TemporaryDirectory() as folder:
        tones = fit_style(pretrained_folder() / "samples", generator="reinhard-lab", min_images=1).bank
        style = StyleLayer(tones.save(f"{folder}/tones.safetensors"), p=0.5, strength=(0.5, 1))
    model = keras.Sequential(
        [
            style,
            keras.layers.Rescaling(1 / 255),
            keras.layers.Flatten(),
            keras.layers.Dense(1, activation="sigmoid"),
        ]
    )
    model.compile(optimizer="adam", loss="binary_crossentropy", metrics=["accuracy"])
    model.fit(images, labels, epochs=3, verbose=2)
    print(f"accuracy without styles {model.evaluate(images, labels, verbose=0)[1]:.2f}")
