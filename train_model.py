"""Train inside a SageMaker container, or anywhere in its manner.

    SM_CHANNEL_TRAIN=./data SM_MODEL_DIR=./model_output python train_model.py --epochs 5 --lr 0.001

Arguments are the recipe's settings, with underscores or hyphens; places come from `SM_*`.
"""

import sys

from vizsla.cli.sagemaker import main

if __name__ == "__main__":
    sys.exit(main())
