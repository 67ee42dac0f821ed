"""The table of the 100-class bird set: python make_table.py bird_dataset birds.csv

The folder holds images/, images.txt ("0, Black_footed_Albatross/0000.jpg") and image_class_labels.txt ("0, 0"). The table
has no split: dataset.train_classes=50 makes the first 50 classes train and the others test.
"""

import sys
from pathlib import Path

import pandas as pd

folder, target = Path(sys.argv[1]), Path(sys.argv[2])
images = pd.read_csv(folder / "images.txt", names=["image", "path"], skipinitialspace=True)
labels = pd.read_csv(folder / "image_class_labels.txt", names=["image", "label"], skipinitialspace=True)
table = images.merge(labels, on="image", validate="one_to_one")
table["path"] = "images/" + table["path"]
table[["path", "label"]].to_csv(target, index=False)
