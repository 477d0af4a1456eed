"""Weights out of files from people we do not trust; nothing in a file is ever executed."""

from neural_polarizer.model_files.checkpoints.reader import Checkpoint as Checkpoint
from neural_polarizer.model_files.checkpoints.reader import read_checkpoint as read_checkpoint
from neural_polarizer.model_files.checkpoints.shards import read_weights as read_weights
from neural_polarizer.model_files.checkpoints.shards import sha256_of_weights as sha256_of_weights
from neural_polarizer.model_files.checkpoints.strict import load_strict as load_strict
