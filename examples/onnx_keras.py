"""Train a Keras model on images that an exported generator stylises in ONNX Runtime.

uv run --extra keras --extra export examples/onnx_keras.py
"""

import os
import tempfile

os.environ.setdefault("KERAS_BACKEND", "torch")  # or tensorflow, or jax: nothing below depends on it
import keras
import numpy as np
import onnxruntime

from styleaug import export_onnx


def stylise(session: onnxruntime.InferenceSession, images: np.ndarray) -> np.ndarray:
    """Give half of the uint8 images (B, H, W, 3) one of the bank's 256 styles each; floats in [0, 1]."""
    rng, count = np.random.default_rng(), len(images)
    strength = rng.uniform(0.5, 1, count) * (rng.random(count) < 0.5)  # 0 gives the image itself
    feed = {"images": images.transpose(0, 3, 1, 2).astype("float32") / 255}
    feed |= {"style": rng.integers(256, size=count), "strength": strength.astype("float32")}
    return session.run(None, feed)[0].transpose(0, 2, 3, 1)


class Styled(keras.utils.PyDataset):
    def __init__(self, session, images, labels, **options):
        super().__init__(**options)
        self.session, self.images, self.labels = session, images, labels

    def __len__(self):
        return -(-len(self.images) // 32)

    def __getitem__(self, index):
        rows = slice(32 * index, 32 * index + 32)
        return stylise(self.session, self.images[rows]), self.labels[rows]


def tf_data(session, images, labels):  # the same for those who have TensorFlow
    import tensorflow as tf

    def style(batch, labels):
        styled = tf.numpy_function(lambda batch: stylise(session, batch), [batch], tf.float32)
        return tf.ensure_shape(styled, batch.shape), labels

    data = tf.data.Dataset.from_tensor_slices((images, labels)).shuffle(len(images)).batch(32)
    return data.map(style, num_parallel_calls=tf.data.AUTOTUNE).prefetch(tf.data.AUTOTUNE)


if __name__ == "__main__":
    labels = np.arange(256) % 2  # 1 where the left half is bright, 0 where the right one is
    bright = (np.arange(48) < 24)[:, None] == labels[:, None, None, None]
    images = (np.random.default_rng(0).integers(0, 120, (256, 48, 48, 3)) + 120 * bright).astype("uint8")
    with tempfile.TemporaryDirectory() as folder:
        session = onnxruntime.InferenceSession(export_onnx("adain", f"{folder}/a.onnx", bank="art").path)
    model = keras.Sequential([keras.layers.Flatten(), keras.layers.Dense(1, activation="sigmoid")])
    model.compile(optimizer="adam", loss="binary_crossentropy", metrics=["accuracy"])
    model.fit(Styled(session, images, labels, workers=2), epochs=3, verbose=2)
    print(f"accuracy without styles {model.evaluate(images / 255, labels, verbose=0)[1]:.2f}")
