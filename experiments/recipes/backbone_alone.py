"""Write the backbone's part of a file of torchreid's OSNet: python experiments/recipes/backbone_alone.py osnet.pth backbone.pth

The branches of a network that starts from it are random, whatever their head; from the whole file a global branch with a linear
head would start from torchreid's `fc`, beside a dropping branch that starts from nothing.
"""

import argparse
from pathlib import Path

import torch

from bdbnet.models import read_state_dict

if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("source", type=Path)
    parser.add_argument("target", type=Path, help="is not overwritten")
    arguments = parser.parse_args()
    if arguments.target.exists():
        parser.error(f"{arguments.target} exists: name another file, or delete it")
    state = read_state_dict(arguments.source)
    kept = {key: tensor for key, tensor in state.items() if not key.startswith(("fc.", "classifier."))}
    torch.save(kept, arguments.target)
    print(f"{arguments.target}: {len(kept)} of {len(state)} tensors")
