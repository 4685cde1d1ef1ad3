"""The layouts in which quantised weights lie in checkpoints, one file each, and which of them a checkpoint has."""
