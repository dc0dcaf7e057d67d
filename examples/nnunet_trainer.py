"""Style inside nnU-Net: one transform of its pipeline, or whole batches on the training device.

    mkdir trainers && cp examples/nnunet_trainer.py trainers/
    export nnUNet_extTrainer=trainers
    nnUNetv2_train 1 2d 0 -tr nnUNetTrainerStyle
    nnUNetv2_predict ... -tr nnUNetTrainerStyle

Run as a script it shows what the transform does to a sample.
"""

from typing import Any, ClassVar

import torch
from batchgeneratorsv2.transforms.utils.compose import ComposeTransforms

from styleaug.transforms.nnunet import StyleTrainer, StyleTransform


class nnUNetTrainerStyle(StyleTrainer):
    """Train on batches of which half of the images pass a random network."""

    styles: ClassVar[Any] = {"generator": "gin", "strength": (0.0, 1.0), "p": 0.5}


def main() -> None:
    """Style a CT-like volume in the pipeline of a loader's process; its segmentation stays."""
    torch.manual_seed(0)
    pipeline = ComposeTransforms([StyleTransform(generator="gin", strength=(0, 1), p=1.0)])
    volume, segmentation = torch.randn(1, 8, 64, 64), torch.zeros(1, 8, 64, 64)
    done = pipeline(image=volume.clone(), segmentation=segmentation)
    change = (done["image"] - volume).abs().mean()
    print(f"the image changed by {change:.2f} on average, the segmentation by {done['segmentation'].sum()}")


if __name__ == "__main__":
    main()
